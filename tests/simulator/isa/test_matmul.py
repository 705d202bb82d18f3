"""Tensor Engine: values judged by NumPy in float64, and every documented limit."""

import ml_dtypes
import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import empty, psum, tile

_G = np.random.default_rng(0)


def _matmul(stationary, moving, shape, target="trn2", **options):
    return harness.on_chip(
        lambda dst, s, m: nisa.nc_matmul(dst, s, m, **options),
        [stationary, moving],
        shape,
        buffer=nl.psum,
        target=target,
    )


class MatmulTest(parameterized.TestCase):
    @parameterized.parameters(np.float32, ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3)
    def test_product(self, dtype):
        s = _G.normal(size=(128, 64)).astype(dtype)
        m = _G.normal(size=(128, 512)).astype(dtype)
        expected = s.astype(np.float64).T @ m.astype(np.float64)
        np.testing.assert_allclose(_matmul(s, m, (64, 512)), expected, rtol=1e-5, atol=1e-4)

    def test_float8_with_bfloat16(self):
        s = np.array([[2.0], [4.0]]).astype(ml_dtypes.float8_e4m3)
        m = np.array([[1.5], [0.25]]).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(_matmul(s, m, (1, 1)), [[4.0]])

    def test_accumulation_of_the_documented_example(self):
        # Tiles K=512 into 4 and passes accumulate=(i > 0).
        left = _G.normal(size=(512, 64)).astype(np.float32)
        right = _G.normal(size=(512, 128)).astype(np.float32)

        def kernel(lhs, rhs):
            result = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.shared_hbm)
            sums = nl.ndarray((64, 128), dtype=nl.float32, buffer=nl.psum)
            for i in nl.static_range(4):
                rows = nl.ds(i * 128, 128)
                a, b = nl.load(lhs[rows, :]), nl.load(rhs[rows, :])
                nisa.nc_matmul(dst=sums, stationary=a, moving=b, accumulate=(i > 0))
            nisa.dma_copy(dst=result, src=nl.copy(sums))
            return result

        expected = left.astype(np.float64).T @ right
        np.testing.assert_allclose(
            harness.run(kernel, left, right).outputs[0], expected, rtol=1e-4, atol=1e-4
        )

    def test_accumulate_none_overwrites_first_and_then_adds_per_location(self):
        def instruction(dst, s, m):
            nisa.nc_matmul(dst[:, 0:1], s, m)
            nisa.nc_matmul(dst, s, nl.full((2, 2), 1.0, nl.float32))

        ones = np.ones((2, 1), np.float32)
        # Column 0 holds 2 + 2, column 1 only the second product.
        result = harness.on_chip(instruction, [ones, ones], (1, 2), buffer=nl.psum)
        np.testing.assert_array_equal(result, [[4.0, 2.0]])

    def test_one_element_that_no_matmul_wrote_last_is_found(self):
        def body():
            sums = psum(4, 8, value=10)
            nisa.nc_matmul(sums[:, 0:4], tile(4, 4), tile(4, 4), accumulate=False)
            nisa.nc_matmul(sums[:, 0:4], tile(4, 4), tile(4, 4))
            nisa.nc_matmul(sums, tile(4, 4), tile(4, 8))

        with self.assertRaisesRegex(
            simulator.NkiValidationError,
            "a part of dst .* was last written by another instruction than a matmul",
        ):
            harness.run(body)

    def test_a_half_that_another_instruction_overwrote_is_found(self):
        def body():
            sums = empty(1, 1)
            nisa.nc_matmul(sums, tile(4, 1), tile(4, 1))
            nisa.memset(sums.view(nl.bfloat16)[:, 0:1], 0)
            nisa.nc_matmul(sums, tile(4, 1), tile(4, 1))

        with self.assertRaisesRegex(simulator.NkiValidationError, "than a matmul"):
            harness.run(body)

    @parameterized.parameters((10, None, 1), (10, False, 0), (0, None, 0))
    def test_values_that_a_product_replaces_on_v4_are_reported(self, value, accumulate, findings):
        def body(x):
            sums = psum(1, 1, value=value)
            nisa.nc_matmul(sums, nl.load(x), nl.load(x), accumulate=accumulate)
            out = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, nl.copy(sums))
            return out

        result = harness.run(body, np.ones((4, 1), np.float32), target="trn3")
        np.testing.assert_array_equal(result.outputs[0], [[4.0]])
        self.assertEqual([f.kind for f in result.findings], ["accumulation"] * findings)

    def test_accumulate_false_overwrites(self):
        def instruction(dst, s, m):
            nisa.nc_matmul(dst, s, m)
            nisa.nc_matmul(dst, s, m, accumulate=False)

        ones = np.ones((3, 1), np.float32)
        result = harness.on_chip(instruction, [ones, ones], (1, 1), buffer=nl.psum)
        np.testing.assert_array_equal(result, [[3.0]])

    def test_a_new_tile_at_the_same_address_starts_over(self):
        def kernel(x):
            a = nl.load(x)
            out = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.shared_hbm)
            for _ in range(3):
                sums = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.psum, address=(0, 0))
                nisa.nc_matmul(sums, a, a)
                nisa.dma_copy(out, nl.copy(sums))
            return out

        result = harness.run(kernel, np.full((2, 1), 3, np.float32)).outputs[0]
        np.testing.assert_array_equal(result, [[18.0]])

    def test_double_row_contracts_over_both_rows(self):
        s = _G.integers(-4, 4, (128, 2, 4)).astype(ml_dtypes.float8_e4m3)
        m = _G.integers(-4, 4, (128, 2, 3)).astype(ml_dtypes.float8_e5m2)
        expected = np.einsum("krm,krn->mn", s.astype(np.float64), m.astype(np.float64))
        result = _matmul(s, m, (4, 3), perf_mode=nisa.matmul_perf_mode.double_row)
        np.testing.assert_array_equal(result, expected)

    def test_column_tiling_writes_the_partitions_of_the_column(self):
        def kernel(x):
            a = nl.load(x)
            sums = nl.ndarray((64, 1), dtype=nl.float32, buffer=nl.psum)
            for column in (0, 32):
                nisa.nc_matmul(
                    sums[column : column + 32],
                    a[:, column : column + 32],
                    a[:, 0:1],
                    tile_position=(0, column),
                    tile_size=(128, 32),
                )
            out = nl.ndarray((64, 1), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, nl.copy(sums))
            return out

        x = _G.normal(size=(128, 64)).astype(np.float32)
        expected = x.astype(np.float64).T @ x[:, :1]
        np.testing.assert_allclose(harness.run(kernel, x).outputs[0], expected, rtol=1e-4)

    def test_free_dimensions_of_operands_are_flattened(self):
        s = _G.normal(size=(16, 2, 3)).astype(np.float32)
        m = _G.normal(size=(16, 5, 4)).astype(np.float32)
        result = _matmul(s, m, (6, 5, 4))
        expected = s.reshape(16, 6).astype(np.float64).T @ m.reshape(16, 20)
        np.testing.assert_allclose(result, expected.reshape(6, 5, 4), rtol=1e-4, atol=1e-5)

    def test_transpose_mode_keeps_nan_in_its_place(self):
        s = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
        result = _matmul(s, np.eye(2, dtype=np.float32), (2, 2), is_transpose=True)
        np.testing.assert_array_equal(result, s.T)


class TransposeTest(parameterized.TestCase):
    @parameterized.parameters(np.float32, ml_dtypes.bfloat16, np.uint8)
    def test_tensor_engine(self, dtype):
        x = _G.integers(0, 99, (128, 64)).astype(dtype)
        result = harness.on_chip(
            nisa.nc_transpose, [x], (64, 128), np.dtype(dtype).name, buffer=nl.psum
        )
        np.testing.assert_array_equal(result, x.T)

    def test_vector_engine(self):
        x = _G.normal(size=(32, 8)).astype(np.float32)
        np.testing.assert_array_equal(harness.on_chip(nisa.nc_transpose, [x], (8, 32)), x.T)

    def test_free_axes_are_flattened(self):
        x = _G.normal(size=(16, 2, 3)).astype(np.float32)
        result = harness.on_chip(nisa.nc_transpose, [x], (6, 16), buffer=nl.psum)
        np.testing.assert_array_equal(result, x.reshape(16, 6).T)


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "stationary_in_sbuf",
            lambda: nisa.nc_matmul(empty(4, 4), psum(4, 4), tile(4, 4)),
            "nc_matmul: stationary must be in SBUF",
        ),
        (
            "moving_in_sbuf",
            lambda: nisa.nc_matmul(empty(4, 4), tile(4, 4), psum(4, 4)),
            "nc_matmul: moving must be in SBUF",
        ),
        (
            "dst_in_psum",
            lambda: nisa.nc_matmul(tile(4, 4), tile(4, 4), tile(4, 4)),
            "nc_matmul: dst must be in PSUM",
        ),
        (
            "stationary_free_size",
            lambda: nisa.nc_matmul(empty(128, 4), tile(4, 129), tile(4, 4)),
            "free size of stationary must be at most 128, got 129",
        ),
        (
            "moving_free_size",
            lambda: nisa.nc_matmul(empty(4, 513), tile(4, 4), tile(4, 513)),
            "free size of moving must be at most 512, got 513",
        ),
        (
            "same_contraction",
            lambda: nisa.nc_matmul(empty(4, 4), tile(8, 4), tile(4, 4)),
            "same number of partitions, got 8 and 4",
        ),
        (
            "dst_shape",
            lambda: nisa.nc_matmul(empty(4, 5), tile(8, 4), tile(8, 4)),
            r"dst must have 4 partitions .* of 4 elements",
        ),
        (
            "dst_float32",
            lambda: nisa.nc_matmul(empty(4, 4, dtype="bfloat16"), tile(4, 4), tile(4, 4)),
            "dst must be of float32, got bfloat16",
        ),
        (
            "no_integers",
            lambda: nisa.nc_matmul(empty(4, 4), tile(4, 4, dtype="int32"), tile(4, 4)),
            "stationary must be of .*, got int32",
        ),
        (
            "float32_only_with_float32",
            lambda: nisa.nc_matmul(empty(4, 4), tile(4, 4), tile(4, 4, dtype="bfloat16")),
            "the other must be too, got float32 and bfloat16",
        ),
        (
            "float8_e4m3fn_needs_v4",
            lambda: nisa.nc_matmul(
                empty(4, 4), tile(4, 4, dtype="float8_e4m3fn"), tile(4, 4, dtype="bfloat16")
            ),
            "stationary of float8_e4m3fn needs NeuronCore-v4",
        ),
        (
            "no_mixed_e4m3",
            lambda: nisa.nc_matmul(
                empty(4, 4), tile(4, 4, dtype="float8_e4m3fn"), tile(4, 4, dtype="float8_e4m3")
            ),
            "cannot be mixed",
            "trn3",
        ),
        (
            "double_row_needs_float8",
            lambda: nisa.nc_matmul(
                empty(4, 4),
                tile(4, 2, 4, dtype="bfloat16"),
                tile(4, 2, 4, dtype="bfloat16"),
                perf_mode=nisa.matmul_perf_mode.double_row,
            ),
            "stationary must be of float8",
        ),
        (
            "double_row_first_free_dim",
            lambda: nisa.nc_matmul(
                empty(4, 4),
                tile(4, 4, dtype="float8_e4m3"),
                tile(4, 2, 4, dtype="float8_e4m3"),
                perf_mode=nisa.matmul_perf_mode.double_row,
            ),
            "first free dimension of stationary must be 2",
        ),
        (
            "double_row_needs_v3",
            lambda: nisa.nc_matmul(
                empty(4, 4),
                tile(4, 2, 4, dtype="float8_e4m3"),
                tile(4, 2, 4, dtype="float8_e4m3"),
                perf_mode=nisa.matmul_perf_mode.double_row,
            ),
            "double_row needs NeuronCore-v3",
            "trn1",
        ),
        (
            "double_row_not_transposed",
            lambda: nisa.nc_matmul(
                empty(4, 4),
                tile(4, 2, 4, dtype="float8_e4m3"),
                tile(4, 2, 4, dtype="float8_e4m3"),
                is_transpose=True,
                perf_mode=nisa.matmul_perf_mode.double_row,
            ),
            "double_row cannot be combined with is_transpose",
        ),
        (
            "one_bank",
            lambda: nisa.nc_matmul(empty(4, 1024)[:, 256:768], tile(4, 4), tile(4, 512)),
            "within one PSUM bank of 2048 bytes, but spans bytes 1024..3072",
        ),
        (
            "tile_size_and_position_together",
            lambda: nisa.nc_matmul(empty(4, 4), tile(4, 4), tile(4, 4), tile_size=(128, 128)),
            "must both be set",
        ),
        (
            "tile_size_values",
            lambda: nisa.nc_matmul(
                empty(4, 4), tile(4, 4), tile(4, 4), tile_position=(0, 0), tile_size=(128, 48)
            ),
            r"tile_size column must be one of \(32, 64, 128\), got 48",
        ),
        (
            "row_tiles_of_32_need_v3",
            lambda: nisa.nc_matmul(
                empty(4, 4), tile(4, 4), tile(4, 4), tile_position=(0, 0), tile_size=(32, 128)
            ),
            r"tile_size row must be one of \(64, 128\), got 32",
            "trn1",
        ),
        (
            "tile_position_multiple",
            lambda: nisa.nc_matmul(
                empty(4, 4), tile(4, 4), tile(4, 4), tile_position=(0, 16), tile_size=(128, 32)
            ),
            "tile_position column must be a multiple of the tile size 32",
        ),
        (
            "stationary_fits_the_tile",
            lambda: nisa.nc_matmul(
                empty(64, 4), tile(4, 64), tile(4, 4), tile_position=(0, 0), tile_size=(128, 32)
            ),
            "stationary uses 64 columns, more than the tile's 32",
        ),
        (
            "accumulate_true_needs_a_start",
            lambda: nisa.nc_matmul(empty(4, 4), tile(4, 4), tile(4, 4), accumulate=True),
            "not wholly started by a matmul",
        ),
        (
            "no_accumulation_onto_memset",
            lambda: nisa.nc_matmul(psum(4, 4), tile(4, 4), tile(4, 4)),
            "last written by another instruction than a matmul",
        ),
        (
            "no_accumulation_true_onto_memset",
            lambda: nisa.nc_matmul(psum(4, 4), tile(4, 4), tile(4, 4), accumulate=True),
            "not wholly started by a matmul",
        ),
        (
            "transpose_mode_dtype",
            lambda: nisa.nc_matmul(
                empty(4, 4, dtype="int32"),
                tile(4, 4, dtype="bfloat16"),
                tile(4, 4, dtype="bfloat16"),
                is_transpose=True,
            ),
            "dst of a transpose must be of float32 or, as stationary, bfloat16, got int32",
        ),
        (
            "transpose_dtype",
            lambda: nisa.nc_transpose(empty(4, 4), tile(4, 4, dtype="bfloat16")),
            "nc_transpose: dst must have the dtype of data, bfloat16, got float32",
        ),
        (
            "transpose_shape",
            lambda: nisa.nc_transpose(empty(4, 8), tile(8, 8)),
            "dst must have 8 partitions of 8 elements",
        ),
        (
            "transpose_tensor_reads_sbuf",
            lambda: nisa.nc_transpose(empty(4, 4), psum(4, 4), engine=nisa.engine.tensor),
            "data must be in SBUF",
        ),
        (
            "transpose_tensor_writes_psum",
            lambda: nisa.nc_transpose(tile(4, 4), tile(4, 4), engine=nisa.engine.tensor),
            "dst must be in PSUM",
        ),
        (
            "transpose_vector_size",
            lambda: nisa.nc_transpose(tile(33, 4), tile(4, 33), engine=nisa.engine.vector),
            r"at most \[32, 32\]",
        ),
        (
            "transpose_engine",
            lambda: nisa.nc_transpose(empty(4, 4), tile(4, 4), engine=nisa.engine.scalar),
            "engine must be one of",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)

    def test_bfloat16_output_on_v4(self):
        def instruction(dst, s, m):
            nisa.nc_matmul(dst, s, m)

        ones = np.ones((4, 4), np.float32)
        result = harness.on_chip(
            instruction, [ones, ones], (4, 4), "bfloat16", buffer=nl.psum, target="trn3"
        )
        np.testing.assert_array_equal(result.astype(np.float32), 4)
