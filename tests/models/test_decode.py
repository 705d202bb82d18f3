"""Decode loops of a tiny model, judged by an independent llama that has no cache."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.caches import SMALLEST_CONTEXT, context_bucket
from jax_tkg.models import gguf, packing
from jax_tkg.models.decode import (
    NO_TOKEN,
    STEPS_AHEAD,
    STEPS_PER_SCAN,
    Decoder,
)
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.sampling import Sampling, seed_keys
from tests.models import devices, numpy_llama, tiny

pytestmark = pytest.mark.usefixtures("programs_of_this_run")

SHAPE = tiny.Tiny(context_length=400)
RNG = np.random.default_rng(11)


def _prompt(length: int) -> list[int]:
    return RNG.integers(0, len(tiny.VOCABULARY), length).tolist()


PROMPTS = {length: _prompt(length) for length in (1, 7, 8, 9, 23, 124, 130)}


@functools.cache
def _model(ranks: int = 1, dtype: str = "float32") -> PackedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, SHAPE)
        return gguf.load(gguf.GgufFile(path), dtype, ranks)


@functools.cache
def _decoder(ranks: int = 1) -> Decoder:
    return Decoder(_model(ranks), 200, devices.mesh(ranks))


@functools.cache
def _expected(length: int, count: int) -> list[int]:
    """Greedy tokens after the prompt of that length, every one from the whole text anew."""
    tokens = list(PROMPTS[length])
    for _ in range(count):
        logits = numpy_llama.logits(SHAPE, SHAPE.tensors(), tokens)[-1]
        second, first = np.sort(logits)[-2:]
        # A near tie would make the test depend on rounding.
        assert first - second > 1e-3
        tokens.append(int(logits.argmax()))
    return tokens[length:]


def _streamed(decoder: Decoder, prompts: Sequence[Sequence[int]], count: int) -> np.ndarray:
    return np.stack(list(decoder.stream(decoder.start(prompts), count)), axis=1)


@pytest.mark.thorough
class GreedyTest(parameterized.TestCase):
    @parameterized.parameters(1, 7, 8, 9, 23, 124, 130)
    @pytest.mark.extended_except("0", "4", "6")
    def test_one_prompt(self, length: int) -> None:
        tokens = _streamed(_decoder(), [PROMPTS[length]], 8)
        self.assertEqual(tokens.tolist(), [_expected(length, 8)])

    @parameterized.parameters(1, 2, 6)
    @pytest.mark.extended_except("1")
    def test_prompts_of_different_lengths(self, ranks: int) -> None:
        lengths = (23, 1, 9, 8, 130)
        tokens = _streamed(_decoder(ranks), [PROMPTS[length] for length in lengths], 8)
        self.assertEqual(tokens.tolist(), [_expected(length, 8) for length in lengths])

    @parameterized.parameters(1, 2)
    @pytest.mark.extended_except("1")
    def test_on_device_loop(self, ranks: int) -> None:
        prompts = [PROMPTS[124], PROMPTS[9]]
        decoder = _decoder(ranks)
        tokens = decoder.generate(decoder.start(prompts), STEPS_PER_SCAN + 5)
        self.assertEqual(tokens[:, :8].tolist(), [_expected(124, 8), _expected(9, 8)])
        # The answer of the first prompt outgrows its first context bucket on the way.
        self.assertEqual(tokens.tolist(), _streamed(decoder, prompts, STEPS_PER_SCAN + 5).tolist())

    @parameterized.parameters(0, 1, 2, STEPS_PER_SCAN + 1, STEPS_PER_SCAN + 2)
    @pytest.mark.extended_except("0", "2", "4")
    def test_as_many_tokens_as_wanted(self, count: int) -> None:
        decoder = _decoder()
        tokens = decoder.generate(decoder.start([PROMPTS[9]]), count)
        self.assertEqual(tokens.shape, (1, count))
        streamed = list(decoder.stream(decoder.start([PROMPTS[9]]), count))
        self.assertLen(streamed, count)

    def test_prompts_of_numpy(self) -> None:
        """An array of both, or of one: the ids are integers."""
        prompts = np.asarray([PROMPTS[9]] * 2, np.uint16)
        tokens = _streamed(_decoder(), prompts, 2)
        self.assertEqual(tokens.tolist(), [_expected(9, 2)] * 2)


@pytest.mark.thorough
class StopTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        # Sequence 0 stops at its third token; where the others say it, they stop too.
        self.prompts = [PROMPTS[23], PROMPTS[9], PROMPTS[1]]
        free = _streamed(_decoder(), self.prompts, 12)
        self.stop = int(free[0, 2])
        self.expected = free.copy()
        for row in self.expected:
            ends = np.flatnonzero(row == self.stop)
            if ends.size:
                row[ends[0] + 1 :] = NO_TOKEN
        self.decoder = Decoder(_model(), 200, stop_tokens=[self.stop])

    def test_each_sequence_ends_alone(self) -> None:
        self.assertEqual(self.expected[0, 3], NO_TOKEN)
        self.assertNotEqual(self.expected[1, 3], NO_TOKEN)
        streamed = _streamed(self.decoder, self.prompts, 12)
        self.assertEqual(streamed.tolist(), self.expected[:, : streamed.shape[1]].tolist())
        generated = self.decoder.generate(self.decoder.start(self.prompts), 12)
        self.assertEqual(generated.tolist(), streamed.tolist())

    @pytest.mark.extended
    def test_all_end(self) -> None:
        streamed = _streamed(self.decoder, self.prompts[:1], 12)
        self.assertEqual(streamed.tolist(), self.expected[:1, :3].tolist())
        generated = self.decoder.generate(self.decoder.start(self.prompts[:1]), 12)
        self.assertEqual(generated.tolist(), streamed.tolist())

    @pytest.mark.extended
    def test_first_token_ends(self) -> None:
        first = int(_expected(9, 1)[0])
        decoder = Decoder(_model(), 200, stop_tokens=[first])
        self.assertEqual(_streamed(decoder, [PROMPTS[9]], 12).tolist(), [[first]])
        self.assertEqual(decoder.generate(decoder.start([PROMPTS[9]]), 12).tolist(), [[first]])


@pytest.mark.thorough
class CapacityTest(absltest.TestCase):
    @pytest.mark.extended
    def test_each_answer_ends_with_the_capacity(self) -> None:
        """The longest prompt's answer is the shortest, and the others go on."""
        decoder = Decoder(_model(), 28)
        lengths = (23, 8, 9)
        prompts = [PROMPTS[length] for length in lengths]
        streamed = _streamed(decoder, prompts, 100)
        expected = [_expected(length, 28 - length) for length in lengths]
        padded = [answer + [NO_TOKEN] * (20 - len(answer)) for answer in expected]
        self.assertEqual(streamed.tolist(), padded)
        generated = decoder.generate(decoder.start(prompts), 100)
        self.assertEqual(generated.tolist(), padded)

    def test_context_buckets(self) -> None:
        self.assertEqual(
            [context_bucket(n, 1000) for n in (0, 1, 128, 129, 256, 257, 513, 1000)],
            [128, 128, 128, 256, 256, 512, 1000, 1000],
        )

    @pytest.mark.extended
    def test_few_compilations(self) -> None:
        decoder = Decoder(_model(), 384)
        for length in (1, 9, 23):
            _streamed(decoder, [PROMPTS[length]], 20)
        # Prefill and step; one batch and one context bucket.
        self.assertEqual(decoder.compile_count, 2)
        _streamed(decoder, [PROMPTS[130]], 384)
        # The step for S_ctx of 256 and 384, and the prefill in a larger chunk.
        self.assertEqual(decoder.compile_count, 5)
        self.assertGreater(decoder.compile_seconds, 0)


@pytest.mark.thorough
class PrepareTest(parameterized.TestCase):
    @parameterized.product(ranks=(1, 2), device_loop=(False, True), lengths=((1,), (23, 9), (130,)))
    @pytest.mark.extended_except("1", "9")
    def test_nothing_is_compiled_later(
        self, ranks: int, device_loop: bool, lengths: tuple[int, ...]
    ) -> None:
        decoder = Decoder(_model(ranks), 200, devices.mesh(ranks))
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            prepared = decoder.prepare(threads, lengths, device_loop=device_loop)
            for executable in prepared:
                executable.result()
        count = decoder.compile_count
        self.assertLen(prepared, count)
        prompts = [PROMPTS[length] for length in lengths]
        state = decoder.start(prompts)
        if device_loop:
            tokens = decoder.generate(state, 8)
        else:
            tokens = np.stack(list(decoder.stream(state, 8)), axis=1)
        self.assertEqual(tokens.tolist(), [_expected(length, 8) for length in lengths])
        self.assertEqual((decoder.compile_count, decoder.compile_seconds), (count, 0))

    @parameterized.parameters((1, True), (2, True), (1, False))
    @pytest.mark.extended_except("0")
    def test_before_the_arrays_are_there(self, ranks: int, tied: bool) -> None:
        """An outline that is wrong about the head costs another compilation and nothing else."""
        model = _model(ranks)
        outlined = packing.outline(model.config, "float32", ranks, tied)
        decoder = Decoder(outlined, 200, devices.mesh(ranks))
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            decoder.prepare(threads, [23])
        decoder.place(model)
        tokens = _streamed(decoder, [PROMPTS[23]], 8)
        self.assertEqual(tokens.tolist(), [_expected(23, 8)])
        self.assertEqual(decoder.compile_count, 2)
        if tied:
            self.assertEqual(decoder.compile_seconds, 0)
        else:
            self.assertGreater(decoder.compile_seconds, 0)

    @pytest.mark.extended
    def test_the_next_bucket_is_compiled_ahead(self) -> None:
        decoder = Decoder(_model(), 384)
        prompt = PROMPTS[23] * 4
        length = len(prompt)
        self.assertBetween(length, SMALLEST_CONTEXT - STEPS_AHEAD, SMALLEST_CONTEXT)
        steps = SMALLEST_CONTEXT - length + 3
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            stream = decoder.stream(decoder.start([prompt]), 200, threads)
            ahead = [next(stream) for _ in range(2)]
        # The bucket of 256 is compiled now, though the caches hold 93 tokens.
        seconds, count = decoder.compile_seconds, decoder.compile_count
        self.assertEqual(count, 3)
        tokens = [*ahead, *(next(stream) for _ in range(steps - 2))]
        self.assertEqual((decoder.compile_seconds, decoder.compile_count), (seconds, count))
        alone = _streamed(_decoder(), [prompt], steps)
        self.assertEqual(np.stack(tokens, axis=1).tolist(), alone.tolist())

    def test_error(self) -> None:
        decoder = Decoder(_model(), 200, implementation="nki")
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            first, *_ = decoder.prepare(threads, [9])
        with self.assertRaisesRegex(ValueError, "implementation: expected"):
            first.result()
        with self.assertRaisesRegex(ValueError, "implementation: expected"):
            decoder.start([PROMPTS[9]])


@pytest.mark.thorough
class StateTest(absltest.TestCase):
    def test_caches_are_donated(self) -> None:
        decoder = _decoder()
        before = decoder.start([PROMPTS[9]])
        pointer = before.K_caches.unsafe_buffer_pointer()
        after = decoder.step(before, SMALLEST_CONTEXT)
        self.assertTrue(before.K_caches.is_deleted())
        self.assertEqual(after.K_caches.unsafe_buffer_pointer(), pointer)

    def test_padding_is_not_written(self) -> None:
        state = _decoder().start([PROMPTS[9], PROMPTS[1]])
        for cache, axis in ((state.K_caches[0], 3), (state.V_caches[0], 2)):
            for sequence, length in enumerate((9, 1)):
                written = np.abs(np.asarray(cache[sequence])).sum(
                    axis=tuple(a for a in range(3) if a != axis - 1)
                )
                self.assertEqual((written > 0).tolist(), [t < length for t in range(200)])

    def test_a_finished_sequence_stays_as_long_as_it_is(self) -> None:
        decoder = _decoder()
        state = decoder.start([PROMPTS[9], PROMPTS[1]])
        state = dataclasses.replace(state, finished=jnp.array([True, False]))
        after = decoder.step(state, SMALLEST_CONTEXT)
        self.assertEqual(after.lengths.tolist(), [9, 2])
        self.assertEqual(int(after.tokens[0]), NO_TOKEN)

    def test_progress(self) -> None:
        seen: list[tuple[int, int]] = []
        _decoder().start(
            [PROMPTS[9], PROMPTS[23]], progress=lambda done, total: seen.append((done, total))
        )
        self.assertEqual(seen, [(22, 23), (23, 23)])


@pytest.mark.thorough
class SampledTest(absltest.TestCase):
    @pytest.mark.extended
    def test_keys_decide(self) -> None:
        decoder = Decoder(_model(), 200, sampling=Sampling(3.0, 0.95))
        prompts = [PROMPTS[9], PROMPTS[9]]

        def draw(seed: int) -> list[list[int]]:
            state = decoder.start(prompts, jax.random.key(seed))
            return np.stack(list(decoder.stream(state, 12)), axis=1).tolist()

        self.assertEqual(draw(1), draw(1))
        self.assertNotEqual(draw(1), draw(2))
        self.assertNotEqual(*draw(1))
        generated = decoder.generate(decoder.start(prompts, jax.random.key(1)), 12)
        self.assertEqual(generated.tolist(), draw(1))
        keys = jax.random.split(jax.random.key(1), 2)[::-1]
        swapped = decoder.generate(decoder.start(prompts, keys), 12)
        self.assertFalse(keys.is_deleted())
        self.assertEqual(swapped.tolist(), draw(1)[::-1])

    def test_old_style_keys(self) -> None:
        """Those of `jax.random.PRNGKey`, one or one for each sequence."""
        decoder = Decoder(_model(), 200, sampling=Sampling(3.0, 0.95))
        prompts, keys = [PROMPTS[9]] * 2, jax.random.split(jax.random.key(1), 2)
        want = decoder.generate(decoder.start(prompts, keys), 5).tolist()
        words = np.asarray(jax.random.key_data(keys))
        for old in (jax.random.PRNGKey(1), words):
            with concurrent.futures.ThreadPoolExecutor(1) as threads:
                decoder.prepare(threads, [9, 9], old)
            count = decoder.compile_count
            self.assertEqual(decoder.generate(decoder.start(prompts, old), 5).tolist(), want)
            self.assertEqual(decoder.compile_count, count)

    @pytest.mark.extended
    def test_no_token_twice(self) -> None:
        """With a penalty that no logit survives, from the prompt's tokens on."""
        decoder = Decoder(_model(), 200, sampling=Sampling(repetition_penalty=1e30))
        prompt = PROMPTS[9]
        tokens = [int(step[0]) for step in decoder.stream(decoder.start([prompt]), 40)]
        # A positive logit becomes zero and a negative one -inf.
        self.assertLen({*prompt, *tokens}, len({*prompt}) + 40)
        generated = decoder.generate(decoder.start([prompt]), 40)
        self.assertEqual(generated[0].tolist(), tokens)


class ErrorsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("none", [], "prompts: expected at least one, got none"),
        ("empty", [[1], []], r"prompts\[1\]: expected 1..199 tokens .*, got 0"),
        ("long", [[1] * 200], r"prompts\[0\]: expected 1..199 tokens .*, got 200"),
        ("vocabulary", [[1, 267]], r"prompts\[0\]: expected token ids 0..266, got 267"),
        ("negative", [[-1]], "expected token ids 0..266, got -1"),
        ("float", [[1], [2, 5.5]], r"prompts\[1\]\[1\]: expected an integer, got 5.5"),
        ("flat", [1, 2], r"prompts\[0\]: expected a sequence of integers, got 1"),
    )
    def test_prompts(self, prompts: list[list[int]], message: str) -> None:
        with self.assertRaisesRegex((TypeError, ValueError), message):
            _decoder().start(prompts)

    @parameterized.parameters(
        (lambda: seed_keys([1, 2]), r"one for each of 4 prompts, got shape \(2,\)"),
        (lambda: seed_keys(range(5)), r"one for each of 4 prompts, got shape \(5,\)"),
        (lambda: seed_keys([1] * 4)[None], r"got shape \(1, 4\)"),
        (lambda: 7, "key: expected PRNG keys, as jax.random.key makes them, got int"),
        (lambda: np.ones(4, np.float32), r"key: expected PRNG keys, .*, got float32\[4\]"),
        (lambda: np.zeros(3, np.uint32), r"key: expected PRNG keys, .*, got uint32\[3\]"),
    )
    def test_keys(self, make: Callable[[], Any], message: str) -> None:
        with self.assertRaisesRegex((TypeError, ValueError), message):
            _decoder().start([[1, 2]] * 4, make())
        with self.assertRaisesRegex((TypeError, ValueError), message):
            _decoder().prepare(mock.Mock(), [2] * 4, make())

    def test_integers(self) -> None:
        with self.assertRaisesRegex(TypeError, "capacity: expected an integer, got 20.5"):
            Decoder(_model(), 20.5)  # type: ignore[arg-type]
        with self.assertRaisesRegex(TypeError, r"stop_tokens\[1\]: expected an integer, got 5.5"):
            Decoder(_model(), 200, stop_tokens=[4, 5.5])  # type: ignore[list-item]
        decoder = _decoder()
        state = decoder.start([PROMPTS[9]])
        with self.assertRaisesRegex(TypeError, "max_tokens: expected an integer, got 2.5"):
            decoder.generate(state, 2.5)  # type: ignore[arg-type]
        with self.assertRaisesRegex(TypeError, "max_tokens: expected an integer, got 2.5"):
            next(decoder.stream(state, 2.5))  # type: ignore[arg-type]

    @parameterized.parameters(0, 401)
    def test_capacity(self, capacity: int) -> None:
        with self.assertRaisesRegex(ValueError, f"expected 1..400 tokens .*, got {capacity}"):
            Decoder(_model(), capacity)

    @parameterized.parameters((1, 2), (2, 1), (2, 4))
    def test_mesh(self, packed: int, ranks: int) -> None:
        with self.assertRaisesRegex(ValueError, f"mesh: expected one axis 'tp' of {packed} dev"):
            Decoder(_model(packed), 100, devices.mesh(ranks))

    def test_mesh_with_another_axis(self) -> None:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("model",))
        with self.assertRaisesRegex(ValueError, r"mesh: expected .*, got \{'model': 2\}"):
            Decoder(_model(2), 100, mesh)


@pytest.mark.thorough
class ConfigurationTest(parameterized.TestCase):
    """Settings of JAX under which programs run that use this package."""

    def _check(self, decoder: Decoder) -> None:
        state = decoder.start([PROMPTS[9]])
        self.assertEqual([step[0] for step in decoder.stream(state, 3)], _expected(9, 3))
        state = decoder.start([PROMPTS[9]])
        self.assertEqual(decoder.generate(state, 3)[0].tolist(), _expected(9, 3))
        self.assertEqual(decoder.logits(PROMPTS[9]).shape[0], 9)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("1")
    def test_mesh_of_explicit_axes(self, set_mesh: bool) -> None:
        """What `jax.make_mesh` makes from JAX 0.10 on, also as the mesh of the context."""
        mesh = jax.make_mesh((2,), ("tp",), axis_types=(jax.sharding.AxisType.Explicit,))
        with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
            self._check(Decoder(_model(2), 200, mesh))

    @pytest.mark.extended
    def test_strict_promotion(self) -> None:
        for option, value in (
            ("jax_numpy_rank_promotion", "raise"),
            ("jax_numpy_dtype_promotion", "strict"),
        ):
            self.addCleanup(jax.config.update, option, getattr(jax.config, option))
            jax.config.update(option, value)
        self._check(Decoder(_model(), 200))


if __name__ == "__main__":
    absltest.main()
