"""Decoding of float8 numbers from their bits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.cpu import float8


class DecodeTest(parameterized.TestCase):
    @parameterized.parameters(*float8.FACTORS)
    def test_every_number(self, dtype: str) -> None:
        """All 256 of them, subnormal, infinite and not-a-number ones too, exactly."""
        patterns = np.arange(256, dtype=np.uint8)
        got = float8.decode(jnp.asarray(patterns), dtype) * float8.FACTORS[dtype]
        np.testing.assert_array_equal(got, patterns.view(dtype).astype(np.float32))
        self.assertEqual(got.dtype, jnp.float32)


if __name__ == "__main__":
    absltest.main()
