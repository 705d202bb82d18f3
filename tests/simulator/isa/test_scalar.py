"""Scalar Engine: activation functions against SciPy, reductions, and the documented limits."""

import math

import numpy as np
import scipy.special
import scipy.stats
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import on_chip, tile

_G = np.random.default_rng(0)
_X = _G.uniform(-4, 4, (128, 16)).astype(np.float32)
_POSITIVE = _G.uniform(0.01, 9, (128, 16)).astype(np.float32)


def _derivative(function):
    step = 1e-5
    return lambda x: (function(x + step) - function(x - step)) / (2 * step)


def _gelu(x):
    return x * scipy.stats.norm.cdf(x)


def _silu(x):
    return x * scipy.special.expit(x)


def _gelu_sigmoid(x):
    return x * scipy.special.expit(1.702 * x)


class ActivationTest(parameterized.TestCase):
    @parameterized.parameters(
        (nl.copy, lambda x: x),
        (nl.square, lambda x: x * x),
        (nl.sigmoid, scipy.special.expit),
        (nl.relu, lambda x: np.maximum(x, 0)),
        (nl.gelu, _gelu),
        (nl.gelu_dx, _derivative(_gelu)),
        (
            nl.gelu_apprx_tanh,
            lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        (nl.gelu_apprx_sigmoid, _gelu_sigmoid),
        (nl.gelu_apprx_sigmoid_dx, _derivative(_gelu_sigmoid)),
        (nl.silu, _silu),
        (nl.silu_dx, _derivative(_silu)),
        (nl.tanh, np.tanh),
        (nl.softplus, lambda x: np.log1p(np.exp(x))),
        (nl.mish, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        (nl.erf, scipy.special.erf),
        (nl.erf_dx, _derivative(scipy.special.erf)),
        (nl.exp, np.exp),
        (nl.sign, np.sign),
        (nl.abs, np.abs),
    )
    def test_function(self, op, expected):
        result = on_chip(lambda dst, x: nisa.activation(dst, op, x), [_X], _X.shape)
        np.testing.assert_allclose(result, expected(_X.astype(np.float64)), rtol=3e-6, atol=1e-6)

    @parameterized.parameters(
        (nl.log, np.log),
        (nl.sqrt, np.sqrt),
        (nl.rsqrt, lambda x: 1 / np.sqrt(x)),
        (nl.reciprocal, lambda x: 1 / x),
    )
    def test_function_of_positive_numbers(self, op, expected):
        result = on_chip(lambda dst, x: nisa.activation(dst, op, x), [_POSITIVE], _X.shape)
        np.testing.assert_allclose(
            result, expected(_POSITIVE.astype(np.float64)), rtol=1e-5, atol=1e-6
        )

    @parameterized.parameters((nl.sin, np.sin, 3.1), (nl.arctan, np.arctan, 1.5))
    def test_function_of_a_range(self, op, expected, limit):
        x = np.linspace(-limit, limit, 64, dtype=np.float32)[None, :]
        result = on_chip(lambda dst, t: nisa.activation(dst, op, t), [x], x.shape)
        np.testing.assert_allclose(result, expected(x.astype(np.float64)), rtol=1e-5, atol=1e-6)

    def test_scale_comes_before_bias_and_both_before_the_function(self):
        x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
        bias = np.array([[0.5], [-1.0]], np.float32)
        result = on_chip(
            lambda dst, t, b: nisa.activation(dst, nl.square, t, bias=b, scale=2.0),
            [x, bias],
            (2, 2),
        )
        np.testing.assert_array_equal(result, (2 * x + bias) ** 2)

    def test_scale_as_a_column(self):
        scale = _G.normal(size=(128, 1)).astype(np.float32)
        result = on_chip(
            lambda dst, t, s: nisa.activation(dst, nl.copy, t, scale=s), [_X, scale], _X.shape
        )
        np.testing.assert_array_equal(result, _X * scale)

    def test_exp_of_minus_infinity_is_zero(self):
        x = np.array([[-np.inf, 0.0]], np.float32)
        result = on_chip(lambda dst, t: nisa.activation(dst, nl.exp, t), [x], (1, 2))
        np.testing.assert_array_equal(result, [[0.0, 1.0]])


class ReductionTest(parameterized.TestCase):
    def test_reset_reduce_then_reduce(self):
        # The registers persist over instructions: the sum runs over both tiles.
        def kernel(x, y):
            a, b = nl.load(x), nl.load(y)
            scratch = nl.ndarray(x.shape, dtype=nl.float32)
            total = nl.ndarray((128, 1), dtype=nl.float32)
            nisa.activation(
                scratch, nl.square, a, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reset_reduce
            )
            nisa.activation(
                scratch,
                nl.square,
                b,
                reduce_op=nl.add,
                reduce_res=total,
                reduce_cmd=nisa.reduce_cmd.reduce,
            )
            out = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, total)
            return out

        result = harness.run(kernel, _X, _POSITIVE).outputs[0]
        expected = (_X.astype(np.float64) ** 2).sum(1) + (_POSITIVE.astype(np.float64) ** 2).sum(1)
        np.testing.assert_allclose(result[:, 0], expected, rtol=1e-5)

    def test_activation_reduce_resets_first(self):
        def instruction(dst, x):
            scratch = nl.ndarray(x.shape, dtype=nl.float32)
            for _ in range(2):
                nisa.activation_reduce(scratch, nl.copy, x, nl.add, dst)

        result = on_chip(instruction, [_POSITIVE], (128, 1))
        np.testing.assert_allclose(result[:, 0], _POSITIVE.sum(1), rtol=1e-5)

    @parameterized.named_parameters(
        ("reduce", {"reduce_cmd": nisa.reduce_cmd.reduce, "reduce_op": nl.add}, "trn2"),
        ("read_out", {}, "trn2"),
        (
            "activate2",
            {"imm0": 0, "imm1": 0, "op0": nl.bypass, "op1": nl.bypass},
            "trn3",
        ),
    )
    def test_registers_are_set_before_they_are_read(self, options, target):
        call = nisa.activate2 if "imm0" in options else nisa.activation

        def body(begin):
            if begin:
                nisa.activation(tile(4, 4), nl.copy, tile(4, 4), reduce_cmd=nisa.reduce_cmd.reset)
                # Idle does not modify the registers of the Scalar Engine.
                nisa.activation(tile(4, 4), nl.copy, tile(4, 4))
            call(tile(4, 4), nl.copy, tile(4, 4), reduce_res=tile(4, 1), **options)

        harness.run(lambda: body(True), target=target)
        with self.assertRaisesRegex(
            simulator.UninitializedReadError,
            "reads 4 of 4 reduction registers of the Scalar Engine that were never set",
        ):
            harness.run(lambda: body(False), target=target)

    def test_activate2_of_the_documentation(self):
        # gelu(2 x + 0.5)
        result = on_chip(
            lambda dst, x: nisa.activate2(
                dst=dst, op=nl.gelu, data=x, imm0=2.0, imm1=0.5, op0=nl.multiply, op1=nl.add
            ),
            [_X],
            _X.shape,
            target="trn3",
        )
        np.testing.assert_allclose(
            result, _gelu(2 * _X.astype(np.float64) + 0.5), rtol=1e-5, atol=1e-6
        )

    def test_prelu(self):
        result = on_chip(
            lambda dst, x: nisa.activate2(
                dst, nl.prelu, x, 0, 0, nl.bypass, nl.bypass, relu_param=0.25
            ),
            [_X],
            _X.shape,
            target="trn3",
        )
        np.testing.assert_array_equal(result, np.where(_X >= 0, _X, _X * np.float32(0.25)))


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "unknown_function",
            lambda: nisa.activation(tile(4, 4), nl.softmax, tile(4, 4)),
            "op=softmax is not an activation function",
        ),
        (
            "reciprocal_without_bias_on_v2",
            lambda: nisa.activation(tile(4, 4), nl.reciprocal, tile(4, 4), bias=tile(4, 1)),
            "op=reciprocal takes no bias on NeuronCore-v2",
            "trn1",
        ),
        (
            "prelu_needs_activate2",
            lambda: nisa.activation(tile(4, 4), nl.prelu, tile(4, 4)),
            "prelu needs a slope",
        ),
        (
            "scale_must_be_float32",
            lambda: nisa.activation(
                tile(4, 4), nl.copy, tile(4, 4), scale=tile(4, 1, dtype="bfloat16")
            ),
            "scale must be float32, got bfloat16",
        ),
        (
            "scale_must_be_a_column",
            lambda: nisa.activation(tile(4, 4), nl.copy, tile(4, 4), scale=tile(4, 4)),
            r"scale must have shape \(4, 1\)",
        ),
        (
            "bias_not_tfloat32",
            lambda: nisa.activation(
                tile(4, 4), nl.copy, tile(4, 4), bias=tile(4, 1, dtype="tfloat32")
            ),
            "bias must not be tfloat32",
        ),
        (
            "scalar_bias_needs_v3",
            lambda: nisa.activation(tile(4, 4), nl.copy, tile(4, 4), bias=1.0),
            r"bias must be a \(4, 1\) tensor on NeuronCore-v2",
            "trn1",
        ),
        (
            "reduce_op_add_only",
            lambda: nisa.activation(
                tile(4, 4),
                nl.copy,
                tile(4, 4),
                reduce_op=nl.maximum,
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
            ),
            "reduce_op must be nl.add, got maximum",
        ),
        (
            "reduce_needs_an_operator",
            lambda: nisa.activation(
                tile(4, 4), nl.copy, tile(4, 4), reduce_cmd=nisa.reduce_cmd.reduce
            ),
            "reduce_cmd reduce needs reduce_op",
        ),
        (
            "no_load_reduce",
            lambda: nisa.activation(
                tile(4, 4), nl.copy, tile(4, 4), reduce_cmd=nisa.reduce_cmd.load_reduce
            ),
            "load_reduce is not a command",
        ),
        (
            "reduce_res_shape",
            lambda: nisa.activation_reduce(tile(4, 4), nl.copy, tile(4, 4), nl.add, tile(4, 2)),
            r"reduce_res must have shape \(4, 1\)",
        ),
        (
            "elements",
            lambda: nisa.activation(tile(4, 4), nl.copy, tile(4, 8)),
            "dst must have as many elements per partition as data",
        ),
        (
            "rsqrt_range",
            lambda: nisa.activation(tile(4, 4), nl.rsqrt, tile(4, 4, value=0)),
            "op=rsqrt is valid for inputs in .*got 0",
        ),
        (
            "sqrt_range",
            lambda: nisa.activation(tile(4, 4), nl.sqrt, tile(4, 4, value=-1)),
            "op=sqrt is valid for inputs in",
        ),
        (
            "sin_range",
            lambda: nisa.activation(tile(4, 4), nl.sin, tile(4, 4, value=9)),
            "op=sin is valid for inputs in .*got 9",
        ),
        (
            "sin_range_after_scale",
            lambda: nisa.activation(tile(4, 4), nl.sin, tile(4, 4, value=2), scale=2.0),
            "got 4",
        ),
        (
            "log_range",
            lambda: nisa.activation(tile(4, 4), nl.log, tile(4, 4, value=0)),
            "op=log is valid for inputs in",
        ),
        (
            "reciprocal_range",
            lambda: nisa.activation(tile(4, 4), nl.reciprocal, tile(4, 4, value=0)),
            r"op=reciprocal is valid for inputs in \+-\[",
        ),
        (
            "activate2_needs_v4",
            lambda: nisa.activate2(tile(4, 4), nl.copy, tile(4, 4), 0, 0, nl.bypass, nl.bypass),
            "activate2 needs NeuronCore-v4",
        ),
        (
            "activate2_pairs",
            lambda: nisa.activate2(tile(4, 4), nl.copy, tile(4, 4), 1, 1, nl.add, nl.multiply),
            r"\(op0, op1\) must be one of",
            "trn3",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)
