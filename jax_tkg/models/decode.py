"""Prefill and decode of a batch of prompts, through `transformer_tkg` only.

A prompt is read in chunks of up to 8 tokens, the most one call takes; then one token a step. The
context bucket S_ctx, which is a shape and so costs a compilation, grows in powers of two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.limits import MAX_NEW_TOKENS
from jax_tkg.models.executables import Executables
from jax_tkg.models.forward import LlamaForward, PlacedParameters
from jax_tkg.models.llama import LlamaModel
from jax_tkg.models.sampling import Sampling, sample

SMALLEST_CONTEXT = 128
"""Smallest context bucket, in tokens."""

STEPS_PER_SCAN = 32
"""Steps of one on-device loop: between loops it is seen whether every sequence has finished."""

NO_TOKEN = -1
"""Stands where a sequence that has finished says nothing."""


def context_bucket(length: int, capacity: int) -> int:
    """S_ctx for caches that hold `length` tokens: a power of two, at least `SMALLEST_CONTEXT`.

    A sequence of n tokens thus costs at most 1 + log2(n / 128) compilations of each function.

    Args:
      length: tokens in the longest sequence's cache.
      capacity: S_max, which S_ctx never exceeds.
    """
    bucket = SMALLEST_CONTEXT
    while bucket < length:
        bucket *= 2
    return min(bucket, capacity)


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
      key: PRNG key.
      K_caches: key caches, as `LlamaForward.caches` makes them.
      V_caches: value caches.
    """

    tokens: Any
    lengths: Any
    finished: Any
    key: Any
    K_caches: Any
    V_caches: Any


class Decoder:
    """Runs a model over a batch of sequences.

    Args:
      model: packed for `mesh`'s ranks.
      capacity: S_max, the longest sequence in tokens, prompt and answer together.
      mesh: one axis named "tp" (`jax_tkg.models.forward.TENSOR_AXIS`), of the size the model is
        packed for; None for one device.
      sampling: how tokens are chosen; None for greedy.
      stop_tokens: ids that end a sequence.
      implementation: of `transformer_tkg`.

    Raises:
      ValueError: the mesh does not fit the model, or the capacity is no positive number within
        the model's context length.
    """

    def __init__(
        self,
        model: LlamaModel,
        capacity: int,
        mesh: jax.sharding.Mesh | None = None,
        sampling: Sampling | None = None,
        stop_tokens: Sequence[int] = (),
        implementation: str = "auto",
    ):
        if not 1 <= capacity <= model.config.context_length:
            raise ValueError(
                f"capacity: expected 1..{model.config.context_length} tokens (the model's context "
                f"length), got {capacity}"
            )
        self.capacity = capacity
        self.sampling = sampling or Sampling()
        self.stop_tokens = tuple(stop_tokens)
        self._forward = LlamaForward(model, mesh, implementation)
        mesh = self._forward.mesh
        whole, cached = self._forward.replicated, self._forward.cache_sharding
        state = DecodeState(whole, whole, whole, whole, cached, cached)
        self._read_chunk = Executables(
            self._traced_chunk,
            ("S_ctx",),
            donate_argnums=(4, 5, 6),
            **_placed(mesh, (whole, cached, cached)),
        )
        self._every_logit = Executables(
            self._traced_logits,
            ("S_ctx",),
            donate_argnums=(4, 5),
            **_placed(mesh, (whole, cached, cached)),
        )
        self._choose_first = Executables(
            self._traced_first, (), donate_argnums=(4, 5), **_placed(mesh, state)
        )
        self._step = Executables(
            self._traced_step, ("S_ctx",), donate_argnums=(1,), **_placed(mesh, state)
        )
        self._steps = Executables(
            self._traced_steps,
            ("S_ctx",),
            donate_argnums=(1,),
            **_placed(mesh, (state, whole)),
        )

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling so far."""
        return sum(function.seconds for function in self._functions)

    @property
    def compile_count(self) -> int:
        """Executables compiled so far."""
        return sum(function.count for function in self._functions)

    @property
    def _functions(self) -> tuple[Executables, ...]:
        return (
            self._read_chunk,
            self._every_logit,
            self._choose_first,
            self._step,
            self._steps,
        )

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        key: jax.Array | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> DecodeState:
        """Reads prompts into fresh caches and chooses each sequence's first token.

        Args:
          prompts: token ids of each sequence, one or more each, of any lengths.
          key: PRNG key; None for a fixed one.
          progress: called after each chunk with the tokens of the longest prompt read, and its
            length.

        Returns:
          The state that `step`, `stream` or `generate` continue from.

        Raises:
          ValueError: there is no prompt, one is empty or leaves no room for an answer, or holds
            an id outside the vocabulary.
        """
        self._check_prompts(prompts)
        batch, longest = len(prompts), max(map(len, prompts))
        K_caches, V_caches = self._forward.caches(batch, self.capacity)
        parameters = self._forward.parameters
        dtype = self._forward.model.parameters.head.dtype
        last = np.zeros((batch, self._forward.model.hidden_size), dtype)
        for start in range(0, longest, MAX_NEW_TOKENS):
            chunk, counts = _chunk(prompts, start)
            lengths = np.asarray([min(len(prompt), start) for prompt in prompts], np.int32)
            last, K_caches, V_caches = self._read_chunk(
                parameters,
                chunk,
                lengths,
                counts,
                last,
                K_caches,
                V_caches,
                S_ctx=context_bucket(start, self.capacity),
            )
            if progress is not None:
                progress(min(start + MAX_NEW_TOKENS, longest), longest)
        lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
        key = jax.random.key(0) if key is None else key
        if self._forward.replicated is not None:
            key = jax.device_put(key, self._forward.replicated)
        return self._choose_first(parameters, last, lengths, key, K_caches, V_caches)

    def step(self, state: DecodeState, S_ctx: int) -> DecodeState:
        """One decode step; the state is donated.

        Args:
          state: from `start` or a step before.
          S_ctx: context bucket, at least the longest sequence in the caches.
        """
        return self._step(self._forward.parameters, state, S_ctx=S_ctx)

    def stream(self, state: DecodeState, max_tokens: int) -> Iterator[np.ndarray]:
        """Decodes step by step.

        Args:
          state: from `start`; donated.
          max_tokens: most tokens per sequence; a sequence that fills the capacity ends before,
            alone.

        Yields:
          [B] int32 tokens of each step, `NO_TOKEN` for a sequence that has finished. A stop token
          is yielded once.
        """
        longest = int(np.asarray(state.lengths).max())
        for index in range(max_tokens):
            if index:
                state = self.step(state, context_bucket(longest + index - 1, self.capacity))
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
        return tokens[:, : spoken[-1] + 1]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token of one text.

        Args:
          tokens: n ids, 1 <= n <= capacity.

        Returns:
          [n, V] float32.

        Raises:
          ValueError: there is no token or there are too many, or one is outside the vocabulary.
        """
        self._check_prompts([tokens], room=0)
        K_caches, V_caches = self._forward.caches(1, self.capacity)
        rows = []
        for start in range(0, len(tokens), MAX_NEW_TOKENS):
            chunk, counts = _chunk([tokens], start)
            logits, K_caches, V_caches = self._every_logit(
                self._forward.parameters,
                chunk,
                np.asarray([start], np.int32),
                counts,
                K_caches,
                V_caches,
                S_ctx=context_bucket(start, self.capacity),
            )
            rows.append(np.asarray(logits)[0, : counts[0]])
        return np.concatenate(rows)

    def _check_prompts(self, prompts: Sequence[Sequence[int]], room: int = 1) -> None:
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        vocabulary = self._forward.model.config.vocabulary_size
        for index, prompt in enumerate(prompts):
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

    def _is_last(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B] bool: tokens that end their sequence, where the caches hold `lengths` before them."""
        is_stop = jnp.isin(tokens, jnp.asarray(self.stop_tokens, jnp.int32))
        return is_stop | (lengths + 1 >= self.capacity)

    def _traced_chunk(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        last: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int,
    ) -> tuple[jax.Array, Any, Any]:
        """`last` [B, H]: hidden states of the newest real token, kept where a chunk has none."""
        hidden, K_caches, V_caches = self._forward.hidden(
            parameters, tokens, lengths, counts, K_caches, V_caches, S_ctx
        )
        ends = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)
        last = jnp.where((counts > 0)[:, None], ends[:, 0], last)
        return last, K_caches, V_caches

    def _traced_logits(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int,
    ) -> tuple[jax.Array, Any, Any]:
        hidden, K_caches, V_caches = self._forward.hidden(
            parameters, tokens, lengths, counts, K_caches, V_caches, S_ctx
        )
        return self._forward.logits(parameters, hidden), K_caches, V_caches

    def _traced_first(
        self,
        parameters: PlacedParameters,
        last: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        K_caches: Any,
        V_caches: Any,
    ) -> DecodeState:
        key, first = jax.random.split(key)
        tokens = sample(self._forward.logits(parameters, last), first, self.sampling)
        return DecodeState(tokens, lengths, self._is_last(tokens, lengths), key, K_caches, V_caches)

    def _traced_step(
        self, parameters: PlacedParameters, state: DecodeState, S_ctx: int
    ) -> DecodeState:
        counts = jnp.where(state.finished, 0, 1)
        key, this_step = jax.random.split(state.key)
        hidden, K_caches, V_caches = self._forward.hidden(
            parameters,
            jnp.maximum(state.tokens, 0)[:, None],
            state.lengths,
            counts,
            state.K_caches,
            state.V_caches,
            S_ctx,
        )
        logits = self._forward.logits(parameters, hidden[:, 0])
        tokens = sample(logits, this_step, self.sampling)
        lengths = state.lengths + counts
        return DecodeState(
            tokens=jnp.where(state.finished, NO_TOKEN, tokens),
            lengths=lengths,
            finished=state.finished | self._is_last(tokens, lengths),
            key=key,
            K_caches=K_caches,
            V_caches=V_caches,
        )

    def _traced_steps(
        self, parameters: PlacedParameters, state: DecodeState, S_ctx: int
    ) -> tuple[DecodeState, jax.Array]:
        def body(state: DecodeState, _: None) -> tuple[DecodeState, jax.Array]:
            state = self._traced_step(parameters, state, S_ctx)
            return state, state.tokens

        return jax.lax.scan(body, state, None, length=STEPS_PER_SCAN)


def _placed(mesh: jax.sharding.Mesh | None, shardings: Any) -> dict[str, Any]:
    """Options of `Executables`, so that a state always comes back as it was given."""
    return {} if mesh is None else {"mesh": mesh, "out_shardings": shardings}


def _chunk(prompts: Sequence[Sequence[int]], start: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, 8] of the prompts from `start`, padded with 0, and how many are real [B]."""
    tokens = np.zeros((len(prompts), MAX_NEW_TOKENS), np.int32)
    counts = np.zeros(len(prompts), np.int32)
    for index, prompt in enumerate(prompts):
        piece = list(prompt[start : start + MAX_NEW_TOKENS])
        tokens[index, : len(piece)] = piece
        counts[index] = len(piece)
    return tokens, counts
