"""Dtypes and conversions, against ml_dtypes, NumPy and the definitions of the formats."""

import ml_dtypes
import numpy as np
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg.simulator.memory import dtypes


class InfoTest(parameterized.TestCase):
    @parameterized.parameters(
        ("float32", "float32"),
        (np.float16, "float16"),
        (np.dtype(np.int8), "int8"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (ml_dtypes.float8_e4m3, "float8_e4m3"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
        (ml_dtypes.float8_e5m2, "float8_e5m2"),
        ("float8e4", "float8_e4m3"),
        (np.bool_, "bool"),
        (np.int64, "int32"),
    )
    def test_spellings(self, dtype, name):
        self.assertEqual(dtypes.info(dtype).name, name)

    @parameterized.parameters("float8_e4m3", "float8_e4m3fn", "float8_e5m2")
    def test_largest_values(self, name):
        # IEEE-like e4m3 ends at 240, the OCP one at 448.
        expected = {"float8_e4m3": 240.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
        values = dtypes.to_float32(np.arange(256, dtype=np.uint8).view(dtypes.info(name).storage))
        self.assertEqual(np.max(values[np.isfinite(values)]), expected[name])

    def test_unknown(self):
        with self.assertRaisesRegex(TypeError, "'float7' is not an NKI dtype"):
            dtypes.info("float7")


class ConversionTest(parameterized.TestCase):
    @parameterized.parameters("bfloat16", "float16", "float8_e4m3", "float8_e4m3fn", "float8_e5m2")
    def test_to_float32_is_exact_for_every_pattern(self, name):
        info = dtypes.info(name)
        patterns = np.arange(1 << (8 * info.itemsize), dtype=np.uint32).astype(info.bits)
        values = patterns.view(info.storage)
        np.testing.assert_array_equal(dtypes.to_float32(values), values.astype(np.float32))

    @given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
    @settings(deadline=None)
    def test_tfloat32_rounds_to_ten_bits(self, values):
        x = np.array(values, np.float32)
        rounded = dtypes.round_to(x, dtypes.info("tfloat32"))
        finite = np.isfinite(rounded)
        self.assertFalse((rounded[finite].view(np.uint32) & 0x1FFF).any())
        wide = x[finite].astype(np.float64)
        normal = np.abs(wide) >= 2.0**-126
        error = np.abs(rounded[finite].astype(np.float64) - wide)[normal]
        self.assertTrue((error <= np.abs(wide[normal]) * 2.0**-11).all())

    @given(st.lists(st.floats(width=32), min_size=1))
    @settings(deadline=None)
    def test_integers_round_to_even_and_saturate(self, values):
        x = np.array(values, np.float32)
        expected = [
            0 if np.isnan(v) else int(min(max(np.rint(np.float64(v)), -128), 127)) for v in x
        ]
        np.testing.assert_array_equal(dtypes.round_to(x, dtypes.info("int8")), expected)

    def test_integers_saturate_from_wider_ones(self):
        x = np.array([-1, 300, 7], np.int64)
        np.testing.assert_array_equal(dtypes.round_to(x, dtypes.info("uint8")), [0, 255, 7])
