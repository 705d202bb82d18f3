"""Microscaled formats, by the definition of the scale and by dequantizing with NumPy."""

import ml_dtypes
import numpy as np
from absl.testing import parameterized

from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.isa import microscaling
from tests.simulator import harness
from tests.simulator.harness import empty, tile

_G = np.random.default_rng(0)
_FORMATS = {
    "float8_e4m3fn_x4": (ml_dtypes.float8_e4m3fn, 8, 2.0**-4),
    "float8_e5m2_x4": (ml_dtypes.float8_e5m2, 15, 2.0**-3),
}


def _quantize(x, dtype):
    """Data as float8, and scale codes per group, by the instruction."""
    partitions, elements = x.shape

    def kernel(src):
        t = nl.load(src)
        data = nl.ndarray((partitions, elements // 4), dtype=dtype)
        scale = nl.ndarray((partitions, elements // 4), dtype=nl.uint8)
        nisa.memset(scale, 0)
        nisa.quantize_mx(data, t, scale)
        out = nl.ndarray((partitions, elements), dtype=nl.uint8, buffer=nl.shared_hbm)
        codes = nl.ndarray((partitions, elements // 4), dtype=nl.uint8, buffer=nl.shared_hbm)
        nisa.dma_copy(out, data.view(nl.uint8))
        nisa.dma_copy(codes, scale)
        return out, codes

    out, codes = harness.run(kernel, x, target="trn3").outputs[0]
    return out.view(_FORMATS[dtype][0]), codes


def _dequantize(data, codes, rows):
    factors = 2.0 ** (codes[rows].astype(np.float64) - 127)
    return data.astype(np.float64) * factors.repeat(8, axis=0).repeat(4, axis=1)


class QuantizeTest(parameterized.TestCase):
    @parameterized.product(dtype=list(_FORMATS), partitions=[32, 128])
    def test_values_and_the_place_of_scales(self, dtype, partitions):
        x = _G.normal(size=(partitions, 16)).astype(ml_dtypes.bfloat16)
        data, codes = _quantize(x, dtype)
        # Each quadrant of 32 partitions keeps its four scales in its own first four.
        groups = range(partitions // 8)
        rows = [32 * (i // 4) + i % 4 if partitions > 32 else i for i in groups]
        error = np.abs(_dequantize(data, codes, rows) - x.astype(np.float64))
        largest = np.abs(x.astype(np.float64)).reshape(-1, 8, 4, 4).max(axis=(1, 3))
        bound = (largest * _FORMATS[dtype][2]).repeat(8, axis=0).repeat(4, axis=1)
        self.assertTrue((error <= bound).all())
        others = np.delete(codes, rows, axis=0)
        self.assertFalse(others.any())

    @parameterized.parameters(*_FORMATS)
    def test_the_documented_scale(self, dtype):
        x = np.zeros((32, 8), np.float32)
        x[3, 1] = 5.0
        data, codes = _quantize(x.astype(ml_dtypes.bfloat16), dtype)
        # floor(log2 5) = 2; a group of zeros has 2^-127, code 0.
        self.assertEqual(int(codes[0, 0]), 2 - (_FORMATS[dtype][1] - 1) + 127)
        self.assertEqual(int(codes[0, 1]), 0)
        self.assertEqual(float(data[3, 1]), 5.0 * 2.0 ** (_FORMATS[dtype][1] - 3))


class MatmulTest(parameterized.TestCase):
    @parameterized.product(dtype=list(_FORMATS), partitions=[32, 128])
    def test_product_of_quantized_operands(self, dtype, partitions):
        left = _G.normal(size=(partitions, 64)).astype(ml_dtypes.bfloat16)
        right = _G.normal(size=(partitions, 40)).astype(ml_dtypes.bfloat16)

        def kernel(a, b):
            operands = []
            for source in (a, b):
                width = source.shape[1] // 4
                data = nl.ndarray((partitions, width), dtype=dtype)
                scale = nl.ndarray((partitions, width), dtype=nl.float8_e8m0fnu)
                nisa.quantize_mx(data, nl.load(source), scale)
                operands.append((data, scale))
            (s, s_scale), (m, m_scale) = operands
            sums = nl.ndarray((16, 10), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul_mx(sums, s, m, s_scale, m_scale)
            nisa.nc_matmul_mx(sums, s, m, s_scale, m_scale)
            out = nl.ndarray((16, 10), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, nl.copy(sums))
            return out

        result = harness.run(kernel, left, right, target="trn3").outputs[0]
        rows = microscaling.scale_rows(partitions)
        s = _dequantize(*_quantize(left, dtype), rows).reshape(partitions, 16, 4)
        m = _dequantize(*_quantize(right, dtype), rows).reshape(partitions, 10, 4)
        expected = 2 * np.einsum("kiq,kjq->ij", s, m)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)

    def test_four_bit_values(self):
        # Each 16-bit element holds four values of 4 bits, the first in the lowest bits.
        codes = _G.integers(0, 16, (32, 2, 4))
        packed = (codes << (4 * np.arange(4))).sum(axis=-1).astype(np.uint16)
        values = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)

        def kernel(x):
            t = nl.load(x).view(nl.float4_e2m1fn_x4)
            scale = tile(4, 2, dtype="uint8", value=128)
            sums = nl.ndarray((2, 2), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul_mx(sums, t, t, scale, scale)
            out = nl.ndarray((2, 2), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, nl.copy(sums))
            return out

        result = harness.run(kernel, packed, target="trn3").outputs[0]
        np.testing.assert_allclose(result, 4 * np.einsum("kiq,kjq->ij", values, values))


def _packed(*shape, dtype="float8_e4m3fn_x4"):
    return tile(*shape, dtype=dtype, value=0)


def _scale(*shape):
    return tile(*shape, dtype="uint8")


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "quantize_needs_v4",
            lambda: nisa.quantize_mx(_packed(32, 4), tile(32, 16, dtype="bfloat16"), _scale(4, 4)),
            "quantize_mx needs NeuronCore-v4",
            "trn2",
        ),
        (
            "quantize_source_dtype",
            lambda: nisa.quantize_mx(_packed(32, 4), tile(32, 16), _scale(4, 4)),
            "src must be of float16 or bfloat16, got float32",
        ),
        (
            "quantize_partitions",
            lambda: nisa.quantize_mx(_packed(16, 4), tile(16, 16, dtype="bfloat16"), _scale(4, 4)),
            "src must have a multiple of 32 partitions up to 128, got 16",
        ),
        (
            "quantize_elements",
            lambda: nisa.quantize_mx(_packed(32, 4), tile(32, 15, dtype="bfloat16"), _scale(4, 4)),
            "multiple of 4 elements per partition, got 15",
        ),
        (
            "quantize_output",
            lambda: nisa.quantize_mx(_packed(32, 8), tile(32, 16, dtype="bfloat16"), _scale(4, 4)),
            r"dst must have shape \[32, 4\]",
        ),
        (
            "quantize_scales",
            lambda: nisa.quantize_mx(
                _packed(128, 4), tile(128, 16, dtype="bfloat16"), _scale(16, 4)
            ),
            "dst_scale must have at least 100 partitions of 4 elements",
        ),
        (
            "matmul_dtype",
            lambda: nisa.nc_matmul_mx(
                empty(4, 4), tile(32, 4), _packed(32, 4), _scale(4, 4), _scale(4, 4)
            ),
            "stationary must be of float8_e4m3fn_x4",
        ),
        (
            "matmul_even",
            lambda: nisa.nc_matmul_mx(
                empty(3, 4), _packed(32, 3), _packed(32, 4), _scale(4, 3), _scale(4, 4)
            ),
            "must be even and at most 128, got 3",
        ),
        (
            "matmul_scale_dtype",
            lambda: nisa.nc_matmul_mx(
                empty(4, 4), _packed(32, 4), _packed(32, 4), tile(4, 4), _scale(4, 4)
            ),
            "stationary_scale must be of float8_e8m0fnu or uint8",
        ),
        (
            "matmul_row_tiling_only",
            lambda: nisa.nc_matmul_mx(
                empty(4, 4),
                _packed(32, 4),
                _packed(32, 4),
                _scale(4, 4),
                _scale(4, 4),
                tile_position=(0, 0),
                tile_size=(32, 32),
            ),
            "only rows are tiled",
        ),
    )
    def test_limit(self, body, message, target="trn3"):
        self.check_rule(body, message, target)
