"""A batch whose sequences come and go: requests are admitted while others are being answered."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.caches import SMALLEST_CONTEXT
from jax_tkg.models.decode import NO_TOKEN
from jax_tkg.models.executables import Compiled, Executables, on_mesh
from jax_tkg.models.forward import ModelForward, PlacedParameters
from jax_tkg.models.integers import as_integer, as_integers
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.prompts import Chunk, PromptReader
from jax_tkg.models.sampling import MOST_CANDIDATES, SEED_IMPLEMENTATION, Scores, seed_words
from jax_tkg.reference.candidates import LOWEST
from jax_tkg.serving.request import Event, Request
from jax_tkg.serving.slot_caches import BlockCaches, FlatCaches, SlotCaches
from jax_tkg.serving.slot_sampling import (
    Settings,
    SettingsTable,
    Way,
    choose,
    choose_candidates,
)

PROMPT_TOKENS = 256
"""Tokens of prompts that are read between two decode steps, unless told otherwise."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotState:
    """What choosing tokens carries from step to step; a pytree, made to be donated.

    Attributes:
      tokens: [B] int32, the token of each slot that is not yet in the caches.
      key: [B] PRNG keys.
      seen: [B, V] bool, the tokens in each prompt and answer, of slots that are penalized.
    """

    tokens: Any
    key: Any
    seen: Any


@dataclasses.dataclass
class _Served:
    """A request that has a slot.

    Attributes:
      name: the request's id.
      request: as submitted.
      slot: its slot.
      chunks: of the prompt, but for its last token, that are still to be read.
      length: tokens in the caches, once the prompt is read.
      count: tokens of the answer so far.
      is_finite: whether what it has written is known to be finite: its last scores were numbers.
    """

    name: int
    request: Request
    slot: int
    chunks: collections.deque[Chunk]
    length: int
    count: int = 0
    is_finite: bool = False


class RunningBatch:
    """Answers requests in a fixed number of slots, step by step.

    Requests wait in a line. The first one is admitted when a slot is free, and blocks for its
    prompt and its longest answer where caches are in blocks; its prompt is read in chunks between
    the steps of the others. Then each step gives each slot a token, chosen with the request's own
    settings. A request that ends or is cancelled frees its slot for the next one.

    An answer is that of the request alone, as `jax_tkg.models.decode.Decoder` gives it with the
    key of the request's seed, up to rounding: the step of a batch, and of a context bucket that
    another sequence needs, may add in another order.

    A request whose scores are not numbers, since activations of it exceed the range of the dtype,
    ends with the finish reason "error". What it has left in the caches is cleared.

    Shapes do not depend on the requests, but for sizes of chunks and context buckets: `prepare`
    compiles them ahead. `submit` and `cancel` may be called by any thread, the rest by one at a
    time. What raises an error in `step` leaves the batch unusable: its caches were donated.

    Args:
      model: packed for `mesh`'s ranks; or the outline of one, for which `prepare` can compile
        before `place` brings the arrays.
      slots: B, how many requests are answered at once.
      capacity: the longest sequence in tokens, prompt and answer together.
      mesh: one axis named "tp" (`jax_tkg.models.placed_parameters.TENSOR_AXIS`), of the size the
        model is packed for; None for one device.
      stop_tokens: ids that end an answer, unless its request has its own.
      implementation: of `transformer_tkg`.
      prefill: how prompts are read, as in `Decoder`.
      prompt_tokens: prompts are read between two steps until so many tokens are, padding included:
        fewer for even steps, more for prompts that are read sooner.
      blocks: blocks that all slots share, in place of caches of `capacity` tokens for each slot.
        For models without sliding windows.
      block_len: tokens of a block; the capacity is a multiple of it.
      candidates: as in `Decoder`; where every request that is being answered asks for the likeliest
        tokens only.
      context_parallel: as in `Decoder`; for flat caches.

    Raises:
      ValueError: a number is out of range, or the mesh or blocks do not fit the model, or ranks
        are to share out contexts in blocks.
    """

    def __init__(
        self,
        model: PackedModel,
        slots: int,
        capacity: int,
        mesh: jax.sharding.Mesh | None = None,
        stop_tokens: Sequence[int] = (),
        implementation: str = "auto",
        prefill: bool | None = None,
        prompt_tokens: int = PROMPT_TOKENS,
        blocks: int | None = None,
        block_len: int = 256,
        candidates: bool | None = None,
        context_parallel: int = 1,
    ):
        slots, capacity = as_integer("slots", slots), as_integer("capacity", capacity)
        for name, number in (("slots", slots), ("prompt_tokens", prompt_tokens)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        longest = model.config.context_length
        if not 2 <= capacity <= longest:
            raise ValueError(
                f"capacity: expected 2..{longest} tokens (the model's context length), "
                f"got {capacity}"
            )
        self.slots = slots
        self.capacity = capacity
        self.stop_tokens = frozenset(as_integers("stop_tokens", stop_tokens))
        self._prompt_tokens = prompt_tokens
        self._forward = forward = ModelForward(
            model,
            mesh,
            implementation,
            capacity=capacity,
            candidates=candidates,
            context_parallel=context_parallel,
        )
        self._prompts = PromptReader(forward, capacity, prefill, longest_chunk=prompt_tokens)
        self._caches: SlotCaches
        if blocks is None:
            self._caches = FlatCaches(forward, slots, capacity)
        else:
            self._caches = BlockCaches(forward, slots, capacity, blocks, block_len)
        # Of the prompt that is being read.
        self._prompt_caches = forward.caches(1)
        self._state = self._fresh_state()
        self._settings = SettingsTable(slots)
        self._served: dict[int, _Served] = {}
        self._reading: _Served | None = None
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._present: set[int] = set()
        self._cancelled: set[int] = set()

        whole, cached = forward.replicated, forward.cache_sharding
        state = SlotState(whole, whole, whole)
        self._step = Executables(
            self._traced_step,
            ("S_ctx", "candidates"),
            donate_argnums=(4,),
            **on_mesh(forward.mesh, (whole, (cached, cached))),
        )
        self._choose = Executables(
            self._traced_choice, ("way",), donate_argnums=(2,), **on_mesh(forward.mesh, state)
        )
        self._insert = Executables(
            self._traced_insertion,
            ("length",),
            donate_argnums=(0, 2),
            **on_mesh(forward.mesh, ((cached, cached), (cached, cached))),
        )
        self._enter = Executables(
            _traced_entry, (), donate_argnums=(0,), **on_mesh(forward.mesh, state)
        )

    @property
    def compile_count(self) -> int:
        """Executables compiled so far."""
        return sum(function.count for function in self._functions)

    @property
    def compile_seconds(self) -> float:
        """Time for which calls have waited for compiling so far."""
        return sum(function.seconds for function in self._functions)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._waiting)

    @property
    def free_slots(self) -> int:
        """How many slots no request has."""
        return self.slots - len(self._served)

    @property
    def free_blocks(self) -> int | None:
        """How many blocks no request has; None where caches are flat."""
        return self._caches.pool.free if isinstance(self._caches, BlockCaches) else None

    @property
    def idle(self) -> bool:
        """Whether no request waits or is being answered."""
        return not self._present

    @property
    def _functions(self) -> tuple[Executables, ...]:
        return (*self._prompts.functions, self._step, self._choose, self._insert, self._enter)

    def place(self, model: PackedModel) -> None:
        """Puts a model on the devices, in place of the arrays, or the outline, held so far.

        Args:
          model: of the same config, packed for as many ranks. Where its arrays differ in shape from
            those before, what was compiled for those is dropped.
        """
        if not self._forward.place(model):
            for function in self._functions:
                function.forget()

    def prepare(
        self, threads: concurrent.futures.Executor, longest: int | None = None
    ) -> list[Compiled]:
        """Compiles in threads all that requests of up to `longest` tokens need.

        Args:
          threads: compiles; see `jax_tkg.models.executables.Executables.prepare`.
          longest: tokens of prompt and answer together; None: the capacity.

        Returns:
          The executables, for which `step` waits where it needs them. Each holds the error that
          tracing raised, such as a ValueError where the implementation cannot run here.
        """
        longest = self.capacity if longest is None else min(longest, self.capacity)
        parameters = self._forward.parameters
        caches, prompt_caches, state = jax.tree.map(
            _shape, (self._caches.arrays, self._prompt_caches, self._state)
        )
        counts = np.zeros(self.slots, np.int32)
        # The last token of the answer is not written, and that of the prompt not read.
        most = longest - 2
        prepared = [
            executable
            for length in (*(size for size in self._prompts.chunk_sizes if size < most), most)
            for executable in self._prompts.prepare(threads, 1, length)
        ]
        lengths = (*range(SMALLEST_CONTEXT - 1, most, SMALLEST_CONTEXT), most)
        for S_ctx, length in {self._caches.bucket(length): length for length in lengths}.items():
            arrays = (state.tokens, counts, counts, caches, self._caches.tables(S_ctx))
            prepared += [
                self._step.prepare(threads, parameters, *arrays, S_ctx=S_ctx, candidates=candidates)
                for candidates in self._candidate_counts
            ]
            target = self._caches.target(0, length)
            prepared.append(
                self._insert.prepare(threads, caches, target, prompt_caches, length=S_ctx)
            )
        prepared += [
            self._choose.prepare(
                threads, self._settings.settings, self._score_shapes(candidates), state, way=way
            )
            for candidates in self._candidate_counts
            for way in (Way if candidates is None else (Way.LIKELIEST,))
        ]
        entry = self._entry(0, Request(prompt=[0]))
        prepared.append(self._enter.prepare(threads, state, *entry))
        return list(dict.fromkeys(prepared))

    def submit(self, request: Request) -> int:
        """Puts a request at the end of the line.

        Returns:
          The id that the request's events have.

        Raises:
          ValueError: the prompt leaves no room for an answer, has an id outside the vocabulary, or
            needs more blocks than there are.
        """
        vocabulary = self._vocabulary_size
        if len(request.prompt) >= self.capacity:
            raise ValueError(
                f"prompt: expected fewer than {self.capacity} tokens (the capacity), "
                f"got {len(request.prompt)}"
            )
        for token in request.prompt:
            if not 0 <= token < vocabulary:
                raise ValueError(f"prompt: expected token ids 0..{vocabulary - 1}, got {token}")
        self._caches.check(self._longest(request))
        with self._lock:
            name = next(self._ids)
            self._waiting.append((name, request))
            self._present.add(name)
        return name

    def cancel(self, request: int) -> bool:
        """Ends a request: steps that begin later have no event of it, and its slot is free.

        Args:
          request: its id.

        Returns:
          Whether it was waiting or being answered.
        """
        with self._lock:
            if request not in self._present:
                return False
            self._present.remove(request)
            waiting = [entry for entry in self._waiting if entry[0] != request]
            if len(waiting) == len(self._waiting):
                self._cancelled.add(request)
            self._waiting = collections.deque(waiting)
            return True

    def step(self) -> list[Event]:
        """Reads prompts for a while, and then gives each slot whose prompt is read a token.

        Returns:
          The tokens. None where no prompt is read yet, or the batch is idle.
        """
        self._free_cancelled()
        self._read_prompts()
        decoding = [served for served in self._served.values() if not served.chunks]
        if not decoding:
            return []
        lengths, counts = np.zeros((2, self.slots), np.int32)
        for served in decoding:
            lengths[served.slot], counts[served.slot] = served.length, 1
        S_ctx = self._caches.bucket(int(np.max(lengths)))
        slots = [served.slot for served in decoding]
        candidates = self._settings.candidates(slots)
        if candidates not in self._candidate_counts:
            candidates = None
        scores, self._caches.arrays = self._step(
            self._forward.parameters,
            self._state.tokens,
            lengths,
            counts,
            self._caches.arrays,
            self._caches.tables(S_ctx),
            S_ctx=S_ctx,
            candidates=candidates,
        )
        # Candidates are chosen from in one way.
        way = self._settings.way(slots) if scores.ids is None else Way.LIKELIEST
        self._state = self._choose(self._settings.settings, scores, self._state, way=way)
        tokens = np.asarray(self._state.tokens).tolist()
        events = [self._event(served, tokens[served.slot]) for served in decoding]
        return [event for event in events if event is not None]

    def _free_cancelled(self) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
        for name in cancelled:
            self._free(self._served[name])

    def _free(self, served: _Served) -> None:
        """Takes a request out of its slot, which then has finite numbers for the next one."""
        del self._served[served.name]
        if self._reading is served:
            self._reading = None
            self._prompt_caches = self._forward.caches(1)
        elif not served.is_finite:
            self._insert_prompt(served.slot, self._longest(served.request), self._forward.caches(1))
        self._caches.release(served.slot)

    def _read_prompts(self) -> None:
        """Reads prompts, and admits requests, until `prompt_tokens` are read."""
        left = self._prompt_tokens
        while left > 0:
            served = self._reading or self._admitted()
            if served is None:
                return
            self._reading = served
            if served.chunks:
                chunk = served.chunks[0]
                self._prompt_caches = self._prompts.read_chunk(
                    [served.request.prompt[:-1]], chunk, *self._prompt_caches
                )
                served.chunks.popleft()
                left -= chunk.size
            if not served.chunks:
                self._start(served)
                self._reading = None

    def _admitted(self) -> _Served | None:
        """The first request in the line, in a slot; None where it has to wait or there is none."""
        taken = {served.slot for served in self._served.values()}
        slot = next((slot for slot in range(self.slots) if slot not in taken), None)
        if slot is None:
            return None
        with self._lock:
            if not self._waiting:
                return None
            name, request = self._waiting[0]
            if not self._caches.reserve(slot, self._longest(request)):
                return None
            self._waiting.popleft()
            # The last token of the prompt is left to a step, which chooses the next one.
            length = len(request.prompt) - 1
            chunks = collections.deque(self._prompts.chunks(length))
            served = self._served[name] = _Served(name, request, slot, chunks, length)
            return served

    def _start(self, served: _Served) -> None:
        """Puts a request whose prompt is read among those that are decoded."""
        if served.length:
            self._prompt_caches = self._insert_prompt(
                served.slot, served.length, self._prompt_caches
            )
        self._settings.put(served.slot, served.request.sampling)
        self._state = self._enter(self._state, *self._entry(served.slot, served.request))

    def _insert_prompt(self, slot: int, length: int, prompt_caches: Any) -> Any:
        """Puts the first `length` tokens of a prompt's caches into a slot.

        Returns:
          The prompt's caches for the next one, with zeros in place of what is not finite.
        """
        self._caches.arrays, prompt_caches = self._insert(
            self._caches.arrays,
            self._caches.target(slot, length),
            prompt_caches,
            length=self._caches.bucket(length),
        )
        return prompt_caches

    def _event(self, served: _Served, token: int) -> Event | None:
        """Counts a token; None where the request was cancelled during the step."""
        served.length += 1
        served.count += 1
        served.is_finite = token != NO_TOKEN
        request = served.request
        reason = None
        stops = self.stop_tokens if request.stop_tokens is None else request.stop_tokens
        if not served.is_finite:
            reason = "error"
        elif token in stops:
            reason = "stop"
        elif served.count >= request.max_tokens or served.length + 1 >= self.capacity:
            reason = "length"
        with self._lock:
            if served.name in self._cancelled:
                return None
            if reason is not None:
                self._present.remove(served.name)
        if reason is not None:
            self._free(served)
        return Event(served.name, token if served.is_finite else None, reason)

    def _longest(self, request: Request) -> int:
        """Most tokens that a request writes into the caches."""
        return min(len(request.prompt) + request.max_tokens, self.capacity) - 1

    @property
    def _vocabulary_size(self) -> int:
        return self._forward.model.config.vocabulary_size

    @property
    def _candidate_counts(self) -> tuple[int | None, ...]:
        """What steps may be asked for; None for all logits."""
        return (None, 1, MOST_CANDIDATES) if self._forward.takes_candidates else (None,)

    def _score_shapes(self, candidates: int | None) -> Scores:
        """The shapes of what a step gives."""
        vocabulary = self._vocabulary_size
        n = vocabulary if candidates is None else min(candidates, vocabulary)

        def shape(dtype: Any) -> jax.ShapeDtypeStruct:
            sharding = self._forward.replicated
            return jax.ShapeDtypeStruct((self.slots, n), dtype, sharding=sharding)

        return Scores(shape(jnp.float32), None if candidates is None else shape(jnp.int32))

    def _fresh_state(self) -> SlotState:
        words = jnp.zeros((self.slots, 2), jnp.uint32)
        state = SlotState(
            tokens=jnp.zeros(self.slots, jnp.int32),
            key=jax.random.wrap_key_data(words, impl=SEED_IMPLEMENTATION),
            seen=jnp.zeros((self.slots, self._vocabulary_size), jnp.bool_),
        )
        return jax.device_put(state, self._forward.replicated)

    def _entry(self, slot: int, request: Request) -> tuple[np.ndarray, ...]:
        """What `_traced_entry` is given."""
        seen = np.zeros(self._vocabulary_size, np.bool_)
        if request.sampling.penalizes:
            seen[list(request.prompt)] = True
        numbers = np.asarray(slot, np.int32), np.asarray(request.prompt[-1], np.int32)
        return (*numbers, seed_words([request.seed])[0], seen)

    def _traced_step(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        caches: tuple[Any, Any],
        tables: jax.Array | None,
        S_ctx: int,
        candidates: int | None,
    ) -> tuple[Scores, tuple[Any, Any]]:
        # A slot whose request has ended so may have no token.
        tokens = jnp.maximum(tokens, 0)
        scores, *updated = self._forward.scores(
            parameters, tokens[:, None], lengths, counts, *caches, S_ctx, candidates, tables
        )
        K_caches, V_caches = updated
        return scores.at(0), (K_caches, V_caches)

    def _traced_choice(
        self, settings: Settings, scores: Scores, state: SlotState, way: Way
    ) -> SlotState:
        keys = jax.vmap(jax.random.split)(state.key)
        seen = state.seen
        if scores.ids is not None:
            # Of those that are penalized, all logits are needed.
            tokens = choose_candidates(scores, keys[:, 1], settings, self._vocabulary_size)
            return SlotState(tokens=_of_numbers(tokens, scores), key=keys[:, 0], seen=seen)
        tokens = _of_numbers(choose(scores.logits, keys[:, 1], settings, seen, way), scores)
        if way is not Way.LIKELIEST:
            # Of those that are not penalized it is never asked.
            penalized = (settings.penalty != 1)[:, None]
            seen |= penalized & jax.nn.one_hot(tokens, seen.shape[1], dtype=jnp.bool_)
        return SlotState(tokens=tokens, key=keys[:, 0], seen=seen)

    def _traced_insertion(
        self, caches: tuple[Any, Any], target: jax.Array, new: tuple[Any, Any], length: int
    ) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        inserted = self._caches.inserted(caches, target, new, length)
        return inserted, self._caches.finite(new, length)


def _of_numbers(tokens: jax.Array, scores: Scores) -> jax.Array:
    """`tokens`, or `NO_TOKEN` where scores are NaN, which is `LOWEST` among candidates."""
    return jnp.where(jnp.max(scores.logits, axis=-1) > LOWEST, tokens, NO_TOKEN)


def _traced_entry(
    state: SlotState, slot: jax.Array, token: jax.Array, words: jax.Array, seen: jax.Array
) -> SlotState:
    """Gives a slot its first token, its key and the tokens of its prompt."""
    key = jax.random.wrap_key_data(words, impl=SEED_IMPLEMENTATION)
    return SlotState(
        tokens=state.tokens.at[slot].set(token),
        key=state.key.at[slot].set(key),
        seen=state.seen.at[slot].set(seen),
    )


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
