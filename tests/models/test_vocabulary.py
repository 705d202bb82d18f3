"""Embedding and output head, against plain indexing and products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.bits import as_bits
from jax_tkg.models.vocabulary import Vocabulary

H, V = 128, 300
TOKENS = np.array([[0, 299, 5], [7, 7, 128]], np.int32)


def _head(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((H, V)).astype(dtype)


@pytest.mark.thorough
class VocabularyTest(parameterized.TestCase):
    @parameterized.product(
        dtype=("float32", "bfloat16", "float16"), bits=(False, True), tied=(False, True)
    )
    def test_embedding(self, dtype: str, bits: bool, tied: bool) -> None:
        head = _head(dtype)
        rows = head.T if tied else np.random.default_rng(1).standard_normal((V, H)).astype(dtype)
        embedding = None if tied else jnp.asarray(rows)
        vocabulary = Vocabulary(as_bits(head) if bits else jnp.asarray(head), embedding)
        got = jax.jit(Vocabulary.embed)(vocabulary, TOKENS)
        self.assertEqual(got.dtype, head.dtype)
        np.testing.assert_array_equal(got, rows[TOKENS])

    @parameterized.product(
        dtype=("float32", "bfloat16"), bits=(False, True), platform=("cpu", None), B=(1, 2, 9)
    )
    @pytest.mark.extended_except("0", "4", "8", "9", "14", "15", "19", "23")
    def test_logits(self, dtype: str, bits: bool, platform: str | None, B: int) -> None:
        head = _head(dtype)
        hidden = np.random.default_rng(2).standard_normal((B, 1, H)).astype(dtype)
        vocabulary = Vocabulary(as_bits(head) if bits else jnp.asarray(head), None)
        got = jax.jit(Vocabulary.logits, static_argnums=2)(vocabulary, hidden, platform)
        self.assertEqual(got.dtype, jnp.float32)
        want = hidden.astype(np.float64) @ head.astype(np.float64)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
