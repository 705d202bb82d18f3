"""Prompts are padded to few lengths."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.prefill import padded_prompt


class PaddedPromptTest(parameterized.TestCase):
    @parameterized.parameters((1, 128), (128, 128), (129, 256), (300, 320), (320, 320))
    def test_sizes(self, length: int, size: int) -> None:
        tokens = np.random.default_rng(length).integers(1, 1000, length).tolist()
        padded = padded_prompt(tokens, 320)
        self.assertEqual(padded.dtype, np.int32)
        self.assertEqual(padded.tolist(), tokens + [0] * (size - length))

    def test_too_long(self) -> None:
        with self.assertRaisesRegex(
            ValueError, r"^tokens: expected at most 320 \(the capacity\), got 321$"
        ):
            padded_prompt([1] * 321, 320)


if __name__ == "__main__":
    absltest.main()
