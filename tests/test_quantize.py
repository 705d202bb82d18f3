"""FP8 quantization."""

from __future__ import annotations

import hypothesis
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.quantize import dequantize_float8, quantize_float8

# Half a unit in the last place of the mantissa: 3, 3 and 2 bits of it.
ROUNDING = {"float8_e4m3": 2**-4, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}
LARGEST = {"float8_e4m3": 240, "float8_e4m3fn": 448, "float8_e5m2": 57344}


class QuantizeTest(parameterized.TestCase):
    @hypothesis.settings(max_examples=60)
    @hypothesis.given(
        dtype=st.sampled_from(tuple(ROUNDING)),
        seed=st.integers(0, 1 << 20),
        magnitude=st.floats(1e-6, 1e4),
        rows=st.sampled_from((1, 128)),
    )
    def test_error_is_that_of_rounding(
        self, dtype: str, seed: int, magnitude: float, rows: int
    ) -> None:
        rng = np.random.default_rng(seed)
        weight = (rng.standard_normal((16, 5)) * magnitude).astype(np.float32)
        weight[:, 3] = 0
        quantized, scale = quantize_float8(weight, dtype, rows)
        self.assertEqual(quantized.dtype, jnp.dtype(dtype))
        self.assertEqual(scale.shape, (rows, 5))
        self.assertEqual(scale.dtype, jnp.float32)
        np.testing.assert_array_equal(scale, np.tile(scale[:1], (rows, 1)))
        raw = np.asarray(quantized).astype(np.float64)
        self.assertEqual(np.abs(raw).max(), LARGEST[dtype])
        restored = raw * np.asarray(scale[0], np.float64)
        smallest = float(ml_dtypes.finfo(dtype).smallest_subnormal) * np.asarray(scale[0])
        allowed = np.abs(weight) * (ROUNDING[dtype] + 1e-6) + smallest
        self.assertTrue((np.abs(restored - weight) <= allowed).all())
        np.testing.assert_array_equal(restored[:, 3], 0)

    def test_dequantize(self) -> None:
        weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        quantized, scale = quantize_float8(weight)
        expected = np.asarray(quantized).astype(np.float32) * np.asarray(scale)[:1]
        np.testing.assert_array_equal(dequantize_float8(quantized, scale), expected)
        np.testing.assert_allclose(expected, weight, atol=0.1)

    def test_stacked_layers_have_their_own_scales(self) -> None:
        weight = np.random.default_rng(0).standard_normal((3, 8, 4)).astype(np.float32)
        weight *= np.array([1, 10, 100], np.float32)[:, None, None]
        quantized, scale = quantize_float8(weight, rows=1)
        self.assertEqual(scale.shape, (3, 1, 4))
        for layer in range(3):
            one, one_scale = quantize_float8(weight[layer], rows=1)
            np.testing.assert_array_equal(quantized[layer], one)
            np.testing.assert_array_equal(scale[layer], one_scale)
        restored = dequantize_float8(quantized, scale)
        np.testing.assert_allclose(restored, weight, atol=0.07 * np.abs(weight).max())

    @parameterized.product(dtype=tuple(ROUNDING), peak=(2e-38, 1e-37, 1e-36))
    def test_scales_are_normal_numbers(self, dtype: str, peak: float) -> None:
        """Columns whose scale would be flushed to 0: zeros stay, and the rest is rounded."""
        weight = np.zeros((4, 1), np.float32)
        weight[1] = peak
        quantized, scale = quantize_float8(weight, dtype, rows=1)
        self.assertGreaterEqual(float(scale[0, 0]), float(np.finfo(np.float32).tiny))
        restored = np.asarray(dequantize_float8(quantized, scale))
        np.testing.assert_allclose(restored, weight, rtol=ROUNDING[dtype] + 1e-6)

    def test_bad_dtype(self) -> None:
        with self.assertRaisesRegex(TypeError, "dtype: .*float8_e4m3.*got int8"):
            quantize_float8(np.ones((2, 2), np.float32), jnp.int8)

    def test_bad_rows(self) -> None:
        with self.assertRaisesRegex(ValueError, "rows: expected 1 or 128, got 2"):
            quantize_float8(np.ones((2, 2), np.float32), rows=2)


if __name__ == "__main__":
    absltest.main()
