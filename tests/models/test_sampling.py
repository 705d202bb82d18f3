"""Sampling against NumPy."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.models.sampling import (
    Sampling,
    Scores,
    filtered,
    likeliest_token,
    sample,
    sample_candidates,
    seed_keys,
)

DRAWS = 4000


@functools.partial(jax.jit, static_argnames="sampling")
def _draws(logits: jax.Array, seed: jax.Array, sampling: Sampling) -> jax.Array:
    """[DRAWS] tokens of one sequence's logits."""
    rows = jnp.broadcast_to(logits, (DRAWS, logits.shape[0]))
    return sample(rows, jax.random.key(seed), sampling)


def _distribution(
    logits: np.ndarray, sampling: Sampling, seen: np.ndarray | None = None
) -> np.ndarray:
    """The probabilities to draw from, token by token from the likeliest."""
    scaled = logits.astype(np.float64)
    for token in np.flatnonzero(seen) if seen is not None else ():
        penalty = sampling.repetition_penalty
        scaled[token] *= penalty if scaled[token] < 0 else 1 / penalty
    scaled /= sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    order = np.argsort(-probabilities)
    if sampling.top_k:
        probabilities[order[sampling.top_k :]] = 0
    probabilities /= probabilities.sum()
    kept, total = np.zeros_like(probabilities), 0.0
    for token in order:
        if total >= sampling.top_p or probabilities[token] < sampling.min_p * probabilities.max():
            break
        kept[token] = probabilities[token]
        total += probabilities[token]
    return kept / kept.sum()


@st.composite
def _samplings(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(st.sampled_from((0.3, 1.0, 2.0))),
        top_p=draw(st.sampled_from((0.2, 0.75, 1.0))),
        top_k=draw(st.sampled_from((0, 1, 5, 20, 100))),
        min_p=draw(st.sampled_from((0.0, 0.05, 0.5, 1.0))),
        repetition_penalty=draw(st.sampled_from((1.0, 1.3, 0.8))),
    )


def _drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [3, 20], and which tokens were seen."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((3, 20)).astype(np.float32) * 2, draw.random((3, 20)) < 0.4


class LikeliestTokenTest(parameterized.TestCase):
    @parameterized.parameters(1, 33, 1024, 1025)
    def test_as_argmax(self, size: int) -> None:
        """Of equal logits the first, NaN above all others, and of rows without a finite one."""
        rng = np.random.default_rng(size)
        logits = rng.integers(-3, 3, (4, 7, size)).astype(np.float32)
        logits[1, rng.random((7, size)) < 0.02] = np.nan
        logits[2, rng.random((7, size)) < 0.02] = np.inf
        logits[3] = -np.inf
        tokens = jax.jit(likeliest_token)(logits)
        self.assertEqual(tokens.dtype, np.int32)
        np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))


@pytest.mark.thorough
class SampleTest(parameterized.TestCase):
    @hypothesis.settings(max_examples=30, deadline=None)
    @hypothesis.given(st.integers(0, 2**32 - 1))
    def test_greedy_takes_the_likeliest(self, seed: int) -> None:
        logits = np.random.default_rng(seed).standard_normal((3, 50)).astype(np.float32)
        tokens = sample(jnp.asarray(logits), jax.random.key(seed), Sampling())
        self.assertEqual(tokens.tolist(), logits.argmax(axis=-1).tolist())
        self.assertEqual(tokens.dtype, np.int32)

    @hypothesis.settings(max_examples=150, deadline=None)
    @hypothesis.given(_samplings(), st.integers(0, 2**32 - 1))
    def test_what_is_drawn_from(self, sampling: Sampling, seed: int) -> None:
        logits, seen = _drawn(seed)
        given = filtered(jnp.asarray(logits), sampling, jnp.asarray(seen))
        for row, one, before in zip(jax.nn.softmax(given), logits, seen, strict=True):
            np.testing.assert_allclose(row, _distribution(one, sampling, before), atol=1e-5)

    @pytest.mark.oracle
    def test_as_transformers(self) -> None:
        """Its processors, in the order in which its `generate` applies them."""
        import torch
        from transformers.generation import logits_process as theirs

        for seed in range(30):
            draw = np.random.default_rng(seed)
            logits, seen = _drawn(seed)
            # Every sequence has as many tokens before; which ones are repeated does not count.
            tokens = np.stack([draw.choice(20, 8) for _ in range(3)])
            seen[:] = False
            np.put_along_axis(seen, tokens, True, axis=1)
            sampling = Sampling(
                *(0.7, draw.choice((0.5, 0.9)), int(draw.integers(1, 20))),
                *(draw.choice((0.05, 0.3)), draw.choice((0.8, 1.2))),
            )
            scores = torch.tensor(logits)
            for process in (
                theirs.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)),
                theirs.TemperatureLogitsWarper(sampling.temperature),
                theirs.TopKLogitsWarper(sampling.top_k),
                theirs.TopPLogitsWarper(float(sampling.top_p)),
                theirs.MinPLogitsWarper(float(sampling.min_p)),
            ):
                scores = process(torch.tensor(tokens), scores)
            given = filtered(jnp.asarray(logits), sampling, jnp.asarray(seen))
            np.testing.assert_allclose(jax.nn.softmax(given), scores.softmax(-1), atol=1e-5)

    def test_top_k_of_equal_logits_is_the_lowest_ids(self) -> None:
        logits = jnp.asarray([[1.0, 2.0, 1.0, 3.0, 1.0, 1.0]])
        given = filtered(logits, Sampling(1.0, top_k=4))
        self.assertEqual(np.isfinite(given[0]).tolist(), [True, True, True, True, False, False])

    def test_candidates_are_enough(self) -> None:
        """The same draws from the likeliest tokens as from all, ties and a key of all included."""

        @functools.partial(jax.jit, static_argnames="sampling")
        def run(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
            left = filtered(logits, sampling)
            if sampling.greedy:
                return jnp.argmax(left, axis=-1)
            draw = jax.random.categorical
            return jax.vmap(draw)(key, left) if key.ndim else draw(key, left)

        few = jax.jit(sample_candidates, static_argnames=("sampling", "vocabulary_size"))
        rng = np.random.default_rng(0)
        # Half of them integers, with many ties.
        logits = rng.normal(0, 2, (200, 50)).astype(np.float32)
        logits[100:] = np.round(logits[100:])
        keys = jax.random.split(jax.random.key(1), 200)
        for sampling in (
            Sampling(),
            Sampling(1.0, top_k=1),
            Sampling(0.7, top_k=7),
            Sampling(2.0, 0.8, top_k=20, min_p=0.05),
            Sampling(1e-30, 0.8, top_k=20),
            Sampling(1.0, 0.9, top_k=64),
        ):
            count = min(sampling.candidates, 50)
            scores = Scores(*jax.lax.top_k(logits, count))
            for key in (keys, keys[0]):
                got = few(scores, key, sampling=sampling, vocabulary_size=50)
                want = run(logits, key, sampling=sampling)
                np.testing.assert_array_equal(got, want, err_msg=str(sampling))

    @parameterized.parameters(
        (Sampling(), 1),
        (Sampling(top_k=5), 1),
        (Sampling(1.0, top_k=64), 64),
        (Sampling(1.0, top_k=65), None),
        (Sampling(1.0, 0.9), None),
        (Sampling(repetition_penalty=1.1), None),
        (Sampling(1.0, top_k=5, repetition_penalty=1.1), None),
    )
    def test_how_many_candidates_are_enough(self, sampling: Sampling, count: int | None) -> None:
        self.assertEqual(sampling.candidates, count)

    def test_greedy_counts_repetitions(self) -> None:
        logits = jnp.asarray([[1.0, 3.0, 2.0], [-3.0, -2.0, -2.5]])
        seen = jnp.asarray([[False, True, False], [False, True, False]])
        tokens = sample(logits, jax.random.key(0), Sampling(repetition_penalty=2.0), seen)
        self.assertEqual(tokens.tolist(), [2, 2])

    def test_keys_of_their_own(self) -> None:
        """A sequence draws the same whatever stands beside it."""
        logits, sampling = jnp.asarray(_drawn(0)[0]), Sampling(2.0)
        keys = jax.random.split(jax.random.key(5), 3)
        both = sample(logits, keys, sampling).tolist()
        alone = [sample(logits[i : i + 1], keys[i : i + 1], sampling).item() for i in range(3)]
        self.assertEqual(both, alone)

    @parameterized.parameters(
        Sampling(0.3, 0.75), Sampling(2.0), Sampling(1.0, 0.9, top_k=6), Sampling(1.0, min_p=0.1)
    )
    @pytest.mark.extended_except("1", "3")
    def test_draws_follow_the_distribution(self, sampling: Sampling) -> None:
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

    def test_a_tiny_top_p_leaves_the_likeliest(self) -> None:
        tokens = _draws(jnp.asarray([0.1, 3.0, 0.2]), 1, Sampling(1.0, 1e-60))
        np.testing.assert_array_equal(tokens, 1)

    @parameterized.product(
        temperature=(5e-324, 1e-45, 1e-38, 1.2e-38, 1e-36, 1e-20), top_p=(0.5, 1.0)
    )
    @pytest.mark.extended_except("0", "3", "6", "9")
    def test_a_tiny_temperature_is_greedy(self, temperature: float, top_p: float) -> None:
        logits = np.random.default_rng(0).standard_normal(20).astype(np.float32) * 100
        tokens = _draws(jnp.asarray(logits), 1, Sampling(temperature, top_p))
        self.assertEqual(set(tokens.tolist()), {int(logits.argmax())})

    def test_a_huge_temperature_draws_evenly(self) -> None:
        logits = np.random.default_rng(0).standard_normal(20).astype(np.float32)
        tokens = _draws(jnp.asarray(logits), 1, Sampling(1e300))
        self.assertEqual(set(tokens.tolist()), set(range(20)))

    @parameterized.parameters(1e-300, 1e-45, 1e-31, 1e31, 1e300)
    def test_penalties_beyond_float32(self, penalty: float) -> None:
        """A logit of 0, which is seen, among them."""
        logits = np.float32([[3, 2, 0, -1, 5], [-3, -2, 0, -1, -5], [0, 0, -1, -2, -3]])
        seen = np.array([[True, True, True, True, False]] * 3)
        sampling = Sampling(1.0, repetition_penalty=penalty)
        given = filtered(jnp.asarray(logits), sampling, jnp.asarray(seen))
        for row, one, before in zip(jax.nn.softmax(given), logits, seen, strict=True):
            np.testing.assert_allclose(row, _distribution(one, sampling, before), atol=1e-6)
        greedy = Sampling(repetition_penalty=penalty)
        tokens = sample(jnp.asarray(logits), jax.random.key(0), greedy, jnp.asarray(seen))
        exact = logits.astype(np.float64)
        exact[seen] = np.where(exact > 0, exact / penalty, exact * penalty)[seen]
        self.assertEqual(tokens.tolist(), exact.argmax(axis=1).tolist())

    @parameterized.parameters(
        Sampling(1.0, min_p=5e-324),
        Sampling(1e-30, top_p=1 - 2**-53),
        Sampling(1.0, top_p=5e-324, min_p=1.0),
        Sampling(1e300, top_k=3),
    )
    def test_infinite_logits(self, sampling: Sampling) -> None:
        """The infinite one is drawn, and the lowest ones never; evenly with the others if hot."""
        tokens = set(_draws(jnp.asarray([-jnp.inf, 2, jnp.inf, 1]), 1, sampling).tolist())
        self.assertEqual(tokens, {1, 2, 3} if sampling.temperature > 1 else {2})

    def test_top_p_below_one_stays_below_it(self) -> None:
        for top_p in (1 - 2**-53, 1 - 2**-25, 0.9999999):
            self.assertLess(np.float32(Sampling(1.0, top_p).nucleus), 1)
        self.assertEqual(Sampling(1.0, 1.0).nucleus, 1)

    def test_sequences_draw_independently(self) -> None:
        tokens = sample(jnp.zeros((64, 1000)), jax.random.key(3), Sampling(1.0))
        self.assertGreater(len(set(tokens.tolist())), 40)

    @parameterized.parameters(
        ("temperature", -0.1, "temperature: expected a finite number >= 0, got -0.1"),
        ("temperature", float("nan"), "temperature"),
        ("temperature", float("inf"), "temperature"),
        ("top_p", 0.0, "top_p: expected 0 < top_p <= 1, got 0.0"),
        ("top_p", 1.5, "top_p"),
        ("top_p", float("nan"), "top_p"),
        ("top_k", -1, "top_k: expected a whole number >= 0, got -1"),
        ("min_p", 1.5, "min_p: expected 0 <= min_p <= 1, got 1.5"),
        ("min_p", float("nan"), "min_p"),
        ("repetition_penalty", 0.0, "repetition_penalty: expected a finite number > 0, got 0.0"),
        ("repetition_penalty", float("inf"), "repetition_penalty"),
    )
    def test_ranges(self, option: str, value: float, message: str) -> None:
        with self.assertRaisesRegex(ValueError, message):
            Sampling(**{option: value})

    @parameterized.parameters("temperature", "top_p", "min_p", "repetition_penalty")
    def test_numbers(self, option: str) -> None:
        """Scalars of any kind are floats of Python, so that options stay static under jit."""
        for number in (1, np.float32(1), jnp.float32(1)):
            sampling = Sampling(**{option: number})
            self.assertIs(type(getattr(sampling, option)), float)
            self.assertEqual(hash(sampling), hash(Sampling(**{option: 1.0})))
        for other in ("1", None, True, [1.0], np.ones(2)):
            with self.assertRaisesRegex(TypeError, f"^{option}: expected a number, got "):
                Sampling(**{option: other})
        with self.assertRaisesRegex(ValueError, f"^{option}: expected"):
            Sampling(**{option: 10**400})

    @parameterized.parameters(0, 3)
    def test_keys(self, top_k: int) -> None:
        logits, sampling = jnp.asarray(np.random.default_rng(0).random((2, 9))), Sampling(1.0)
        sampling = dataclasses.replace(sampling, top_k=top_k)
        want = sample(logits, jax.random.key(7), sampling)
        np.testing.assert_array_equal(sample(logits, jax.random.PRNGKey(7), sampling), want)
        keys = jax.random.split(jax.random.key(7))
        want = sample(logits, keys, sampling)
        np.testing.assert_array_equal(sample(logits, jax.random.key_data(keys), sampling), want)
        with self.assertRaisesRegex(ValueError, "^key: expected .* each of 2 sequences, got shape"):
            sample(logits, jax.random.split(keys[0], 3), sampling)
        with self.assertRaisesRegex(TypeError, "^key: expected PRNG keys, .*, got int"):
            sample(logits, 7, sampling)  # type: ignore[arg-type]

    def test_a_penalty_asks_for_the_tokens_so_far(self) -> None:
        sampling = Sampling(repetition_penalty=2.0)
        with self.assertRaisesRegex(
            TypeError, "^seen: expected .* repetition_penalty = 2.0, got N"
        ):
            sample(jnp.zeros((1, 4)), jax.random.key(0), sampling)

    def test_integers(self) -> None:
        self.assertIs(type(Sampling(top_k=np.int64(5)).top_k), int)
        with self.assertRaisesRegex(TypeError, "top_k: expected an integer, got 2.5"):
            Sampling(1.0, top_k=2.5)  # type: ignore[arg-type]
        keys = jax.random.key_data(seed_keys(np.asarray([5, 2**63], np.uint64)))
        self.assertEqual(keys.tolist(), [[0, 5], [2**31, 0]])
        self.assertEqual(jax.random.key_data(seed_keys([np.int32(5)])).tolist(), [[0, 5]])
        for seed in (-1, 2**64):
            with self.assertRaisesRegex(ValueError, r"seeds\[1\]: expected 0 <= seed < 2\*\*64"):
                seed_keys([0, seed])
        with self.assertRaisesRegex(TypeError, r"seeds\[0\]: expected an integer, got 1.0"):
            seed_keys([1.0])  # type: ignore[list-item]


if __name__ == "__main__":
    absltest.main()
