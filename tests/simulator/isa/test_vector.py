"""Vector Engine: values judged by NumPy, and the documented limits."""

import ml_dtypes
import numpy as np
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import on_chip, psum, tile

_G = np.random.default_rng(0)
_X = _G.uniform(0.5, 2.0, (128, 24)).astype(np.float32)
_Y = _G.uniform(0.5, 2.0, (128, 24)).astype(np.float32)
_SIGNED = _G.normal(size=(128, 24)).astype(np.float32)


class TensorTensorTest(parameterized.TestCase):
    @parameterized.parameters(
        (nl.add, np.add),
        (nl.subtract, np.subtract),
        (nl.multiply, np.multiply),
        (nl.maximum, np.maximum),
        (nl.minimum, np.minimum),
        (nl.less, np.less),
        (nl.less_equal, np.less_equal),
        (nl.greater, np.greater),
        (nl.greater_equal, np.greater_equal),
        (nl.equal, np.equal),
        (nl.not_equal, np.not_equal),
        (nl.power, np.power),
    )
    def test_float32(self, op, expected):
        result = on_chip(
            lambda dst, x, y: nisa.tensor_tensor(dst, x, y, op), [_X, _SIGNED], (128, 24)
        )
        np.testing.assert_allclose(result, expected(_X, _SIGNED).astype(np.float32), rtol=1e-6)

    def test_order_of_a_non_commutative_operator(self):
        result = on_chip(
            lambda dst, x, y: nisa.tensor_tensor(dst, x, y, nl.subtract),
            [np.array([[7.0]], np.float32), np.array([[2.0]], np.float32)],
            (1, 1),
        )
        np.testing.assert_array_equal(result, [[5.0]])

    def test_computes_in_float32_and_rounds_once(self):
        # In bfloat16 1 + 2^-9 rounds to 1; the sum of three must not lose the small ones twice.
        small = np.array([[2.0**-9]], ml_dtypes.bfloat16)
        one = np.array([[1.0]], ml_dtypes.bfloat16)
        result = on_chip(
            lambda dst, x, y: nisa.tensor_tensor(dst, x, y, nl.add), [one, small], (1, 1)
        )
        np.testing.assert_array_equal(result, [[1 + 2.0**-9]])

    def test_wide_integers_are_exact(self):
        x = np.array([[2**31 - 5, 16777217]], np.int32)
        y = np.array([[4, 2]], np.int32)
        result = on_chip(
            lambda dst, a, b: nisa.tensor_tensor(dst, a, b, nl.add), [x, y], (1, 2), "int32"
        )
        np.testing.assert_array_equal(result, x + y)

    def test_wide_integers_on_the_vector_engine_go_through_float32(self):
        x = np.array([[16777217]], np.int32)
        y = np.array([[0]], np.int32)
        result = on_chip(
            lambda dst, a, b: nisa.tensor_tensor(dst, a, b, nl.add, engine=nisa.engine.vector),
            [x, y],
            (1, 1),
            "int32",
        )
        np.testing.assert_array_equal(result, [[16777216]])

    @parameterized.parameters(
        (nl.bitwise_and, 0b1000), (nl.bitwise_or, 0b1110), (nl.bitwise_xor, 0b0110)
    )
    def test_bitwise(self, op, expected):
        x, y = np.array([[0b1100]], np.uint8), np.array([[0b1010]], np.uint8)
        result = on_chip(
            lambda dst, a, b: nisa.tensor_tensor(dst, a, b, op), [x, y], (1, 1), "uint8"
        )
        np.testing.assert_array_equal(result, [[expected]])

    @parameterized.parameters(
        (nl.bitwise_and, [[0xFFFFFFFF, 0x80000000]]),
        (nl.bitwise_or, [[0xFFFFFFFF, 0xFFFFFFFF]]),
        (nl.bitwise_xor, [[0, 0x7FFFFFFF]]),
        (nl.right_shift, [[0, 0]]),
    )
    def test_bitwise_operands_of_either_sign_are_bit_patterns(self, op, expected):
        signed = np.array([[-1, -(2**31)]], np.int32)
        ones = np.array([[0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
        for x, y in ((signed, ones), (signed.view(np.uint32), ones.view(np.int32))):
            for dtype in ("int32", "uint32"):
                result = on_chip(
                    lambda dst, a, b: nisa.tensor_tensor(dst, a, b, op), [x, y], (1, 2), dtype
                )
                np.testing.assert_array_equal(result.view(np.uint32), expected)

    @parameterized.parameters((nl.logical_and, [1, 0, 0]), (nl.logical_or, [1, 1, 0]))
    def test_logical(self, op, expected):
        x, y = np.array([[2.0, 3.0, 0.0]], np.float32), np.array([[1.0, 0.0, 0.0]], np.float32)
        result = on_chip(lambda dst, a, b: nisa.tensor_tensor(dst, a, b, op), [x, y], (1, 3))
        np.testing.assert_array_equal(result, [expected])


class TensorScalarTest(parameterized.TestCase):
    def test_two_operators(self):
        result = on_chip(
            lambda dst, x: nisa.tensor_scalar(dst, x, nl.multiply, 2.0, op1=nl.add, operand1=3.0),
            [_SIGNED],
            (128, 24),
        )
        np.testing.assert_allclose(result, _SIGNED * np.float32(2) + np.float32(3), rtol=1e-6)

    @parameterized.parameters((False, False), (True, False), (False, True), (True, True))
    def test_reversed_operands(self, reverse0, reverse1):
        result = on_chip(
            lambda dst, x: nisa.tensor_scalar(
                dst, x, nl.subtract, 10.0, reverse0, nl.subtract, 100.0, reverse1
            ),
            [np.array([[1.0]], np.float32)],
            (1, 1),
        )
        first = 10.0 - 1.0 if reverse0 else 1.0 - 10.0
        np.testing.assert_array_equal(result, [[100.0 - first if reverse1 else first - 100.0]])

    def test_a_column_per_partition(self):
        column = _G.normal(size=(128, 1)).astype(np.float32)
        result = on_chip(
            lambda dst, x, c: nisa.tensor_scalar(dst, x, nl.multiply, c), [_X, column], (128, 24)
        )
        np.testing.assert_array_equal(result, _X * column)

    def test_unary_operator(self):
        result = on_chip(
            lambda dst, x: nisa.tensor_scalar(dst, x, nl.abs, None), [_SIGNED], (128, 24)
        )
        np.testing.assert_array_equal(result, np.abs(_SIGNED))

    @parameterized.parameters("int8", "uint8")
    def test_bitwise_results_keep_their_bits(self, dtype):
        x = np.array([[0x81, 0x7F]], np.uint8)
        for source in (x, x.view(np.int8)):
            result = on_chip(
                lambda dst, t: nisa.tensor_scalar(
                    dst, t, nl.invert, None, op1=nl.bitwise_or, operand1=0x80
                ),
                [source],
                (1, 2),
                dtype,
            )
            np.testing.assert_array_equal(result.view(np.uint8), ~x | 0x80)

    def test_shifts(self):
        x = np.array([[-8, 8]], np.int32)
        result = on_chip(
            lambda dst, t: nisa.tensor_scalar(
                dst, t, nl.right_shift, 1, op1=nl.left_shift, operand1=2
            ),
            [x],
            (1, 2),
            "int32",
        )
        expected = ((x.view(np.uint32) >> 1) << 2).view(np.int32)
        np.testing.assert_array_equal(result, expected)

    @parameterized.parameters(
        ("int32", [2.5, 3.5, -2.5, 1e12, -1e12], [2, 4, -2, 2**31 - 1, -(2**31)]),
        ("uint8", [2.5, 300.0, -4.0], [2, 255, 0]),
        ("int8", [-129.0, 127.5], [-128, 127]),
    )
    def test_floats_round_to_even_and_saturate_in_integers(self, dtype, values, expected):
        x = np.array([values], np.float32)
        result = on_chip(
            lambda dst, t: nisa.tensor_scalar(dst, t, nl.add, 0.0), [x], x.shape, dtype
        )
        np.testing.assert_array_equal(result, [expected])

    def test_scalar_tensor_tensor(self):
        result = on_chip(
            lambda dst, x, y: nisa.scalar_tensor_tensor(
                dst, x, nl.multiply, 2.0, nl.subtract, y, reverse1=True
            ),
            [_X, _Y],
            (128, 24),
        )
        np.testing.assert_allclose(result, _Y - 2 * _X, rtol=1e-5, atol=1e-6)

    def test_scalar_tensor_tensor_with_a_column_of_any_dtype(self):
        column = np.arange(128).astype(ml_dtypes.bfloat16)[:, None]
        result = on_chip(
            lambda dst, x, c, y: nisa.scalar_tensor_tensor(dst, x, nl.multiply, c, nl.add, y),
            [_X, column, _Y],
            (128, 24),
        )
        expected = _X * column.astype(np.float32) + _Y
        np.testing.assert_allclose(result, expected, rtol=1e-6)


class CopyTest(parameterized.TestCase):
    def test_equal_dtypes_are_copied_bit_by_bit(self):
        x = np.array([[0x7FC00001, 0xFFC00123, 1]], np.uint32).view(np.float32)
        result = on_chip(nisa.tensor_copy, [x], (1, 3))
        np.testing.assert_array_equal(result.view(np.uint32), x.view(np.uint32))

    def test_conversion_goes_through_float32(self):
        x = np.array([[16777217]], np.int32)
        result = on_chip(nisa.tensor_copy, [x], (1, 1), "uint32")
        np.testing.assert_array_equal(result, [[16777216]])

    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
    @settings(max_examples=30, deadline=None)
    def test_rounding_to_bfloat16(self, values):
        x = np.array([values], np.float32)
        result = on_chip(nisa.tensor_copy, [x], x.shape, "bfloat16")
        np.testing.assert_array_equal(
            result.view(np.uint16), x.astype(ml_dtypes.bfloat16).view(np.uint16)
        )

    @parameterized.parameters(
        ("float8_e4m3", [240.0, 256.0, 0.3], [240.0, np.inf, 0.3125]),
        ("float8_e4m3fn", [448.0, 500.0, 0.3], [448.0, np.nan, 0.3125]),
        ("float8_e5m2", [57344.0, 1e6, 0.3], [57344.0, np.inf, 0.3125]),
        ("tfloat32", [1 + 2.0**-10, 1 + 2.0**-11, 3.0], [1 + 2.0**-10, 1.0, 3.0]),
    )
    def test_narrow_floats(self, dtype, values, expected):
        result = on_chip(nisa.tensor_copy, [np.array([values], np.float32)], (1, 3), dtype)
        np.testing.assert_array_equal(result.astype(np.float32), [expected])

    def test_of_elements_written_to_one_place_the_last_stays(self):
        x = np.array([[1.0, 2.0, 3.0]], np.float32)
        result = on_chip(lambda dst, t: nisa.tensor_copy(dst.ap([[1, 1], [0, 3]]), t), [x], (1, 1))
        np.testing.assert_array_equal(result, [[3.0]])

    def test_float8_overflow_is_reported(self):
        def body():
            nisa.tensor_copy(tile(1, 3, dtype="float8_e4m3"), tile(1, 3, value=241))
            nisa.tensor_copy(tile(1, 3, dtype="float8_e4m3"), tile(1, 3, value=300))
            nisa.tensor_copy(tile(1, 3, dtype="float8_e4m3"), tile(1, 3, value=np.inf))

        (finding,) = harness.run(body).findings
        self.assertEqual(finding.kind, "overflow")
        self.assertRegex(finding.message, "tensor_copy: 3 values written to dst .* such as 300")

    def test_memset(self):
        for dtype, value in (("float32", -np.inf), ("bfloat16", 1.5), ("uint8", 7), ("int32", -3)):
            result = on_chip(lambda dst, v=value: nisa.memset(dst, v), [], (4, 5), dtype)
            np.testing.assert_array_equal(result.astype(np.float64), value)

    @parameterized.parameters(False, True)
    def test_predicated_copy(self, reverse):
        predicate = _G.integers(0, 2, (128, 24)).astype(np.uint8)
        result = on_chip(
            lambda dst, x, p: nisa.tensor_copy_predicated(dst, x, p, reverse_pred=reverse),
            [_X, predicate],
            (128, 24),
            fill=-1,
        )
        chosen = (predicate != 0) != reverse
        np.testing.assert_array_equal(result, np.where(chosen, _X, -1))

    def test_predicated_copy_of_a_number(self):
        predicate = np.array([[0, 1]], np.uint32)
        result = on_chip(
            lambda dst, p: nisa.tensor_copy_predicated(dst, 9.0, p), [predicate], (1, 2), fill=4
        )
        np.testing.assert_array_equal(result, [[4.0, 9.0]])

    @parameterized.parameters(2**24 + 1, np.int32(2**24 + 1), -(2**31))
    def test_predicated_copy_of_an_integer_is_exact(self, value):
        result = on_chip(
            lambda dst, p: nisa.tensor_copy_predicated(dst, value, p),
            [np.array([[0, 1]], np.uint32)],
            (1, 2),
            "int32",
            fill=4,
        )
        np.testing.assert_array_equal(result, [[4, value]])

    def test_predicated_copies_write_what_they_choose(self):
        predicate = _G.integers(0, 2, (128, 24)).astype(np.uint8)

        def both(dst, x, y, p):
            nisa.tensor_copy_predicated(dst, x, p)
            nisa.tensor_copy_predicated(dst, y, p, reverse_pred=True)

        result = on_chip(both, [_X, _Y, predicate], (128, 24))
        np.testing.assert_array_equal(result, np.where(predicate != 0, _X, _Y))
        with self.assertRaisesRegex(
            simulator.UninitializedReadError, rf"reads {(predicate == 0).sum()} of 3072 elements"
        ):
            on_chip(nisa.tensor_copy_predicated, [_X, predicate], (128, 24))


class ReduceTest(parameterized.TestCase):
    @parameterized.parameters(
        (nl.add, np.sum, 3), (nl.maximum, np.max, (2, 3)), (nl.minimum, np.min, (1, 2, 3))
    )
    def test_reduces_the_last_dimensions(self, op, expected, axis):
        x = _G.normal(size=(16, 2, 3, 4)).astype(np.float32)
        axes = (axis,) if isinstance(axis, int) else axis
        wanted = expected(x.astype(np.float64), axis=axes).reshape(16, -1)
        result = on_chip(
            lambda dst, t: nisa.tensor_reduce(dst, op, t, axis), [x], (16, wanted.shape[1])
        )
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)

    @parameterized.parameters("int32", "uint32")
    def test_bitwise_results_keep_their_bits(self, dtype):
        x = np.array([[-(2**31), 1]], np.int32)
        result = on_chip(
            lambda dst, t: nisa.tensor_reduce(dst, nl.bitwise_or, t, 1), [x], (1, 1), dtype
        )
        np.testing.assert_array_equal(result.view(np.uint32), [[0x80000001]])

    def test_negate(self):
        result = on_chip(
            lambda dst, x: nisa.tensor_reduce(dst, nl.maximum, x, 1, negate=True), [_X], (128, 1)
        )
        np.testing.assert_array_equal(result, -_X.max(axis=1, keepdims=True))

    def test_reciprocal(self):
        result = on_chip(nisa.reciprocal, [_X], (128, 24))
        np.testing.assert_allclose(result, 1 / _X.astype(np.float64), rtol=1e-6)


class ShuffleTest(parameterized.TestCase):
    def test_mask_moves_partitions_within_each_quadrant(self):
        x = np.arange(128, dtype=np.float32)[:, None]
        mask = [(i + 1) % 32 for i in range(32)]
        result = on_chip(lambda dst, s: nisa.nc_stream_shuffle(dst, s, mask), [x], (128, 1))
        quadrant = np.arange(128) // 32 * 32
        np.testing.assert_array_equal(result[:, 0], quadrant + (np.arange(128) + 1) % 32)

    def test_255_leaves_a_partition(self):
        x = np.arange(32, dtype=np.float32)[:, None]
        mask = [255] * 31 + [0]
        result = on_chip(lambda dst, s: nisa.nc_stream_shuffle(dst, s, mask), [x], (32, 1), fill=-5)
        np.testing.assert_array_equal(result[:, 0], [-5] * 31 + [0])

    def test_broadcast_of_one_partition(self):
        x = _G.normal(size=(1, 7)).astype(np.float32)
        result = on_chip(lambda dst, s: nisa.nc_stream_shuffle(dst, s, [0] * 32), [x], (32, 7))
        np.testing.assert_array_equal(result, np.repeat(x, 32, axis=0))


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "inputs_not_both_in_psum",
            lambda: nisa.tensor_tensor(tile(4, 4), psum(4, 4), psum(4, 4), nl.add),
            "data1 and data2 cannot both be in PSUM",
        ),
        (
            "same_partitions",
            lambda: nisa.tensor_tensor(tile(4, 4), tile(4, 4), tile(8, 4), nl.add),
            r"data2 must have as many partitions as data1 \(4\), got 8",
        ),
        (
            "same_elements",
            lambda: nisa.tensor_tensor(tile(4, 4), tile(4, 4), tile(4, 5), nl.add),
            r"data2 must have as many elements per partition as data1 \(4\), got 5",
        ),
        (
            "bitvec_needs_integers",
            lambda: nisa.tensor_tensor(tile(4, 4), tile(4, 4), tile(4, 4), nl.bitwise_and),
            "bitwise_and needs integers, but dst is float32",
        ),
        (
            "tensor_tensor_needs_a_binary_operator",
            lambda: nisa.tensor_tensor(tile(4, 4), tile(4, 4), tile(4, 4), nl.square),
            "op must be a binary operator, got square",
        ),
        (
            "absolute_maximum_needs_v4",
            lambda: nisa.tensor_tensor(tile(4, 4), tile(4, 4), tile(4, 4), nl.abs_max),
            "op=abs_max needs NeuronCore-v4",
        ),
        (
            "absolute_minimum_needs_v4",
            lambda: nisa.tensor_scalar(tile(4, 4), tile(4, 4), nl.abs_min, 1.0),
            "op0=abs_min needs NeuronCore-v4",
        ),
        (
            "unknown_operator",
            lambda: nisa.tensor_tensor(tile(4, 4), tile(4, 4), tile(4, 4), nl.softmax),
            "op=softmax is not an ALU operator",
        ),
        (
            "power_on_gpsimd_only",
            lambda: nisa.tensor_tensor(
                tile(4, 4), tile(4, 4), tile(4, 4), nl.power, engine=nisa.engine.vector
            ),
            "op=power runs on the GpSimd Engine only",
        ),
        (
            "power_not_in_psum",
            lambda: nisa.tensor_tensor(tile(4, 4), psum(4, 4), tile(4, 4), nl.power),
            "data1 is in PSUM, which the GpSimd Engine cannot access",
        ),
        (
            "operand_in_hbm",
            lambda: nisa.tensor_tensor(tile(4, 4), harness.hbm(4, 4), tile(4, 4), nl.add),
            "data1 must be a tensor in SBUF or PSUM",
        ),
        (
            "operators_of_one_kind",
            lambda: nisa.tensor_scalar(
                tile(4, 4, dtype="int32"),
                tile(4, 4, dtype="int32"),
                nl.bitwise_and,
                1,
                op1=nl.add,
                operand1=1,
            ),
            "must both be bitvec or both arithmetic",
        ),
        (
            "operand_must_be_float32",
            lambda: nisa.tensor_scalar(
                tile(4, 4), tile(4, 4), nl.add, tile(4, 1, dtype="bfloat16")
            ),
            "operand0 must be float32, got bfloat16",
        ),
        (
            "operand_must_be_a_column",
            lambda: nisa.tensor_scalar(tile(4, 4), tile(4, 4), nl.add, tile(4, 2)),
            r"operand0 must have shape \(4, 1\), got \[4, 2\]",
        ),
        (
            "unary_takes_no_operand",
            lambda: nisa.tensor_scalar(tile(4, 4), tile(4, 4), nl.abs, 2.0),
            "operand0 must be None or 0 for the unary abs",
        ),
        (
            "unary_bitvec_takes_no_operand",
            lambda: nisa.tensor_scalar(
                tile(4, 4, dtype="int8"), tile(4, 4, dtype="int8"), nl.invert, 3
            ),
            "operand0 must be None or 0 for the unary invert",
        ),
        (
            "bitvec_operand_is_given",
            lambda: nisa.tensor_scalar(
                tile(4, 4, dtype="int8"), tile(4, 4, dtype="int8"), nl.bitwise_or, None
            ),
            "operand0 of a bitvec operator must be an integer, got None",
        ),
        (
            "bitvec_on_vector_engine_only",
            lambda: nisa.tensor_scalar(
                tile(4, 4, dtype="int32"),
                tile(4, 4, dtype="int32"),
                nl.bitwise_and,
                1,
                engine=nisa.engine.gpsimd,
            ),
            "bitvec operators run on the Vector Engine only",
        ),
        (
            "scalar_engine_pairs",
            lambda: nisa.tensor_scalar(
                tile(4, 4), tile(4, 4), nl.subtract, 1.0, engine=nisa.engine.scalar
            ),
            "the Scalar Engine supports",
        ),
        (
            "operand1_without_op1",
            lambda: nisa.tensor_scalar(tile(4, 4), tile(4, 4), nl.add, 1.0, operand1=2.0),
            "operand1 is given without op1",
        ),
        (
            "gpsimd_copy_not_in_psum",
            lambda: nisa.tensor_copy(tile(4, 4), psum(4, 4), engine=nisa.engine.gpsimd),
            "src is in PSUM, which the GpSimd Engine cannot access",
        ),
        (
            "scalar_engine_copy_needs_v3",
            lambda: nisa.tensor_copy(tile(4, 4), tile(4, 4), engine=nisa.engine.scalar),
            "tensor_copy on the Scalar Engine needs NeuronCore-v3",
            "trn1",
        ),
        (
            "copy_elements",
            lambda: nisa.tensor_copy(tile(4, 4), tile(4, 5)),
            "dst must have as many elements per partition as src",
        ),
        (
            "memset_value_of_the_dtype",
            lambda: nisa.memset(tile(4, 4, dtype="int32"), 1.5),
            "value must be an integer that int32 holds, got 1.5",
        ),
        (
            "memset_infinity_in_integers",
            lambda: nisa.memset(tile(4, 4, dtype="int32"), float("inf")),
            "value must be an integer that int32 holds, got inf",
        ),
        (
            "memset_nan_in_integers",
            lambda: nisa.memset(tile(4, 4, dtype="int32"), float("nan")),
            "value must be an integer that int32 holds, got nan",
        ),
        (
            "memset_value_in_range",
            lambda: nisa.memset(tile(4, 4, dtype="uint8"), 256),
            "value must be an integer that uint8 holds, got 256",
        ),
        (
            "memset_packed",
            lambda: nisa.memset(nl.ndarray((4, 4), dtype=nl.float8_e4m3fn_x4, buffer=nl.sbuf), 1),
            "value must be 0 for the packed dtype",
        ),
        (
            "memset_engine",
            lambda: nisa.memset(tile(4, 4), 1, engine=nisa.engine.scalar),
            "engine must be one of",
        ),
        (
            "predicate_dtype",
            lambda: nisa.tensor_copy_predicated(tile(4, 4), tile(4, 4), tile(4, 4)),
            "predicate must be of uint8",
        ),
        (
            "predicated_dtypes_agree",
            lambda: nisa.tensor_copy_predicated(
                tile(4, 4), tile(4, 4, dtype="bfloat16"), tile(4, 4, dtype="uint8")
            ),
            "src must have the dtype of dst",
        ),
        (
            "predicated_source_is_a_number",
            lambda: nisa.tensor_copy_predicated(tile(4, 4), None, tile(4, 4, dtype="uint8")),
            "src must be a number or a tensor, got None",
        ),
        (
            "predicated_packed_dtype",
            lambda: nisa.tensor_copy_predicated(
                tile(4, 4, dtype="float8_e4m3fn_x4", value=0), 0.0, tile(4, 4, dtype="uint8")
            ),
            "src must be a tensor for the packed dtype",
        ),
        (
            "predicate_and_source_not_both_in_psum",
            lambda: nisa.tensor_copy_predicated(tile(4, 4), psum(4, 4), psum(4, 4, dtype="uint32")),
            "src and predicate cannot both be in PSUM",
        ),
        (
            "reduce_last_dimensions",
            lambda: nisa.tensor_reduce(tile(4, 3), nl.add, tile(4, 2, 3), 1),
            "axis must be the last contiguous free dimensions",
        ),
        (
            "reduce_not_the_partition",
            lambda: nisa.tensor_reduce(tile(1, 3), nl.add, tile(4, 3), (0, 1)),
            "axis must be the last contiguous free dimensions",
        ),
        (
            "reduce_output",
            lambda: nisa.tensor_reduce(tile(4, 3), nl.add, tile(4, 2, 3), 2),
            "dst must have 2 elements per partition",
        ),
        (
            "reduce_operator",
            lambda: nisa.tensor_reduce(tile(4, 1), nl.equal, tile(4, 3), 1),
            "op=equal is not a reduction operator",
        ),
        (
            "shuffle_mask_length",
            lambda: nisa.nc_stream_shuffle(tile(32, 4), tile(32, 4), [0] * 16),
            "shuffle_mask must have 32 entries, got 16",
        ),
        (
            "shuffle_mask_value",
            lambda: nisa.nc_stream_shuffle(tile(32, 4), tile(32, 4), [32] * 32),
            r"shuffle_mask\[0\] must be in 0..31 or 255, got 32",
        ),
        (
            "shuffle_dtype",
            lambda: nisa.nc_stream_shuffle(tile(32, 4), tile(32, 4, dtype="bfloat16"), [0] * 32),
            "dst must have the dtype of src",
        ),
        (
            "shuffle_elements",
            lambda: nisa.nc_stream_shuffle(tile(32, 4), tile(32, 5), [0] * 32),
            "as many elements per partition as src",
        ),
        (
            "start_partition_of_a_quadrant",
            lambda: nisa.memset(tile(128, 4)[16:32, :], 0),
            "with 16 partitions must start at partition 0 or 32 or 64 or 96, got 16",
        ),
        (
            "start_partition_of_a_half",
            lambda: nisa.memset(tile(128, 4)[32:96, :], 0),
            "with 64 partitions must start at partition 0 or 64, got 32",
        ),
        (
            "start_partition_of_more",
            lambda: nisa.memset(tile(128, 4)[32:128, :], 0),
            "with 96 partitions must start at partition 0, got 32",
        ),
        (
            "start_partition_by_address",
            lambda: nisa.memset(nl.ndarray((32, 4), nl.float32, nl.sbuf, address=(16, 0)), 0),
            "must start at partition",
        ),
        (
            "free_dimensions",
            lambda: nisa.memset(
                tile(1, 64)[:, 0:64:1]
                .reshape((1, 2, 2, 2, 2, 2, 2))[:, 0:1, :, :, :, :, :]
                .permute((0, 1, 6, 5, 4, 3, 2)),
                0,
            ),
            "has 5 free dimensions after merging contiguous ones",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)
