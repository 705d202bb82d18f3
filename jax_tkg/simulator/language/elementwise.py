"""Element-wise functions of ``nki.language``. Each also serves as the operator in ``op=``."""

import math
from typing import Any

from jax_tkg.simulator import isa
from jax_tkg.simulator.language.create import full, ndarray
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described


def _binary(name: str, x: Any, y: Any, dtype: Any) -> NkiTensor:
    """Computes ``x op y`` in a new SBUF tile; y may be a number or a column."""
    if not isinstance(x, NkiTensor) and not isinstance(y, NkiTensor):
        raise TypeError(
            f"nl.{name}: at least one of x, y must be a tile, got {described(x)} and {described(y)}"
        )
    if not isinstance(x, NkiTensor):
        out = ndarray(y.shape, dtype or y.dtype)
        isa.tensor_scalar(out, y, name, x, reverse0=True)
        return out
    if not isinstance(y, NkiTensor):
        out = ndarray(x.shape, dtype or x.dtype)
        isa.tensor_scalar(out, x, name, y)
        return out
    shape = tuple(max(a, b) for a, b in zip(x.shape, y.shape, strict=True))
    out = ndarray(shape, dtype or x.dtype)
    isa.tensor_tensor(out, _spread(x, shape), _spread(y, shape), name)
    return out


def _spread(x: NkiTensor, shape: tuple[int, ...]) -> NkiTensor:
    """Broadcasts free dimensions of size 1."""
    for dim in range(1, x.ndim):
        if x.shape[dim] == 1 and shape[dim] != 1:
            x = x.broadcast(dim, shape[dim])
    return x


def _unary(name: str, x: NkiTensor, dtype: Any) -> NkiTensor:
    out = ndarray(x.shape, dtype or x.dtype)
    isa.activation(out, name, x)
    return out


def add(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x + y."""
    return _binary("add", x, y, dtype)


def subtract(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x - y."""
    return _binary("subtract", x, y, dtype)


def multiply(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x * y."""
    return _binary("multiply", x, y, dtype)


def divide(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x / y."""
    return _binary("divide", x, y, dtype)


def maximum(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """The larger of x and y."""
    return _binary("maximum", x, y, dtype)


def minimum(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """The smaller of x and y."""
    return _binary("minimum", x, y, dtype)


def abs_max(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x if |x| > |y|, else y."""
    return _binary("abs_max", x, y, dtype)


def abs_min(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x if |x| < |y|, else y."""
    return _binary("abs_min", x, y, dtype)


def power(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x to the power of y."""
    return _binary("power", x, y, dtype)


def fmod(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Remainder with the sign of x."""
    return _binary("fmod", x, y, dtype)


def mod(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Remainder with the sign of y."""
    return _binary("mod", x, y, dtype)


def equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x == y, else 0."""
    return _binary("equal", x, y, dtype)


def not_equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x != y, else 0."""
    return _binary("not_equal", x, y, dtype)


def less(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x < y, else 0."""
    return _binary("less", x, y, dtype)


def less_equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x <= y, else 0."""
    return _binary("less_equal", x, y, dtype)


def greater(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x > y, else 0."""
    return _binary("greater", x, y, dtype)


def greater_equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x >= y, else 0."""
    return _binary("greater_equal", x, y, dtype)


def bitwise_and(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Bitwise AND of integers."""
    return _binary("bitwise_and", x, y, dtype)


def bitwise_or(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Bitwise OR of integers."""
    return _binary("bitwise_or", x, y, dtype)


def bitwise_xor(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Bitwise exclusive OR of integers."""
    return _binary("bitwise_xor", x, y, dtype)


def left_shift(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x shifted left by y bits."""
    return _binary("left_shift", x, y, dtype)


def right_shift(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x shifted right by y bits, filled with zeros."""
    return _binary("right_shift", x, y, dtype)


def logical_and(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Logical AND."""
    return _binary("logical_and", x, y, dtype)


def logical_or(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Logical OR."""
    return _binary("logical_or", x, y, dtype)


def logical_xor(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Logical exclusive OR."""
    return _binary("logical_xor", x, y, dtype)


def logical_not(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Logical NOT of 0 and 1."""
    return _binary("logical_xor", x, 1.0, dtype)


def invert(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Bitwise NOT of integers."""
    out = ndarray(x.shape, dtype or x.dtype)
    isa.tensor_scalar(out, x, "invert", None)
    return out


def negative(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """-x."""
    return _binary("multiply", x, -1.0, dtype)


def abs(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Absolute value."""
    return _unary("abs", x, dtype)


def square(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x * x."""
    return _unary("square", x, dtype)


def exp(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """e to the power of x."""
    return _unary("exp", x, dtype)


def log(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Natural logarithm."""
    return _unary("log", x, dtype)


def sqrt(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Square root."""
    return _unary("sqrt", x, dtype)


def rsqrt(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / sqrt(x)."""
    return _unary("rsqrt", x, dtype)


def tanh(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Hyperbolic tangent."""
    return _unary("tanh", x, dtype)


def sigmoid(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / (1 + exp(-x))."""
    return _unary("sigmoid", x, dtype)


def relu(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """max(x, 0)."""
    return _unary("relu", x, dtype)


def gelu(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x * Phi(x)."""
    return _unary("gelu", x, dtype)


def gelu_dx(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Derivative of GELU."""
    return _unary("gelu_dx", x, dtype)


def gelu_apprx_tanh(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """GELU in its tanh approximation."""
    return _unary("gelu_apprx_tanh", x, dtype)


def gelu_apprx_sigmoid(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x * sigmoid(1.702 x)."""
    return _unary("gelu_apprx_sigmoid", x, dtype)


def gelu_apprx_sigmoid_dx(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Derivative of x * sigmoid(1.702 x)."""
    return _unary("gelu_apprx_sigmoid_dx", x, dtype)


def silu(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x * sigmoid(x)."""
    return _unary("silu", x, dtype)


def silu_dx(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Derivative of SiLU."""
    return _unary("silu_dx", x, dtype)


def softplus(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """log(1 + exp(x))."""
    return _unary("softplus", x, dtype)


def mish(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x * tanh(softplus(x))."""
    return _unary("mish", x, dtype)


def erf(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Error function."""
    return _unary("erf", x, dtype)


def erf_dx(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Derivative of the error function."""
    return _unary("erf_dx", x, dtype)


def reciprocal(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / x."""
    out = ndarray(x.shape, dtype or x.dtype)
    isa.reciprocal(out, x)
    return out


def arctan(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Inverse tangent."""
    return _unary("arctan", x, dtype)


def sign(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """-1, 0 or 1."""
    return _unary("sign", x, dtype)


def sin(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Sine over the full domain: the argument is first reduced to [-pi, pi)."""
    return _sine_of(x, 0.0, dtype)


def cos(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Cosine over the full domain."""
    return _sine_of(x, math.pi / 2, dtype)


def _sine_of(x: NkiTensor, shift: float, dtype: Any) -> NkiTensor:
    reduced = ndarray(x.shape, "float32")
    isa.tensor_scalar(reduced, x, "add", math.pi + shift, op1="mod", operand1=2 * math.pi)
    isa.tensor_scalar(reduced, reduced, "add", -math.pi, op1="maximum", operand1=-_FLOAT32_PI)
    isa.tensor_scalar(reduced, reduced, "minimum", _FLOAT32_PI)
    out = ndarray(x.shape, dtype or x.dtype)
    isa.activation(out, "sin", reduced)
    return out


# The largest float32 not above pi.
_FLOAT32_PI = 3.1415925


def tan(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Tangent."""
    quotient = divide(_sine_of(x, 0.0, "float32"), _sine_of(x, math.pi / 2, "float32"))
    out = ndarray(x.shape, dtype or x.dtype)
    isa.tensor_copy(out, quotient)
    return out


def trunc(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Rounds toward 0: the magnitude minus its remainder by 1, with the sign of x."""
    remainder = fmod(x, 1.0, "float32")
    return subtract(x, remainder, dtype or x.dtype)


def floor(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Rounds down: x minus its remainder by 1, which is not negative."""
    remainder = mod(x, 1.0, "float32")
    return subtract(x, remainder, dtype or x.dtype)


def ceil(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Rounds up: -floor(-x)."""
    return negative(floor(negative(x)), dtype or x.dtype)


def where(condition: NkiTensor, x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x where the condition is not 0, else y."""
    tile = x if isinstance(x, NkiTensor) else y
    shape = condition.shape if not isinstance(tile, NkiTensor) else tile.shape
    kind = dtype or (tile.dtype if isinstance(tile, NkiTensor) else "float32")
    predicate = ndarray(condition.shape, "uint8")
    isa.tensor_scalar(predicate, condition, "not_equal", 0.0)
    out = full(shape, 0, kind) if not isinstance(y, NkiTensor) else ndarray(shape, kind)
    if isinstance(y, NkiTensor):
        isa.tensor_copy(out, y)
    else:
        isa.memset(out, y)
    source = x
    if isinstance(x, NkiTensor) and x.dtype != kind:
        source = ndarray(shape, kind)
        isa.tensor_copy(source, x)
    isa.tensor_copy_predicated(out, source, predicate)
    return out


def dropout(x: NkiTensor, rate: Any, dtype: Any = None) -> NkiTensor:
    """Replaces elements with 0, each with probability `rate`."""
    out = ndarray(x.shape, x.dtype)
    isa.dropout(out, x, rate)
    if dtype is None or dtype == x.dtype:
        return out
    cast = ndarray(x.shape, dtype)
    isa.tensor_copy(cast, out)
    return cast


def prelu(*args: Any, **kwargs: Any) -> NkiTensor:
    """The PReLU activation, as an operator of ``activate2`` only."""
    raise TypeError("nl.prelu only names an activation function; call nki.isa.activate2")


def bypass(*args: Any, **kwargs: Any) -> NkiTensor:
    """The operator that passes data through."""
    raise TypeError("nl.bypass only names an operator for an nki.isa instruction")


def average(*args: Any, **kwargs: Any) -> NkiTensor:
    """The mean, as an operator of ``tensor_partition_reduce`` only."""
    raise TypeError("nl.average only names an operator for nki.isa.tensor_partition_reduce")
