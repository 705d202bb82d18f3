"""Decoding of a batch of prompts, one token a step.

Prompts are read by `jax_tkg.models.prompts`. The context bucket S_ctx of a step, which is a shape
and so costs a compilation, grows in powers of two.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.caches import context_bucket
from jax_tkg.models.executables import Compiled, Executables, on_mesh
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.integers import as_integer, as_integers
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.placed_parameters import PlacedParameters
from jax_tkg.models.placing import put
from jax_tkg.models.prompts import PromptReader
from jax_tkg.models.sampling import Sampling, Scores, sample, sample_candidates, typed_key

STEPS_PER_SCAN = 32
"""Steps of one on-device loop: between loops it is seen whether every sequence has finished."""

STEPS_AHEAD = 64
"""Steps before its first use at which the step of the next context bucket begins to compile."""

NO_TOKEN = -1
"""Stands where a sequence that has finished says nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """What a decode loop carries from step to step; a pytree, made to be donated.

    Attributes:
      tokens: [B] int32, the token each sequence says next, not yet in the caches; `NO_TOKEN`
        after its end.
      lengths: [B] int32, tokens in each sequence's cache.
      finished: [B] bool, `tokens` is the sequence's last: a stop token, or the one with which
        prompt and answer fill the capacity.
      key: [B] PRNG keys, one of each sequence.
      K_caches: key caches, as `ModelForward.caches` makes them.
      V_caches: value caches.
      seen: [B, V] bool, the tokens in the prompt and the answer so far; None where the sampling
        does not ask.
    """

    tokens: Any
    lengths: Any
    finished: Any
    key: Any
    K_caches: Any
    V_caches: Any
    seen: Any = None


class Decoder:
    """Runs a model over a batch of sequences.

    Args:
      model: packed for `mesh`'s ranks; or the outline of one, for which `prepare` can compile
        before `place` brings the arrays.
      capacity: S_max, the longest sequence in tokens, prompt and answer together.
      mesh: one axis named "tp" (`jax_tkg.models.placed_parameters.TENSOR_AXIS`), of the size the
        model is packed for; None for one device.
      sampling: how tokens are chosen; None for greedy.
      stop_tokens: ids that end a sequence.
      implementation: of `transformer_tkg`.
      prefill: whether prompts are read by `jax_tkg.prefill`, in chunks of up to 512 tokens, or by
        `transformer_tkg`, 8 tokens a call. None: by the former unless the implementation is a
        kernel's, or the platform is Neuron.
      candidates: whether a step takes the likeliest tokens from `transformer_tkg`, with the head in
        the same call, where the sampling asks for no others (`Sampling.candidates`), or computes
        all logits. None: the former where our kernel runs and has room for it: "nki", "simulate",
        and "auto" on Neuron. The tokens are the same.
      context_parallel: ranks that share out the context of a KV head that they have in common, so
        that each has caches of so much fewer slots; 1: each holds all of it.

    Raises:
      ValueError: the mesh does not fit the model, too few ranks have a KV head in common, or
        the capacity is no positive number within the model's context length.
      TypeError: the capacity or a stop token is no integer.
    """

    def __init__(
        self,
        model: PackedModel,
        capacity: int,
        mesh: jax.sharding.Mesh | None = None,
        sampling: Sampling | None = None,
        stop_tokens: Sequence[int] = (),
        implementation: str = "auto",
        prefill: bool | None = None,
        candidates: bool | None = None,
        context_parallel: int = 1,
    ):
        capacity = as_integer("capacity", capacity)
        if not 1 <= capacity <= model.config.context_length:
            raise ValueError(
                f"capacity: expected 1..{model.config.context_length} tokens (the model's context "
                f"length), got {capacity}"
            )
        self.capacity = capacity
        self.sampling = sampling or Sampling()
        self.stop_tokens = as_integers("stop_tokens", stop_tokens)
        self._forward = ModelForward(
            model,
            mesh,
            implementation,
            capacity=capacity,
            candidates=candidates,
            context_parallel=context_parallel,
        )
        mesh, whole = self._forward.mesh, self._forward.replicated
        state = self._state_shardings()
        self._prompts = PromptReader(self._forward, capacity, prefill)
        self._step = Executables(
            self._traced_step, ("S_ctx",), donate_argnums=(1,), **on_mesh(mesh, state)
        )
        self._steps = Executables(
            self._traced_steps,
            ("S_ctx",),
            donate_argnums=(1,),
            **on_mesh(mesh, (state, whole)),
        )

    @property
    def compile_seconds(self) -> float:
        """Time for which calls have waited for compiling so far."""
        return sum(function.seconds for function in self._functions)

    @property
    def compile_count(self) -> int:
        """Executables compiled so far."""
        return sum(function.count for function in self._functions)

    @property
    def _functions(self) -> tuple[Executables, ...]:
        return (
            *self._prompts.functions,
            self._step,
            self._steps,
        )

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
        self,
        threads: concurrent.futures.Executor,
        lengths: Sequence[int],
        key: jax.Array | None = None,
        device_loop: bool = False,
    ) -> list[Compiled]:
        """Compiles in threads what `start` and the first steps after it run.

        Args:
          threads: compiles; see `Executables.prepare`.
          lengths: tokens of each prompt, one or more each.
          key: PRNG key or keys as `start` is given, whose kind counts.
          device_loop: whether `generate` follows, and not `stream`.

        Returns:
          The executables, which `start` waits for itself. Each holds the error that tracing raised,
          such as a ValueError where the implementation cannot run here.

        Raises:
          ValueError: there are several keys, but not one for each prompt.
          TypeError: `key` is no PRNG key.
        """
        batch, longest = len(lengths), max(lengths)
        state = self._state_shapes(batch, key)
        parameters = self._forward.parameters
        prepared = self._prompts.prepare(threads, batch, longest - 1)
        S_ctx = context_bucket(longest, self.capacity)
        prepared.insert(1, self._step.prepare(threads, parameters, state, S_ctx=S_ctx))
        if device_loop:
            S_ctx = context_bucket(longest + STEPS_PER_SCAN - 1, self.capacity)
            prepared.append(self._steps.prepare(threads, parameters, state, S_ctx=S_ctx))
        return prepared

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        key: jax.Array | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> DecodeState:
        """Reads prompts into fresh caches and chooses each sequence's first token.

        Args:
          prompts: token ids of each sequence, one or more each, of any lengths.
          key: PRNG key; or [B] keys, with which a sequence draws the same tokens in any batch;
            None for a fixed key. Those of `jax.random.PRNGKey` are taken too.
          progress: called after each chunk with the tokens of the longest prompt read, and its
            length.

        Returns:
          The state that `step`, `stream` or `generate` continue from.

        Raises:
          ValueError: there is no prompt, one is empty or leaves no room for an answer, or holds
            an id outside the vocabulary; or there are several keys, but not one for each prompt.
          TypeError: a token id is no integer, or `key` is no PRNG key.
        """
        prompts = self._checked(prompts)
        batch, longest = len(prompts), max(map(len, prompts))
        key = typed_key(key, batch, "prompts")
        # Gathered, and so copied: the state is donated, and the caller's keys are not.
        key = key[np.arange(batch)] if key.ndim else jax.random.split(key, batch)
        caches = self._forward.caches(batch)
        state = self._state(key, [prompt[-1] for prompt in prompts], *caches)
        if self.sampling.penalizes:
            state = dataclasses.replace(state, seen=self._placed(self._seen(prompts)))
        # The last token of each prompt is left to a step, which chooses the next one.
        beginnings = [prompt[:-1] for prompt in prompts]

        def report(done: int) -> None:
            if progress is not None:
                progress(done, longest)

        K_caches, V_caches = self._prompts.read(beginnings, *caches, report)
        state = dataclasses.replace(
            state,
            lengths=self._placed(np.asarray([len(prompt) for prompt in beginnings], np.int32)),
            K_caches=K_caches,
            V_caches=V_caches,
        )
        # The bucket of the steps that follow, so that this one needs no executable of its own.
        state = self.step(state, context_bucket(longest, self.capacity))
        if progress is not None:
            progress(longest, longest)
        return state

    def step(self, state: DecodeState, S_ctx: int) -> DecodeState:
        """One decode step; the state is donated.

        Args:
          state: from `start` or a step before.
          S_ctx: context bucket, at least the longest sequence in the caches.
        """
        return self._step(self._forward.parameters, state, S_ctx=S_ctx)

    def stream(
        self,
        state: DecodeState,
        max_tokens: int,
        threads: concurrent.futures.Executor | None = None,
    ) -> Iterator[np.ndarray]:
        """Decodes step by step.

        Args:
          state: from `start`; donated.
          max_tokens: most tokens per sequence; a sequence that fills the capacity ends before,
            alone.
          threads: compiles the step of the next context bucket some tokens ahead of its use; None
            to compile it when it is needed. See `Executables.prepare`.

        Yields:
          [B] int32 tokens of each step, `NO_TOKEN` for a sequence that has finished. A stop token
          is yielded once.
        """
        longest = int(np.asarray(state.lengths).max())
        for index in range(as_integer("max_tokens", max_tokens)):
            if index:
                state = self.step(state, context_bucket(longest + index - 1, self.capacity))
            if threads is not None and index + STEPS_AHEAD < max_tokens:
                ahead = context_bucket(longest + index + STEPS_AHEAD, self.capacity)
                shapes = jax.tree.map(shape_of, state)
                self._step.prepare(threads, self._forward.parameters, shapes, S_ctx=ahead)
            yield np.array(state.tokens)
            if np.asarray(state.finished).all():
                return

    def generate(self, state: DecodeState, max_tokens: int) -> np.ndarray:
        """Decodes on the device, `STEPS_PER_SCAN` steps to a `lax.scan`.

        Args:
          state: from `start`; donated.
          max_tokens: most tokens per sequence; a sequence that fills the capacity ends before,
            alone.

        Returns:
          [B, n] int32 with n <= max_tokens, the tokens that `stream` yields; `NO_TOKEN` after a
          sequence's stop token.
        """
        max_tokens = max(as_integer("max_tokens", max_tokens), 0)
        length = int(np.asarray(state.lengths).max())
        pieces = [np.array(state.tokens)[:, None]]
        while (
            sum(piece.shape[1] for piece in pieces) < max_tokens
            and not np.asarray(state.finished).all()
        ):
            length += STEPS_PER_SCAN
            # Steps beyond the wanted ones are run and dropped: a count of its own would have to
            # be compiled. They write nothing past the capacity.
            S_ctx = context_bucket(length - 1, self.capacity)
            state, tokens = self._steps(self._forward.parameters, state, S_ctx=S_ctx)
            pieces.append(np.asarray(tokens).T)
        tokens = np.concatenate(pieces, axis=1)[:, :max_tokens]
        spoken = np.flatnonzero((tokens != NO_TOKEN).any(axis=0))
        return tokens[:, : spoken.max(initial=-1) + 1]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token of one text.

        Args:
          tokens: n ids, 1 <= n <= capacity.

        Returns:
          [n, V] float32.

        Raises:
          ValueError: there is no token or there are too many, or one is outside the vocabulary.
          TypeError: one is no integer.
        """
        (tokens,) = self._checked([tokens], room=0)
        return self._prompts.logits(tokens)

    def _state(
        self, key: jax.Array, tokens: Sequence[int], K_caches: Any, V_caches: Any
    ) -> DecodeState:
        """A state of empty caches, with the token that each sequence says next."""
        batch = len(tokens)
        return DecodeState(
            tokens=self._placed(np.asarray(tokens, np.int32)),
            lengths=self._placed(np.zeros(batch, np.int32)),
            finished=self._placed(np.zeros(batch, np.bool_)),
            key=self._placed(key),
            K_caches=K_caches,
            V_caches=V_caches,
        )

    def _state_shardings(self) -> DecodeState:
        """The sharding of each array of a state."""
        whole, cached = self._forward.replicated, self._forward.cache_sharding
        seen = whole if self.sampling.penalizes else None
        return DecodeState(whole, whole, whole, whole, cached, cached, seen)

    def _state_shapes(self, batch: int, key: jax.Array | None) -> DecodeState:
        """A state with shapes in place of arrays; `key` as in `prepare`."""
        whole = self._forward.replicated

        def shape(*sizes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)

        K_caches, V_caches = self._forward.cache_shapes(batch)
        seen = None
        if self.sampling.penalizes:
            seen = shape(batch, self._vocabulary_size, dtype=jnp.bool_)
        return DecodeState(
            tokens=shape(batch),
            lengths=shape(batch),
            finished=shape(batch, dtype=jnp.bool_),
            key=shape(batch, dtype=typed_key(key, batch, "prompts").dtype),
            K_caches=K_caches,
            V_caches=V_caches,
            seen=seen,
        )

    def _seen(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """[B, V] bool: the tokens of each prompt."""
        seen = np.zeros((len(prompts), self._vocabulary_size), np.bool_)
        for row, prompt in zip(seen, prompts, strict=True):
            row[list(prompt)] = True
        return seen

    @property
    def _vocabulary_size(self) -> int:
        return self._forward.model.config.vocabulary_size

    def _placed(self, array: Any) -> jax.Array:
        """An array as the steps return theirs: whole on every device."""
        return put(array, self._forward.replicated)

    def _checked(self, prompts: Sequence[Sequence[int]], room: int = 1) -> list[tuple[int, ...]]:
        """Prompts that there is room for, of token ids of the vocabulary."""
        checked = [as_integers(f"prompts[{index}]", one) for index, one in enumerate(prompts)]
        if not checked:
            raise ValueError("prompts: expected at least one, got none")
        vocabulary = self._vocabulary_size
        for index, prompt in enumerate(checked):
            if not 1 <= len(prompt) <= self.capacity - room:
                raise ValueError(
                    f"prompts[{index}]: expected 1..{self.capacity - room} tokens (capacity "
                    f"{self.capacity} less {room} for the answer), got {len(prompt)}"
                )
            for token in prompt:
                if not 0 <= token < vocabulary:
                    raise ValueError(
                        f"prompts[{index}]: expected token ids 0..{vocabulary - 1}, got {token}"
                    )
        return checked

    def _is_last(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B] bool: tokens that end their sequence, where the caches hold `lengths` before them."""
        is_stop = jnp.isin(tokens, jnp.asarray(self.stop_tokens, jnp.int32))
        return is_stop | (lengths + 1 >= self.capacity)

    def _traced_step(
        self, parameters: PlacedParameters, state: DecodeState, S_ctx: int
    ) -> DecodeState:
        counts = jnp.where(state.finished, 0, 1)
        keys = jax.vmap(jax.random.split)(state.key)
        scores, K_caches, V_caches = self._forward.scores(
            parameters,
            jnp.maximum(state.tokens, 0)[:, None],
            state.lengths,
            counts,
            state.K_caches,
            state.V_caches,
            S_ctx,
            self.sampling.candidates,
        )
        tokens = self._chosen(scores.at(0), keys[:, 1], state.seen)
        seen = state.seen
        if seen is not None:
            seen |= jax.nn.one_hot(tokens, seen.shape[1], dtype=jnp.bool_)
        lengths = state.lengths + counts
        return DecodeState(
            tokens=jnp.where(state.finished, NO_TOKEN, tokens),
            lengths=lengths,
            finished=state.finished | self._is_last(tokens, lengths),
            key=keys[:, 0],
            K_caches=K_caches,
            V_caches=V_caches,
            seen=seen,
        )

    def _chosen(self, scores: Scores, keys: jax.Array, seen: jax.Array | None) -> jax.Array:
        """[B] int32: a token of each sequence."""
        if scores.ids is None:
            return sample(scores.logits, keys, self.sampling, seen)
        return sample_candidates(scores, keys, self.sampling, self._vocabulary_size)

    def _traced_steps(
        self, parameters: PlacedParameters, state: DecodeState, S_ctx: int
    ) -> tuple[DecodeState, jax.Array]:
        def body(state: DecodeState, _: None) -> tuple[DecodeState, jax.Array]:
            state = self._traced_step(parameters, state, S_ctx)
            return state, state.tokens

        return jax.lax.scan(body, state, None, length=STEPS_PER_SCAN)


def shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape, dtype and sharding of an array, to compile for."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
