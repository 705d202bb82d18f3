"""The operators of instructions: arithmetic and bitwise ALU operators, and activation functions.

A kernel passes an operator to an instruction as a function of ``nki.language`` (``op=nl.add``).
The tables here define what the engines compute for it. They list the operators of the tables
"Supported Math Operators" and "Supported Activation Functions" in the NKI ISA documentation.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.machine import current_core, require_generation

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Operator:
    """One ALU operator.

    Attributes:
      name: its name in ``nki.language``.
      apply: the function on float32 arrays (arithmetic) or integer arrays (bitvec).
      arity: 1 or 2.
      bitvec: whether it works on the bit patterns of integers.
      reducer: the NumPy ufunc that reduces an axis; None if the operator cannot reduce.
      identity: the value that a reduction starts from.
      generation: the first NeuronCore that has it.
    """

    name: str
    apply: Callable[..., Array]
    arity: int = 2
    bitvec: bool = False
    reducer: Any = None
    identity: float = 0.0
    generation: int = 2


def _flag(function: Any) -> Callable[[Array, Array], Array]:
    return lambda x, y: function(x, y).astype(np.float32)


def _abs_extreme(larger: bool) -> Callable[[Array, Array], Array]:
    def apply(x: Array, y: Array) -> Array:
        ax, ay = np.abs(x), np.abs(y)
        return np.where(ax > ay if larger else ax < ay, x, y)

    return apply


def _logical(function: Any) -> Callable[[Array, Array], Array]:
    return lambda x, y: function(x != 0, y != 0).astype(np.float32)


def _shift_left(x: Array, y: Array) -> Array:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return np.left_shift(x.view(unsigned), np.asarray(y).astype(unsigned)).view(x.dtype)


def _shift_right(x: Array, y: Array) -> Array:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return np.right_shift(x.view(unsigned), np.asarray(y).astype(unsigned)).view(x.dtype)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("add", np.add, reducer=np.add),
        Operator("subtract", np.subtract, reducer=np.subtract),
        Operator("multiply", np.multiply, reducer=np.multiply, identity=1.0),
        Operator("divide", np.divide),
        Operator("maximum", np.maximum, reducer=np.maximum, identity=-math.inf),
        Operator("minimum", np.minimum, reducer=np.minimum, identity=math.inf),
        Operator("equal", _flag(np.equal)),
        Operator("not_equal", _flag(np.not_equal)),
        Operator("greater_equal", _flag(np.greater_equal)),
        Operator("greater", _flag(np.greater)),
        Operator("less_equal", _flag(np.less_equal)),
        Operator("less", _flag(np.less)),
        Operator("logical_and", _logical(np.logical_and), reducer=np.logical_and, identity=1.0),
        Operator("logical_or", _logical(np.logical_or), reducer=np.logical_or),
        Operator("logical_xor", _logical(np.logical_xor), reducer=np.logical_xor),
        Operator("power", np.power),
        Operator("mod", np.mod),
        Operator("fmod", np.fmod),
        Operator("abs_max", _abs_extreme(True), generation=4),
        Operator("abs_min", _abs_extreme(False), generation=4),
        Operator("abs", np.abs, arity=1),
        Operator("square", np.square, arity=1),
        Operator("relu", lambda x: np.maximum(x, 0), arity=1),
        Operator("rsqrt", lambda x: 1 / np.sqrt(x), arity=1),
        Operator("reciprocal", lambda x: np.float32(1) / x, arity=1),
        Operator("negative", np.negative, arity=1),
        Operator("bypass", lambda x: x, arity=1),
        Operator("invert", np.invert, arity=1, bitvec=True),
        Operator("bitwise_and", np.bitwise_and, bitvec=True, reducer=np.bitwise_and),
        Operator("bitwise_or", np.bitwise_or, bitvec=True, reducer=np.bitwise_or),
        Operator("bitwise_xor", np.bitwise_xor, bitvec=True, reducer=np.bitwise_xor),
        Operator("left_shift", _shift_left, bitvec=True),
        Operator("right_shift", _shift_right, bitvec=True),
    )
}

# tensor_scalar_reduce and select_reduce name the reductions nl.max and nl.min.
_ALIASES = {"max": "maximum", "min": "minimum", "sum": "add", "prod": "multiply"}


def operator_name(op: Any) -> str:
    """Returns the name of an operator, given as a function of ``nki.language``."""
    return getattr(op, "__name__", str(op)).rstrip("_")


def operator(op: Any, instruction: str, argument: str) -> Operator:
    """Returns the ALU operator for a function of ``nki.language``.

    Raises:
      NkiValidationError: there is none, or the target is older than the operator.
    """
    name = operator_name(op)
    found = OPERATORS.get(_ALIASES.get(name, name))
    if found is None:
        raise errors.NkiValidationError(
            f"{instruction}: {argument}={name} is not an ALU operator; expected one of "
            f"{sorted(OPERATORS)}"
        )
    require_generation(current_core(), found.generation, f"{instruction}: {argument}={name}")
    return found


@dataclasses.dataclass(frozen=True)
class Activation:
    """One function of the Scalar Engine.

    Attributes:
      name: its name in ``nki.language``.
      apply: the function on float32 arrays.
      low, high: the documented valid input range.
      symmetric: whether the range applies to the magnitude.
    """

    name: str
    apply: Callable[[Array], Array]
    low: float = -math.inf
    high: float = math.inf
    symmetric: bool = False


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def erf(x: Array) -> Array:
    """The error function to float32 accuracy (relative 1.2e-7, the Chebyshev fit of Press et al.,
    Numerical Recipes, section 6.2)."""
    z = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.5 * z)
    coefficients = (
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    )
    total = np.zeros_like(t)
    for coefficient in reversed(coefficients):
        total = total * t + coefficient
    complement = t * np.exp(-z * z + total)
    return (np.sign(x) * (1 - complement)).astype(np.float32)


def _normal_density(x: Array) -> Array:
    return np.exp(-0.5 * x * x) * np.float32(1 / math.sqrt(2 * math.pi))


def _gelu(x: Array) -> Array:
    return x * np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5))))


def _gelu_dx(x: Array) -> Array:
    return np.float32(0.5) * (1 + erf(x * np.float32(math.sqrt(0.5)))) + x * _normal_density(x)


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


_GELU_SIGMOID_SLOPE = np.float32(1.702)


def _gelu_sigmoid_dx(x: Array) -> Array:
    gate = sigmoid(_GELU_SIGMOID_SLOPE * x)
    return gate + _GELU_SIGMOID_SLOPE * x * gate * (1 - gate)


def _silu_dx(x: Array) -> Array:
    gate = sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _softplus(x: Array) -> Array:
    return np.logaddexp(np.float32(0), x)


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("copy", lambda x: x),
        Activation("square", np.square),
        Activation("sigmoid", sigmoid),
        Activation("relu", lambda x: np.maximum(x, 0)),
        Activation("gelu", _gelu),
        Activation("gelu_dx", _gelu_dx),
        Activation("gelu_apprx_tanh", _gelu_tanh),
        Activation("gelu_apprx_sigmoid", lambda x: x * sigmoid(_GELU_SIGMOID_SLOPE * x)),
        Activation("gelu_apprx_sigmoid_dx", _gelu_sigmoid_dx),
        Activation("silu", lambda x: x * sigmoid(x)),
        Activation("silu_dx", _silu_dx),
        Activation("tanh", np.tanh),
        Activation("softplus", _softplus),
        Activation("mish", lambda x: x * np.tanh(_softplus(x))),
        Activation("erf", erf),
        Activation("erf_dx", lambda x: np.float32(2 / math.sqrt(math.pi)) * np.exp(-x * x)),
        Activation("exp", np.exp),
        Activation("log", np.log, 2.0**-64, 2.0**64),
        Activation("sin", np.sin, -math.pi, math.pi),
        Activation("arctan", np.arctan, -math.pi / 2, math.pi / 2),
        Activation("sqrt", np.sqrt, 2.0**-116, 2.0**118),
        Activation("rsqrt", lambda x: 1 / np.sqrt(x), 2.0**-87, 2.0**97),
        Activation("reciprocal", lambda x: 1 / x, 2.0**-42, 2.0**42, symmetric=True),
        Activation("sign", np.sign),
        Activation("abs", np.abs),
    )
}


def activation_function(op: Any, instruction: str) -> Activation:
    """Returns the activation function for a function of ``nki.language``.

    Raises:
      NkiValidationError: there is none.
    """
    name = operator_name(op)
    if name == "prelu":
        raise errors.NkiValidationError(
            f"{instruction}: op=prelu needs a slope, which only activate2 takes (relu_param)"
        )
    found = ACTIVATIONS.get(name)
    if found is None:
        raise errors.NkiValidationError(
            f"{instruction}: op={name} is not an activation function; expected one of "
            f"{sorted(ACTIVATIONS)}"
        )
    return found
