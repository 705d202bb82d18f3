"""Requests that come and go, each judged by its answer alone, of a decoder with one sequence."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf, prompts
from jax_tkg.models.decode import Decoder
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.sampling import MOST_CANDIDATES, Sampling, seed_keys
from jax_tkg.serving import Event, Request, RunningBatch
from tests.models import devices, tiny

pytestmark = pytest.mark.usefixtures("programs_of_this_run")

SHAPE = tiny.Tiny(num_layers=2, hidden_size=64, intermediate_size=96, num_heads=4)
CAPACITY, SLOTS, BLOCK_LEN = 192, 4, 32
SAMPLINGS = (
    Sampling(),
    Sampling(repetition_penalty=1.5),
    Sampling(temperature=0.8),
    Sampling(temperature=2.0, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1),
)
MOST_TOKENS = 24


@functools.cache
def _model(ranks: int = 1, window: int | None = None) -> PackedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, SHAPE)
        model = gguf.load(gguf.GgufFile(path), "float32", ranks)
    if window is None:
        return model
    (kind,) = model.config.kinds
    layers = (kind, dataclasses.replace(kind, window=window))
    config = dataclasses.replace(model.config, layers=layers)
    return dataclasses.replace(model, config=config)


@functools.cache
def _decoder(sampling: Sampling, window: int | None = None) -> Decoder:
    return Decoder(_model(window=window), CAPACITY, sampling=sampling)


@functools.cache
def _alone(
    prompt: tuple[int, ...], sampling: Sampling, seed: int, window: int | None = None
) -> tuple[int, ...]:
    """The first tokens of a request's answer without stop tokens or limits."""
    decoder = _decoder(sampling, window)
    state = decoder.start([prompt], seed_keys([seed]))
    return tuple(int(tokens[0]) for tokens in decoder.stream(state, MOST_TOKENS))


def _expected(request: Request, window: int | None = None) -> tuple[list[int], str]:
    """A request's answer and the reason of its end."""
    tokens = list(_alone(tuple(request.prompt), request.sampling, request.seed, window))
    ends = [index for index, token in enumerate(tokens) if token in (request.stop_tokens or ())]
    count = min(request.max_tokens, len(tokens))
    if ends and ends[0] < count:
        return tokens[: ends[0] + 1], "stop"
    return tokens[:count], "length"


def _drawn(rng: np.random.Generator) -> Request:
    """Prompts and samplings out of a few, so that the answers alone do not take long."""
    length = int(rng.choice((1, 2, 9, 33, 70, 120, 130, CAPACITY - 5)))
    prompt = np.random.default_rng(length).integers(0, len(tiny.VOCABULARY), length)
    sampling = SAMPLINGS[rng.integers(len(SAMPLINGS))]
    seed = int(rng.integers(2)) * (2**64 - 1)
    stops = []
    if rng.random() < 0.5:
        answer = _alone(tuple(prompt.tolist()), sampling, seed)
        stops = [int(rng.choice(answer))]
    return Request(
        prompt=prompt.tolist(),
        max_tokens=int(rng.integers(1, MOST_TOKENS + 1)),
        sampling=sampling,
        seed=seed,
        stop_tokens=stops,
    )


class _Client:
    """Submits requests to a batch, cancels some, and collects what comes."""

    def __init__(self, batch: RunningBatch):
        self.batch = batch
        self.requests: dict[int, Request] = {}
        self.tokens: dict[int, list[int | None]] = {}
        self.reasons: dict[int, str] = {}
        self.cancelled: set[int] = set()

    def submit(self, request: Request) -> int:
        name = self.batch.submit(request)
        self.requests[name] = request
        self.tokens[name] = []
        return name

    def cancel(self, name: int) -> None:
        going = name not in self.reasons and name not in self.cancelled
        assert self.batch.cancel(name) == going
        if going:
            self.cancelled.add(name)

    def step(self) -> list[Event]:
        events = self.batch.step()
        for event in events:
            assert event.request not in self.reasons
            assert event.request not in self.cancelled
            self.tokens[event.request].append(event.token)
            if event.finish_reason is not None:
                self.reasons[event.request] = event.finish_reason
        return events

    def finish(self) -> None:
        while not self.batch.idle:
            self.step()
        self.step()


def _batch(**options: Any) -> RunningBatch:
    model = _model(options.pop("ranks", 1), options.pop("window", None))
    return RunningBatch(model, SLOTS, CAPACITY, **options)


@functools.cache
def _prepared(blocks: int | None) -> tuple[RunningBatch, int]:
    """A batch that has compiled all that it needs, and how many programs that were."""
    batch = _batch(blocks=blocks, block_len=BLOCK_LEN)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        prepared = [executable.result() for executable in batch.prepare(threads)]
    assert len(prepared) == batch.compile_count
    return batch, batch.compile_count


@pytest.mark.thorough
class DrawnTest(parameterized.TestCase):
    """40 requests of mixed lengths, arrivals and settings on 4 slots, some of them cancelled."""

    @parameterized.parameters((None, range(1)), (16, range(1, 2)))
    @pytest.mark.extended_except("1")
    def test_each_answer_is_the_request_alone(self, blocks: int | None, seeds: range) -> None:
        for seed in seeds:
            self._run(blocks, seed)

    @parameterized.parameters((None, range(1, 20)), (16, range(2, 21)))
    @pytest.mark.exhaustive
    def test_more(self, blocks: int | None, seeds: range) -> None:
        for seed in seeds:
            self._run(blocks, seed)

    def _run(self, blocks: int | None, seed: int) -> None:
        batch, compiled = _prepared(blocks)
        client, rng = _Client(batch), np.random.default_rng(seed)
        requests = [_drawn(rng) for _ in range(40)]
        with _compilations() as programs:
            while requests or not batch.idle:
                for _ in range(rng.integers(5)):
                    if requests:
                        client.submit(requests.pop())
                if client.requests and rng.random() < 0.15:
                    client.cancel(int(rng.choice(list(client.requests))))
                client.step()
                self.assertLessEqual(batch.free_slots, SLOTS)
            batch.step()
        self.assertEqual(programs, [])
        self.assertEqual((batch.compile_count, batch.compile_seconds), (compiled, 0))
        # Nothing is left behind.
        self.assertEqual((batch.free_slots, batch.waiting), (SLOTS, 0))
        self.assertEqual(batch.free_blocks, blocks)
        self.assertNotEmpty(client.cancelled)
        for name, request in client.requests.items():
            tokens, reason = _expected(request)
            if name in client.cancelled:
                self.assertEqual(client.tokens[name], tokens[: len(client.tokens[name])])
                self.assertNotIn(name, client.reasons)
            else:
                self.assertEqual((client.tokens[name], client.reasons[name]), (tokens, reason))


class _compilations:
    """The programs that JAX compiles in a context, whoever asks for it."""

    def __enter__(self) -> list[str]:
        self._programs: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self._programs

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, _: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._programs.append(str(details))


@contextlib.contextmanager
def _in_chunks_of_32(batch: RunningBatch) -> Iterator[None]:
    """One chunk of prompts between two steps."""
    with (
        mock.patch.object(prompts, "CHUNK_SIZES", (32,)),
        mock.patch.object(batch, "_prompt_tokens", 1),
    ):
        yield


@pytest.mark.thorough
class AdmissionTest(parameterized.TestCase):
    def test_in_the_order_of_arrival(self) -> None:
        client = _Client(_prepared(None)[0])
        names = [client.submit(Request([7 + n], max_tokens=2, stop_tokens=[])) for n in range(6)]
        self.assertEqual(client.batch.waiting, 6)
        self.assertEqual([event.request for event in client.step()], names[:4])
        self.assertEqual((client.batch.waiting, client.batch.free_slots), (2, 0))
        client.finish()
        self.assertCountEqual(client.reasons, names)

    def test_long_prompts_are_read_between_steps(self) -> None:
        """The other sequence has a token for each chunk of it."""
        batch, _ = _prepared(None)
        client = _Client(batch)
        with _in_chunks_of_32(batch):
            first = client.submit(Request([5, 6], max_tokens=12, stop_tokens=[]))
            client.step()
            prompt = np.random.default_rng(0).integers(0, 60, 100).tolist()
            second = client.submit(Request(prompt, max_tokens=3, stop_tokens=[]))
            names = [[event.request for event in client.step()] for _ in range(5)]
            self.assertEqual(names, [[first]] * 3 + [[first, second]] * 2)
            client.finish()
        for name in (first, second):
            self.assertEqual(client.tokens[name], _expected(client.requests[name])[0])

    def test_cancelled_while_its_prompt_is_read(self) -> None:
        batch, _ = _prepared(16)
        client = _Client(batch)
        long = np.random.default_rng(0).integers(0, 60, 100).tolist()
        with _in_chunks_of_32(batch):
            first = client.submit(Request(long, max_tokens=90))
            next_one = client.submit(Request(long[:40], max_tokens=5, stop_tokens=[]))
            self.assertEqual(client.step(), [])
            self.assertEqual((batch.free_slots, batch.free_blocks), (SLOTS - 1, 10))
            client.cancel(first)
            client.finish()
        self.assertEqual(client.tokens[next_one], _expected(client.requests[next_one])[0])
        self.assertEqual((batch.free_slots, batch.free_blocks), (SLOTS, 16))
        self.assertFalse(batch.cancel(first))
        self.assertFalse(batch.cancel(1000))

    def test_cancelled_during_a_step(self) -> None:
        """By another thread; the token of that step is nobody's."""
        batch = _prepared(None)[0]
        client = _Client(batch)
        name = client.submit(Request([5, 6], max_tokens=1))
        other = client.submit(Request([7], max_tokens=1, stop_tokens=[]))
        choose = batch._choose

        def cancelled_meanwhile(*arguments: Any, **options: Any) -> Any:
            thread = threading.Thread(target=client.cancel, args=[name])
            thread.start()
            thread.join()
            return choose(*arguments, **options)

        with mock.patch.object(batch, "_choose", cancelled_meanwhile):
            self.assertEqual([event.request for event in client.step()], [other])
        self.assertTrue(batch.idle)
        client.step()
        self.assertEqual(batch.free_slots, SLOTS)

    def test_blocks_are_waited_for(self) -> None:
        """Slots are free, but the blocks of the second request are not."""
        batch, _ = _prepared(16)
        client = _Client(batch)
        long = Request([5] * 100, max_tokens=80, stop_tokens=[])
        short = Request([6] * 9, max_tokens=3, stop_tokens=[])
        requests = [long, dataclasses.replace(long, seed=1), long, short]
        names = [client.submit(request) for request in requests]
        client.step()
        # Six blocks each; the third does not find room, and the fourth stays behind it.
        self.assertEqual((batch.free_slots, batch.free_blocks, batch.waiting), (2, 4, 2))
        client.cancel(names[0])
        self.assertCountEqual([event.request for event in client.step()], [names[1], *names[2:]])
        for name in names[1:3]:
            client.cancel(name)
        client.finish()
        self.assertEqual(client.tokens[names[3]], _expected(short)[0])
        self.assertEqual(batch.free_blocks, 16)


@pytest.mark.thorough
class ModelsTest(parameterized.TestCase):
    """Models, devices and ways to read prompts beyond those of the draws."""

    def _assert_as_alone(self, batch: RunningBatch, window: int | None = None) -> None:
        client, rng = _Client(batch), np.random.default_rng(3)
        for length in (3, 40, 1, 90, 17):
            client.submit(
                Request(
                    rng.integers(0, 60, length).tolist(),
                    max_tokens=10,
                    sampling=SAMPLINGS[length % 2 * 2],
                    seed=length,
                    stop_tokens=[],
                )
            )
        client.finish()
        self.assertLen(client.reasons, 5)
        for name, request in client.requests.items():
            self.assertEqual(client.tokens[name], _expected(request, window)[0])

    @pytest.mark.extended
    def test_ranks(self) -> None:
        mesh = devices.mesh(2)
        self._assert_as_alone(_batch(ranks=2, mesh=mesh, blocks=16, block_len=BLOCK_LEN))

    @pytest.mark.extended
    def test_ranks_that_share_out_contexts(self) -> None:
        """Each of a KV head's two ranks holds every other slot."""
        options: dict[str, Any] = {"ranks": 4, "mesh": devices.mesh(4), "context_parallel": 2}
        batch = _batch(**options)
        for leaf in jax.tree.leaves(batch._caches.arrays):
            self.assertIn(CAPACITY // 2, leaf.shape)
        self._assert_as_alone(batch)
        with self.assertRaisesRegex(ValueError, "^blocks: expected context_parallel = 1 with"):
            _batch(**options, blocks=16, block_len=BLOCK_LEN)

    @pytest.mark.extended
    def test_windows(self) -> None:
        """Rings shorter than the prompts."""
        self._assert_as_alone(_batch(window=20), window=20)
        with self.assertRaisesRegex(ValueError, "blocks: expected a model whose layers are of one"):
            _batch(window=20, blocks=16, block_len=BLOCK_LEN)

    @pytest.mark.extended
    def test_prompts_read_by_the_operation(self) -> None:
        self._assert_as_alone(_batch(prefill=False))

    def test_candidates(self) -> None:
        """Greedy, with top_k, and with all logits, one after the other."""
        batch = _batch(candidates=True)
        client = _Client(batch)
        step = mock.Mock(side_effect=batch._step)
        with mock.patch.object(batch, "_step", step):
            for length, sampling in (
                (20, Sampling()),
                (9, Sampling(2.0, top_k=20, top_p=0.9)),
                (3, SAMPLINGS[1]),
            ):
                prompt = np.random.default_rng(length).integers(0, 60, length).tolist()
                client.submit(Request(prompt, max_tokens=10, sampling=sampling, stop_tokens=[]))
                client.step()
                client.step()
            client.finish()
        for name, request in client.requests.items():
            self.assertEqual(client.tokens[name], _expected(request)[0])
        asked = [call.kwargs["candidates"] for call in step.call_args_list]
        self.assertEqual(list(dict.fromkeys(asked)), [1, MOST_CANDIDATES, None])
        # Nothing was compiled that `prepare` leaves out.
        prepared = batch.prepare(mock.create_autospec(concurrent.futures.Executor), longest=40)
        self.assertLen(prepared, batch.compile_count)


class BadInputTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"slots": 0}, "slots: expected at least 1, got 0"),
        ({"capacity": 1}, "capacity: expected 2..512 tokens .*, got 1"),
        ({"capacity": 513}, "capacity: expected 2..512"),
        ({"prompt_tokens": 0}, "prompt_tokens: expected at least 1, got 0"),
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
        ({"blocks": 8, "block_len": 48}, "block_len: expected a divisor of the capacity, 128"),
        ({"mesh": devices.mesh(2)}, "mesh: expected one axis"),
    )
    def test_batch(self, changes: dict[str, Any], message: str) -> None:
        options = {"slots": 2, "capacity": 128, **changes}
        with self.assertRaisesRegex(ValueError, message):
            RunningBatch(_model(), **options)

    @parameterized.parameters(
        ({"prompt": []}, "prompt: expected at least one token, got none"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected 0 <= seed < 2\\*\\*64, got -1"),
        ({"seed": 2**64}, "seed: expected"),
        ({"prompt": [3, 1000]}, "prompt: expected token ids 0..266, got 1000"),
        ({"prompt": [-1]}, "prompt: expected token ids"),
        ({"prompt": [3] * 128}, "prompt: expected fewer than 128 tokens .*, got 128"),
        ({"max_tokens": 64}, "prompt, max_tokens: expected at most the 2 blocks of 32 tokens"),
    )
    def test_request(self, changes: dict[str, Any], message: str) -> None:
        batch = _small_batch()
        with self.assertRaisesRegex(ValueError, message):
            batch.submit(Request(**{"prompt": [3] * 2, "max_tokens": 4, **changes}))
        self.assertTrue(batch.idle)

    @parameterized.parameters(
        ({"prompt": [3, 5.5]}, r"prompt\[1\]: expected an integer, got 5.5"),
        ({"prompt": [True]}, r"prompt\[0\]: expected an integer, got True"),
        ({"prompt": 3}, "prompt: expected a sequence of integers, got 3"),
        ({"prompt": np.ones((1, 40))}, r"prompt\[0\]: expected an integer, got array.*"),
        ({"max_tokens": 2.5}, "max_tokens: expected an integer, got 2.5"),
        ({"seed": 1.0}, "seed: expected an integer, got 1.0"),
        ({"seed": "1"}, "seed: expected an integer, got '1'"),
        ({"stop_tokens": [3.0]}, r"stop_tokens\[0\]: expected an integer, got 3.0"),
        ({"sampling": None}, "sampling: expected a Sampling, got None"),
    )
    def test_types(self, changes: dict[str, Any], message: str) -> None:
        """Found out when the request is made: in `step` they would end all others."""
        with self.assertRaisesRegex(TypeError, f"^{message}$"):
            Request(**{"prompt": [3] * 2, **changes})

    def test_integers_of_numpy(self) -> None:
        request = Request(
            np.asarray([3, 4], np.uint16),  # type: ignore[arg-type]
            max_tokens=np.int64(2),  # type: ignore[arg-type]
            sampling=Sampling(0.8, top_k=np.int32(20)),  # type: ignore[arg-type]
            seed=np.int32(5),  # type: ignore[arg-type]
            stop_tokens=np.asarray([300]),  # type: ignore[arg-type]
        )
        self.assertEqual(
            request,
            Request((3, 4), 2, Sampling(0.8, top_k=20), 5, (300,)),
        )
        client = _Client(_small_batch())
        name = client.submit(request)
        client.finish()
        self.assertLen(client.tokens[name], 2)
        with self.assertRaisesRegex(TypeError, "capacity: expected an integer, got 64.5"):
            RunningBatch(_model(), 2, 64.5)  # type: ignore[arg-type]

    def test_implementation(self) -> None:
        batch = RunningBatch(_model(), 2, 128, implementation="nki")
        batch.submit(Request([3]))
        with self.assertRaisesRegex(ValueError, "implementation: expected 'nki' on platform"):
            batch.step()


@functools.cache
def _overflowing() -> PackedModel:
    """A model in float16 whose activations of token 9 become NaN; those of others do not."""
    shape = dataclasses.replace(SHAPE, tied=False)
    tensors = shape.tensors()
    tensors["token_embd.weight"][9] = 65500.0
    tensors["blk.0.ffn_down.weight"] *= 200.0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write(path, tensors, shape.metadata())
        return gguf.load(gguf.GgufFile(path), "float16", 1)


class OverflowTest(parameterized.TestCase):
    """Weights of 0 times NaN are NaN: nothing of such a request may stay in the caches."""

    @parameterized.parameters((None, None), (8, None), (None, True))
    @pytest.mark.extended_except("0", "2")
    def test_other_requests_answer_as_before(
        self, blocks: int | None, candidates: bool | None
    ) -> None:
        batch = RunningBatch(
            _overflowing(), 2, 128, blocks=blocks, block_len=32, candidates=candidates
        )
        # The first is not inserted into its slot, which so has what the one before it left.
        good = [
            Request([3], max_tokens=6, stop_tokens=[]),
            Request([7, 8] * 20, max_tokens=3, stop_tokens=[]),
        ]

        def answers() -> list[list[int | None]]:
            client = _Client(batch)
            names = [client.submit(request) for request in good]
            client.finish()
            return [client.tokens[name] for name in names]

        expected = answers()
        self.assertEqual([len(answer) for answer in expected], [6, 3])
        # In a prompt, as the token that a step is given, and both.
        for prompt in ([9] * 40, [9], [3] * 60 + [9]):
            client = _Client(batch)
            bad = client.submit(Request(prompt, max_tokens=5, stop_tokens=[]))
            name = client.submit(good[0])
            client.finish()
            self.assertEqual((client.tokens[bad], client.reasons[bad]), ([None], "error"))
            self.assertEqual(client.tokens[name], expected[0])
            self.assertEqual(answers(), expected)

    @parameterized.parameters(None, 8)
    @pytest.mark.extended_except("0")
    def test_cancelled_before_its_scores_are_known(self, blocks: int | None) -> None:
        batch = RunningBatch(_overflowing(), 1, 128, blocks=blocks, block_len=32)
        good = Request([3] * 50, max_tokens=4, stop_tokens=[])
        client = _Client(batch)
        first = client.submit(good)
        client.finish()
        with _in_chunks_of_32(batch):
            # While its prompt is read, and when it is.
            for steps in (1, 2, 3):
                bad = client.submit(Request([9] * 70, max_tokens=4, stop_tokens=[]))
                with mock.patch.object(batch, "_step", side_effect=AssertionError):
                    for _ in range(steps):
                        with contextlib.suppress(AssertionError):
                            batch.step()
                client.cancel(bad)
                again = client.submit(good)
                client.finish()
                self.assertEqual(client.tokens[again], client.tokens[first])


@functools.cache
def _small_batch() -> RunningBatch:
    return RunningBatch(_model(), 2, 128, blocks=2, block_len=32)


if __name__ == "__main__":
    absltest.main()
