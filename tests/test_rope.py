"""RoPE tables against the definition, and against transformers' own for Llama 3's scaling."""

from __future__ import annotations

import math

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg import rope


class FrequenciesTest(parameterized.TestCase):
    @parameterized.parameters((2, 10000.0), (64, 10000.0), (128, 500000.0))
    def test_definition(self, d: int, theta: float) -> None:
        expected = [1 / theta ** (2 * i / d) for i in range(d // 2)]
        np.testing.assert_allclose(rope.rope_frequencies(d, theta), expected, rtol=1e-14)

    @parameterized.parameters(
        (128, 500000.0, 8.0, 1.0, 4.0, 8192),
        (64, 500000.0, 32.0, 1.0, 4.0, 8192),
        (64, 10000.0, 4.0, 2.0, 8.0, 1024),
    )
    @pytest.mark.oracle
    def test_llama3_as_in_transformers(
        self, d: int, theta: float, factor: float, low: float, high: float, original: int
    ) -> None:
        transformers = pytest.importorskip("transformers")
        utils = pytest.importorskip("transformers.modeling_rope_utils")
        config = transformers.LlamaConfig(
            hidden_size=d,
            num_attention_heads=1,
            head_dim=d,
            max_position_embeddings=131072,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            },
        )
        expected, attention_factor = utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        self.assertEqual(attention_factor, 1.0)
        scaling = rope.Llama3Scaling(factor, low, high, original)
        actual = rope.rope_frequencies(d, theta, scaling)
        np.testing.assert_allclose(actual, expected.numpy(), rtol=2e-6)

    def test_llama3_ends(self) -> None:
        """Short wavelengths stay, long ones are stretched by the factor."""
        plain = rope.rope_frequencies(128, 500000.0)
        scaled = rope.rope_frequencies(128, 500000.0, rope.Llama3Scaling(8.0, 1.0, 4.0, 8192))
        short, long = 2 * math.pi / plain < 8192 / 4, 2 * math.pi / plain > 8192
        self.assertTrue(short.any())
        self.assertTrue(long.any())
        np.testing.assert_array_equal(scaled[short], plain[short])
        np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-14)
        between = ~short & ~long
        self.assertTrue(
            ((scaled < plain) & (scaled > plain / 8))[between].all(), "interpolated ones"
        )

    @parameterized.parameters(0, -2, 3)
    def test_bad_size(self, d: int) -> None:
        with self.assertRaisesRegex(ValueError, f"d_head: .*even.*got {d}"):
            rope.rope_frequencies(d)


@pytest.mark.thorough
class TablesTest(parameterized.TestCase):
    @hypothesis.settings(max_examples=30)
    @hypothesis.given(
        positions=st.lists(
            st.lists(st.integers(0, 4000), min_size=2, max_size=2), min_size=1, max_size=4
        ),
        half=st.sampled_from((1, 2, 5, 16)),
    )
    def test_cosines_and_sines(self, positions: list[list[int]], half: int) -> None:
        cos, sin = rope.rope_tables(jnp.asarray(positions), 2 * half, theta=100.0)
        self.assertEqual(cos.shape, (half, len(positions), 2))
        self.assertEqual(cos.dtype, jnp.float32)
        # Reading an element of a JAX array is a program of its own.
        cos, sin = np.asarray(cos), np.asarray(sin)
        for i in range(half):
            for b, row in enumerate(positions):
                for s, position in enumerate(row):
                    angle = position / 100.0 ** (i / half)
                    # The angle is rounded to f32: half a unit in its last place.
                    slack = 1e-6 + angle * 2**-23
                    self.assertAlmostEqual(cos[i, b, s], math.cos(angle), delta=slack)
                    self.assertAlmostEqual(sin[i, b, s], math.sin(angle), delta=slack)

    def test_dtype(self) -> None:
        for table in rope.rope_tables(np.array([[1]]), 4, dtype=jnp.bfloat16):
            self.assertEqual(table.dtype, jnp.bfloat16)

    def test_frequencies_of_a_checkpoint(self) -> None:
        cos, sin = rope.tables_of_frequencies(np.array([[3]]), np.array([0.5, 0.25]))
        np.testing.assert_allclose(cos[:, 0, 0], np.cos([1.5, 0.75]), rtol=1e-6)
        np.testing.assert_allclose(sin[:, 0, 0], np.sin([1.5, 0.75]), rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
