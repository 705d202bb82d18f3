"""Scans and reductions of the Vector Engine, by the documented pseudo code."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import on_chip, psum, tile

_G = np.random.default_rng(0)
_X = _G.uniform(0.5, 1.5, (32, 12)).astype(np.float32)
_Y = _G.uniform(0.5, 1.5, (32, 12)).astype(np.float32)
_MIN = np.finfo(np.float32).min


class ScanTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_tensor_tensor_scan(self, reverse):
        result = on_chip(
            lambda dst, a, b: nisa.tensor_tensor_scan(
                dst, a, b, 2.0, nl.multiply, nl.subtract, reverse1=reverse
            ),
            [_X, _Y],
            (32, 12),
        )
        state = np.full(32, 2.0)
        for i in range(12):
            product = _X[:, i].astype(np.float64) * state
            state = _Y[:, i] - product if reverse else product - _Y[:, i]
            np.testing.assert_allclose(result[:, i], state, rtol=1e-4, atol=1e-4)

    def test_cumulative_sum_over_two_instructions(self):
        def instruction(dst, x):
            nisa.tensor_scalar_cumulative(dst[:, 0:6], x[:, 0:6], nl.multiply, nl.add, 2.0)
            nisa.tensor_scalar_cumulative(
                dst[:, 6:12],
                x[:, 6:12],
                nl.multiply,
                nl.add,
                2.0,
                reduce_cmd=nisa.reduce_cmd.reduce,
            )

        result = on_chip(instruction, [_X], (32, 12))
        np.testing.assert_allclose(result, np.cumsum(2 * _X.astype(np.float64), 1), rtol=1e-5)

    def test_cumulative_maximum_from_a_loaded_value(self):
        result = on_chip(
            lambda dst, x: nisa.tensor_scalar_cumulative(
                dst,
                x,
                nl.add,
                nl.maximum,
                0.0,
                imm1=1.2,
                reduce_cmd=nisa.reduce_cmd.load_reduce,
            ),
            [_X],
            (32, 12),
        )
        expected = np.maximum(np.maximum.accumulate(_X, axis=1), np.float32(1.2))
        np.testing.assert_array_equal(result, expected)


class ReduceTest(parameterized.TestCase):
    @parameterized.parameters(
        (nl.add, np.sum), (nl.multiply, np.prod), (nl.max, np.max), (nl.min, np.min)
    )
    def test_tensor_scalar_reduce(self, op, expected):
        def instruction(dst, x):
            scratch = nl.ndarray(x.shape, dtype=nl.float32)
            nisa.tensor_scalar_reduce(scratch, x, nl.multiply, 2.0, op, dst)

        result = on_chip(instruction, [_X], (32, 1))
        np.testing.assert_allclose(
            result[:, 0], expected(2 * _X.astype(np.float64), axis=1), rtol=1e-5
        )

    def test_range_select(self):
        low = _G.integers(0, 6, (32, 1)).astype(np.float32)
        high = low + 4

        def kernel(x, low, high):
            t, a, b = nl.load(x), nl.load(low), nl.load(high)
            dst = nl.ndarray(x.shape, dtype=nl.float32)
            top = nl.ndarray((32, 1), dtype=nl.float32)
            nisa.range_select(
                dst, t, nl.greater_equal, nl.less, a, b, reduce_res=top, range_start=0
            )
            out = nl.ndarray((32, 13), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out[:, 0:12], dst)
            nisa.dma_copy(out[:, 12:13], top)
            return out

        result = harness.run(kernel, _X, low, high).outputs[0]
        index = np.arange(12)[None]
        expected = np.where((index >= low) & (index < high), _X, _MIN)
        largest = expected.max(axis=1)
        np.testing.assert_array_equal(result[:, :12], expected)
        np.testing.assert_array_equal(result[:, 12], largest)

    @parameterized.parameters(False, True)
    def test_select_reduce(self, reverse):
        predicate = _G.integers(0, 2, (32, 12)).astype(np.uint8)

        def instruction(dst, p, x):
            top = nl.ndarray((32, 1), dtype=nl.float32)
            nisa.select_reduce(
                dst[:, 0:12],
                p,
                x,
                -3.0,
                reduce_res=top,
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
                reverse_pred=reverse,
            )
            nisa.tensor_copy(dst[:, 12:13], top)

        result = on_chip(instruction, [predicate, _X], (32, 13))
        expected = np.where((predicate != 0) != reverse, _X, np.float32(-3))
        np.testing.assert_array_equal(result[:, :12], expected)
        np.testing.assert_array_equal(result[:, 12], expected.max(axis=1))

    def test_exponential(self):
        def instruction(dst, x):
            total = nl.ndarray((32, 1), dtype=nl.float32)
            nisa.exponential(
                dst[:, 0:12],
                x,
                max_value=1.5,
                reduce_res=total,
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
            )
            nisa.tensor_copy(dst[:, 12:13], total)

        result = on_chip(instruction, [_X], (32, 13), target="trn3")
        expected = np.exp(_X.astype(np.float64) - 1.5)
        np.testing.assert_allclose(result[:, :12], expected, rtol=1e-5)
        np.testing.assert_allclose(result[:, 12], expected.sum(axis=1), rtol=1e-5)


_REDUCE = nisa.reduce_cmd.reduce
_RESET_REDUCE = nisa.reduce_cmd.reset_reduce


def _select(command, partitions=4):
    ones = tile(partitions, 4)
    nisa.select_reduce(ones, tile(partitions, 4, dtype="uint8"), ones, 0.0, reduce_cmd=command)


class RegisterTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("select_reduce", lambda: _select(_REDUCE)),
        (
            "tensor_scalar_reduce",
            lambda: nisa.tensor_scalar_reduce(
                tile(4, 4), tile(4, 4), nl.add, 0.0, nl.add, reduce_cmd=_REDUCE
            ),
        ),
        (
            "tensor_scalar_cumulative",
            lambda: nisa.tensor_scalar_cumulative(
                tile(4, 4), tile(4, 4), nl.add, nl.add, 0.0, reduce_cmd=_REDUCE
            ),
        ),
        (
            "range_select",
            lambda: nisa.range_select(
                tile(4, 4),
                tile(4, 4),
                nl.less,
                nl.less,
                tile(4, 1),
                tile(4, 1),
                reduce_cmd=_REDUCE,
            ),
        ),
        ("exponential", lambda: nisa.exponential(tile(4, 4), tile(4, 4), reduce_cmd=_REDUCE)),
    )
    def test_registers_are_set_before_they_are_read(self, use):
        message = "reads 4 of 4 reduction registers of the Vector Engine"
        with self.assertRaisesRegex(simulator.UninitializedReadError, message):
            harness.run(use, target="trn3")

        def after_reset():
            _select(_RESET_REDUCE)
            use()

        harness.run(after_reset, target="trn3")

    @parameterized.named_parameters(
        ("select_reduce", lambda: _select(nisa.reduce_cmd.idle)),
        ("exponential", lambda: nisa.exponential(tile(4, 4), tile(4, 4))),
    )
    def test_idle_leaves_registers_undefined(self, idle):
        def body():
            _select(_RESET_REDUCE, 8)
            idle()
            _select(_REDUCE, 8)

        with self.assertRaisesRegex(
            simulator.UninitializedReadError,
            "reads 4 of 8 reduction registers .* left undefined by reduce_cmd idle, the first in "
            "partition 0",
        ):
            harness.run(body, target="trn3")

    @parameterized.parameters(("report", ["uninitialized"]), ("ignore", []))
    def test_options(self, option, findings):
        result = harness.run(lambda: _select(_REDUCE), uninitialized=option)
        self.assertEqual([f.kind for f in result.findings], findings)


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "scan_inputs_not_both_in_psum",
            lambda: nisa.tensor_tensor_scan(
                tile(4, 4), psum(4, 4), psum(4, 4), 0.0, nl.add, nl.add
            ),
            "data0 and data1 cannot both be in PSUM",
        ),
        (
            "scan_binary_op0",
            lambda: nisa.tensor_tensor_scan(
                tile(4, 4), tile(4, 4), tile(4, 4), 0.0, nl.abs, nl.add
            ),
            "op0 must be a binary operator, got abs",
        ),
        (
            "scan_binary_op1",
            lambda: nisa.tensor_tensor_scan(
                tile(4, 4), tile(4, 4), tile(4, 4), 0.0, nl.add, nl.square
            ),
            "op1 must be a binary operator, got square",
        ),
        (
            "scan_arithmetic_only",
            lambda: nisa.tensor_tensor_scan(
                tile(4, 4), tile(4, 4), tile(4, 4), 0.0, nl.bitwise_and, nl.add
            ),
            "bitvec operators are not supported here",
        ),
        (
            "cumulative_operator",
            lambda: nisa.tensor_scalar_cumulative(tile(4, 4), tile(4, 4), nl.add, nl.equal, 0.0),
            "op1 must be one of",
        ),
        (
            "cumulative_no_wide_integers",
            lambda: nisa.tensor_scalar_cumulative(
                tile(4, 4), tile(4, 4, dtype="int32"), nl.add, nl.add, 0.0
            ),
            "src must be of .*got int32",
        ),
        (
            "load_reduce_needs_a_value",
            lambda: nisa.tensor_scalar_reduce(
                tile(4, 4),
                tile(4, 4),
                nl.add,
                0.0,
                nl.add,
                reduce_cmd=nisa.reduce_cmd.load_reduce,
            ),
            "load_reduce needs an initial value",
        ),
        (
            "initial_value_needs_load_reduce",
            lambda: nisa.tensor_scalar_reduce(
                tile(4, 4), tile(4, 4), nl.add, 0.0, nl.add, reduce_init=1.0
            ),
            "reduce_init needs reduce_cmd load_reduce",
        ),
        (
            "unary_takes_no_operand",
            lambda: nisa.tensor_scalar_reduce(tile(4, 4), tile(4, 4), nl.abs, 5.0, nl.add),
            "operand0 must be None or 0 for the unary abs, got 5.0",
        ),
        (
            "no_reverse",
            lambda: nisa.tensor_scalar_reduce(
                tile(4, 4), tile(4, 4), nl.add, 0.0, nl.add, reverse0=True
            ),
            "reverse0 is not supported",
        ),
        (
            "range_select_fill",
            lambda: nisa.range_select(
                tile(4, 4),
                tile(4, 4),
                nl.less,
                nl.less,
                tile(4, 1),
                tile(4, 1),
                on_false_value=0.0,
            ),
            "on_false_value must be",
        ),
        (
            "range_select_comparison",
            lambda: nisa.range_select(
                tile(4, 4), tile(4, 4), nl.add, nl.less, tile(4, 1), tile(4, 1)
            ),
            "comp_op0 must be one of",
        ),
        (
            "range_select_bounds_float32",
            lambda: nisa.range_select(
                tile(4, 4),
                tile(4, 4),
                nl.less,
                nl.less,
                tile(4, 1, dtype="bfloat16"),
                tile(4, 1),
            ),
            "bound0 must be float32",
        ),
        (
            "range_select_needs_v3",
            lambda: nisa.range_select(
                tile(4, 4), tile(4, 4), nl.less, nl.less, tile(4, 1), tile(4, 1)
            ),
            "range_select needs NeuronCore-v3",
            "trn1",
        ),
        (
            "range_select_index_limit",
            lambda: nisa.range_select(
                tile(4, 4),
                tile(4, 4),
                nl.less,
                nl.less,
                tile(4, 1),
                tile(4, 1),
                range_start=1 << 24,
            ),
            r"within 2\^24",
        ),
        (
            "select_reduce_dtypes",
            lambda: nisa.select_reduce(
                tile(4, 4), tile(4, 4, dtype="uint8"), tile(4, 4, dtype="int32"), 0.0
            ),
            "on_true must not be",
        ),
        (
            "select_reduce_idle_has_no_result",
            lambda: nisa.select_reduce(
                tile(4, 4), tile(4, 4, dtype="uint8"), tile(4, 4), 0.0, reduce_res=tile(4, 1)
            ),
            "reduce_res needs a reduce_cmd other than idle",
        ),
        (
            "exponential_needs_v4",
            lambda: nisa.exponential(tile(4, 4), tile(4, 4)),
            "exponential needs NeuronCore-v4",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)
