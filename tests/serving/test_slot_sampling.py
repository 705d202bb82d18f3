"""Each slot's settings, against `sample` with these settings for one sequence."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jax_tkg.models.sampling import MOST_CANDIDATES, Sampling, Scores, sample, seed_keys
from jax_tkg.serving.slot_sampling import SettingsTable, Way, choose, choose_candidates

VOCABULARY = 60
SAMPLINGS = (
    Sampling(),
    Sampling(repetition_penalty=1.7),
    Sampling(temperature=0.7),
    Sampling(temperature=1e30, min_p=0.3),
    Sampling(temperature=2.0, top_k=5),
    Sampling(temperature=1.0, top_k=1000, top_p=0.6),
    Sampling(temperature=1.5, top_p=1e-60),
    Sampling(temperature=3.0, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=0.8),
    Sampling(temperature=1.0, min_p=5e-324, repetition_penalty=1e-300),
    Sampling(temperature=1e300, top_p=1 - 2**-53, repetition_penalty=1e300),
)

_alone = jax.jit(sample, static_argnames="sampling")
_choose = jax.jit(choose, static_argnames="way")


class ChooseTest(absltest.TestCase):
    def test_as_alone(self) -> None:
        """Forty slots for each of the settings."""
        count, rng = 40, np.random.default_rng(0)
        slots = count * len(SAMPLINGS)
        table = SettingsTable(slots)
        for slot in range(slots):
            table.put(slot, SAMPLINGS[slot // count])
        logits = rng.normal(0, 3, (slots, VOCABULARY)).astype(np.float32)
        # Every other row has many ties, but where the likeliest alone is expected.
        tied = [slot for slot in range(0, slots, 2) if SAMPLINGS[slot // count].top_p > 1e-30]
        logits[tied] = np.round(logits[tied])
        seen = rng.random(logits.shape) < 0.3
        keys = seed_keys(range(slots))
        got = np.asarray(_choose(logits, keys, table.settings, seen, way=Way.FILTERED))
        for index, sampling in enumerate(SAMPLINGS):
            rows = slice(index * count, (index + 1) * count)
            if sampling.top_p < 1e-30:
                # 0 in float32, which the likeliest one's share exceeds.
                expected = logits[rows].argmax(axis=1)
            else:
                expected = _alone(logits[rows], keys[rows], sampling=sampling, seen=seen[rows])
            np.testing.assert_array_equal(got[rows], expected, err_msg=str(sampling))

    def test_infinite_logits(self) -> None:
        """No temperature makes NaN of them, of which each would be the largest."""
        temperatures = (0.0, 1e-37, 1.0, 8e37, 9e37, 1e38, 3e38, 1e300)
        samplings = [Sampling(one, min_p=0.01, top_k=3) for one in temperatures]
        table = SettingsTable(len(temperatures))
        for slot in range(len(temperatures)):
            table.put(slot, samplings[slot])
        logits = np.tile(np.float32([-np.inf, 1, 3, 2, -np.inf]), (len(temperatures), 1))
        seen = np.zeros(logits.shape, np.bool_)
        scores = Scores(*jax.lax.top_k(logits, 5))
        few = jax.jit(choose_candidates, static_argnames="vocabulary_size")
        for seed in range(5):
            keys = seed_keys(range(seed, seed + len(temperatures)))
            want = np.concatenate(
                [
                    _alone(logits[:1], keys[slot : slot + 1], sampling=samplings[slot])
                    for slot in range(len(temperatures))
                ]
            )
            self.assertTrue(np.isfinite(logits[0][want]).all())
            for way in (Way.DRAWN, Way.FILTERED):
                got = _choose(logits, keys, table.settings, seen, way=way)
                np.testing.assert_array_equal(got, want)
            got = few(scores, keys, table.settings, vocabulary_size=5)
            np.testing.assert_array_equal(got, want)

    def test_candidates(self) -> None:
        """What all logits give, where the likeliest are enough."""
        samplings = (
            Sampling(),
            Sampling(0.7, top_k=1),
            Sampling(1.0, top_k=5),
            Sampling(3.0, top_k=MOST_CANDIDATES, top_p=0.9, min_p=0.02),
        )
        slots = 40 * len(samplings)
        table = SettingsTable(slots)
        for slot in range(slots):
            table.put(slot, samplings[slot // 40])
        logits = np.random.default_rng(2).normal(0, 3, (slots, 100)).astype(np.float32)
        logits[::2] = np.round(logits[::2])
        keys, seen = seed_keys(range(slots)), np.zeros(logits.shape, np.bool_)
        want = _choose(logits, keys, table.settings, seen, way=Way.FILTERED)
        scores = Scores(*jax.lax.top_k(logits, MOST_CANDIDATES))
        few = jax.jit(choose_candidates, static_argnames="vocabulary_size")
        got = few(scores, keys, table.settings, vocabulary_size=100)
        np.testing.assert_array_equal(got, want)
        one = few(Scores(*jax.lax.top_k(logits, 1)), keys, table.settings, vocabulary_size=100)
        np.testing.assert_array_equal(one[:80], want[:80])
        self.assertEqual(table.candidates([0, 40]), 1)
        self.assertEqual(table.candidates([0, 80]), MOST_CANDIDATES)
        table.put(3, Sampling(1.0))
        self.assertIsNone(table.candidates([0, 3]))

    def test_less_is_enough(self) -> None:
        """What a way leaves out changes nothing for the slots that it is meant for."""
        table = SettingsTable(len(SAMPLINGS))
        for slot, sampling in enumerate(SAMPLINGS):
            table.put(slot, sampling)
        rng = np.random.default_rng(1)
        logits = jnp.asarray(rng.normal(0, 3, (len(SAMPLINGS), VOCABULARY)), jnp.float32)
        seen = rng.random(logits.shape) < 0.3
        keys = seed_keys(range(len(SAMPLINGS)))
        run = functools.partial(_choose, logits, keys, table.settings, seen)
        most = np.asarray(run(way=Way.FILTERED))
        ways = [table.way([slot]) for slot in range(len(SAMPLINGS))]
        expected = [Way.LIKELIEST, *[Way.DRAWN] * 3, *[Way.FILTERED] * 4, Way.DRAWN, Way.FILTERED]
        self.assertEqual(ways, expected)
        self.assertLess(table.settings.top_p[-1], 1)
        for slot, way in enumerate(ways):
            self.assertEqual(run(way=way)[slot], most[slot])
        self.assertEqual(table.way([0, 2]), Way.DRAWN)
        self.assertEqual(table.way([4, 0]), Way.FILTERED)


if __name__ == "__main__":
    absltest.main()
