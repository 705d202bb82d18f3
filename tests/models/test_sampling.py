"""Sampling against NumPy."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.models.sampling import Sampling, sample

DRAWS = 4000


@functools.partial(jax.jit, static_argnames="sampling")
def _draws(logits: jax.Array, seed: jax.Array, sampling: Sampling) -> jax.Array:
    """[DRAWS] tokens of one sequence's logits."""
    rows = jnp.broadcast_to(logits, (DRAWS, logits.shape[0]))
    return sample(rows, jax.random.key(seed), sampling)


def _distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities to draw from, token by token from the likeliest."""
    scaled = logits.astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    kept, total = np.zeros_like(probabilities), 0.0
    for token in np.argsort(-probabilities):
        if total >= sampling.top_p:
            break
        kept[token] = probabilities[token]
        total += probabilities[token]
    return kept / kept.sum()


class SampleTest(parameterized.TestCase):
    @hypothesis.settings(max_examples=30, deadline=None)
    @hypothesis.given(st.integers(0, 2**32 - 1))
    def test_greedy_takes_the_likeliest(self, seed: int) -> None:
        logits = np.random.default_rng(seed).standard_normal((3, 50)).astype(np.float32)
        tokens = sample(jnp.asarray(logits), jax.random.key(seed), Sampling())
        self.assertEqual(tokens.tolist(), logits.argmax(axis=-1).tolist())
        self.assertEqual(tokens.dtype, np.int32)

    @parameterized.product(temperature=(0.3, 1.0, 2.0), top_p=(0.2, 0.75, 1.0))
    def test_draws_follow_the_distribution(self, temperature: float, top_p: float) -> None:
        sampling = Sampling(temperature, top_p)
        for seed in range(5):
            logits = np.random.default_rng(seed).standard_normal(20).astype(np.float32) * 2
            expected = _distribution(logits, sampling)
            tokens = np.asarray(_draws(jnp.asarray(logits), seed, sampling))
            drawn = np.bincount(tokens, minlength=20) / DRAWS
            self.assertTrue((expected[tokens] > 0).all())
            # Six standard deviations of a count of DRAWS.
            deviation = np.sqrt(expected * (1 - expected) / DRAWS)
            np.testing.assert_array_less(np.abs(drawn - expected), 6 * deviation + 1e-9)

    def test_a_tiny_nucleus_is_greedy(self) -> None:
        logits = np.random.default_rng(0).standard_normal(20).astype(np.float32)
        tokens = _draws(jnp.asarray(logits), 1, Sampling(1.0, 1e-6))
        self.assertEqual(set(tokens.tolist()), {int(logits.argmax())})

    @parameterized.product(
        temperature=(5e-324, 1e-45, 1e-38, 1.2e-38, 1e-36, 1e-20), top_p=(0.5, 1.0)
    )
    def test_a_tiny_temperature_is_greedy(self, temperature: float, top_p: float) -> None:
        logits = np.random.default_rng(0).standard_normal(20).astype(np.float32) * 100
        tokens = _draws(jnp.asarray(logits), 1, Sampling(temperature, top_p))
        self.assertEqual(set(tokens.tolist()), {int(logits.argmax())})

    def test_a_huge_temperature_draws_evenly(self) -> None:
        logits = np.random.default_rng(0).standard_normal(20).astype(np.float32)
        tokens = _draws(jnp.asarray(logits), 1, Sampling(1e300))
        self.assertEqual(set(tokens.tolist()), set(range(20)))

    def test_sequences_draw_independently(self) -> None:
        tokens = sample(jnp.zeros((64, 1000)), jax.random.key(3), Sampling(1.0))
        self.assertGreater(len(set(tokens.tolist())), 40)

    @parameterized.parameters(
        (-0.1, 1.0, "temperature: expected a finite number >= 0, got -0.1"),
        (float("nan"), 1.0, "temperature"),
        (float("inf"), 1.0, "temperature"),
        (1.0, 0.0, "top_p: expected 0 < top_p <= 1, got 0.0"),
        (1.0, 1.5, "top_p"),
        (1.0, float("nan"), "top_p"),
    )
    def test_ranges(self, temperature: float, top_p: float, message: str) -> None:
        with self.assertRaisesRegex(ValueError, message):
            Sampling(temperature, top_p)


if __name__ == "__main__":
    absltest.main()
