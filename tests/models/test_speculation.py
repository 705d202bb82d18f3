"""Decoding with drafts, judged by decoding without."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf
from jax_tkg.models.decode import NO_TOKEN, Decoder
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.prompt_lookup import PromptLookup
from jax_tkg.models.sampling import Sampling
from jax_tkg.models.speculation import SpeculativeDecoder
from tests.models import devices, tiny

pytestmark = pytest.mark.usefixtures("programs_of_this_run")

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, len(tiny.VOCABULARY), n).tolist() for n in (23, 1, 9)]


@functools.cache
def _model(ranks: int = 1) -> PackedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, tiny.Tiny(context_length=400))
        return gguf.load(gguf.GgufFile(path), "float32", ranks)


class _Oracle(PromptLookup):
    """Drafts the true continuation, but for every fifth token."""

    answers: dict[tuple[int, ...], list[int]]

    def __init__(self, tokens: Sequence[int], worthwhile: int = 1):
        super().__init__(tokens, worthwhile)
        self._answer = [*tokens, *self.answers[tuple(tokens)]]

    def draft(self, count: int) -> list[int]:
        place = len(self._tokens)
        following = enumerate(self._answer[place : place + count], place)
        return [(token + 1) % 200 if index % 5 == 0 else token for index, token in following]


def _rows(columns: Sequence[np.ndarray], batch: int) -> list[list[int]]:
    """The tokens of each sequence."""
    told = np.stack(columns, axis=1) if columns else np.empty((batch, 0), np.int32)
    return [[token for token in row if token != NO_TOKEN] for row in told.tolist()]


class ArgumentsTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.decoder = SpeculativeDecoder(_model(), 60, num_drafts=3)

    def test_more_tokens_than_32_bits_count(self) -> None:
        """The capacity ends the text."""
        want = _rows(list(self.decoder.stream(self.decoder.start(PROMPTS), 2**40)), 3)
        state = self.decoder.start(PROMPTS)
        got = _rows(list(self.decoder.speculate(PROMPTS, state, 2**40)), 3)
        self.assertEqual(got, want)

    def test_as_many_prompts(self) -> None:
        state = self.decoder.start(PROMPTS)
        with self.assertRaisesRegex(ValueError, "^prompts: expected the 3 that .*, got 2$"):
            next(self.decoder.speculate(PROMPTS[:2], state, 4))


@pytest.mark.thorough
class TextTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("greedy", Sampling(), 1, 7),
        ("greedy_on_two_ranks", Sampling(), 2, 3),
        ("sampled", Sampling(1.5, 0.95, repetition_penalty=1.2), 1, 4),
    )
    @pytest.mark.extended_except("sampled")
    def test_that_of_plain_decoding(self, sampling: Sampling, ranks: int, drafts: int) -> None:
        """In fewer steps; to the stop tokens, the most tokens, and the capacity."""
        mesh = devices.mesh(ranks)
        free = Decoder(_model(ranks), 60, mesh, sampling)
        text = _rows(list(free.stream(free.start(PROMPTS), 100)), 3)
        # The last prompt's answer ends early; another ends with the capacity or with 45 tokens.
        stops = [text[2][10]]
        plain = Decoder(_model(ranks), 60, mesh, sampling, stops)
        want = _rows(list(plain.stream(plain.start(PROMPTS), 45)), 3)
        decoder = SpeculativeDecoder(
            _model(ranks), 60, num_drafts=drafts, mesh=mesh, sampling=sampling, stop_tokens=stops
        )
        _Oracle.answers = {tuple(p): t for p, t in zip(PROMPTS, text, strict=True)}
        verify, steps = decoder._verify, []

        def counted(*arguments: object, **options: object) -> object:
            steps.append(options)
            return verify(*arguments, **options)

        with (
            mock.patch("jax_tkg.models.speculation.PromptLookup", _Oracle),
            mock.patch.object(decoder, "_verify", counted),
        ):
            columns = list(decoder.speculate(PROMPTS, decoder.start(PROMPTS), 45))
        self.assertEqual(_rows(columns, 3), want)
        self.assertBetween(len(steps), 5, 30)

    @pytest.mark.extended
    def test_drafts_of_the_text_itself(self) -> None:
        """A prompt that repeats itself, and an answer that does sooner or later."""
        prompt = PROMPTS[2] * 4
        plain = Decoder(_model(), 300)
        want = _rows(list(plain.stream(plain.start([prompt]), 120)), 1)
        decoder = SpeculativeDecoder(_model(), 300, num_drafts=7)
        columns = list(decoder.speculate([prompt], decoder.start([prompt]), 120))
        self.assertEqual(_rows(columns, 1), want)


@pytest.mark.thorough
class DistributionTest(absltest.TestCase):
    @pytest.mark.extended
    def test_pairs_of_tokens(self) -> None:
        """Of many sequences with keys of their own, against exact probabilities."""
        sampling = Sampling(temperature=2.0, top_k=3)
        batch, prompt = 2000, [3]
        drafts = SpeculativeDecoder(_model(), 8, num_drafts=2, sampling=sampling)
        plain = Decoder(_model(), 8)

        def distribution(tokens: list[int]) -> dict[int, float]:
            logits = plain.logits(tokens)[-1].astype(np.float64)
            best = np.argsort(logits)[-3:]
            weights = np.exp((logits[best] - logits[best].max()) / 2)
            return dict(zip(best.tolist(), weights / weights.sum(), strict=True))

        first = distribution(prompt)
        exact = {
            (one, two): p * q
            for one, p in first.items()
            for two, q in distribution([*prompt, one]).items()
        }
        likely = max(exact, key=lambda pair: exact[pair])
        _Oracle.answers = {tuple(prompt): [likely[0], likely[1], 0]}
        prompts = [prompt] * batch
        keys = jax.random.split(jax.random.key(1), batch)
        with mock.patch("jax_tkg.models.speculation.PromptLookup", _Oracle):
            columns = list(drafts.speculate(prompts, drafts.start(prompts, keys), 3))
        told = Counter((row[0], row[1]) for row in _rows(columns, batch))
        self.assertLessEqual(set(told), set(exact))
        # Chi squared, with 8 degrees of freedom: beyond 31 in one of ten thousand.
        statistic = sum((told[pair] - batch * p) ** 2 / (batch * p) for pair, p in exact.items())
        self.assertLess(statistic, 31)


class LookupTest(parameterized.TestCase):
    def test_what_followed_before(self) -> None:
        lookup = PromptLookup([1, 2, 3, 4, 5, 9, 2])
        self.assertEqual(lookup.draft(4), [])
        lookup.add(3)
        self.assertEqual(lookup.draft(4), [4, 5, 9, 2])
        self.assertEqual(lookup.draft(2), [4, 5])
        self.assertEqual(lookup.draft(0), [])

    def test_the_last_occurrence_counts(self) -> None:
        lookup = PromptLookup([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3])
        self.assertEqual(lookup.draft(2), [8, 1])

    def test_a_text_that_repeats_itself(self) -> None:
        self.assertEqual(PromptLookup([5, 6, 5, 6, 5, 6]).draft(5), [5, 6, 5, 6, 5])

    def test_failures_ask_for_longer_matches(self) -> None:
        lookup = PromptLookup([1, 2, 3, 4, 1, 2, 3], worthwhile=2)
        lookup.verified(1)
        self.assertEqual(lookup.draft(1), [4])
        lookup.verified(1)
        self.assertEqual(lookup.draft(1), [])
        lookup.verified(2)
        self.assertEqual(lookup.draft(1), [4])

    @parameterized.parameters(0, 8)
    def test_number_of_drafts(self, count: int) -> None:
        with self.assertRaisesRegex(ValueError, f"num_drafts: expected 1..7, got {count}"):
            SpeculativeDecoder(_model(), 60, num_drafts=count)


if __name__ == "__main__":
    absltest.main()
