"""Prefill and decode of a batch of prompts, through `transformer_tkg` only.

A prompt is read in chunks of up to 8 tokens, the most one call takes; then one token a step. The
context bucket S_ctx, which is a shape and so costs a compilation, grows in powers of two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.arguments import MAX_NEW_TOKENS
from jax_tkg.caches import allocate_caches
from jax_tkg.masks import active_mask, cache_mask
from jax_tkg.models.llama import LlamaModel, LlamaParameters
from jax_tkg.models.sampling import Sampling, sample
from jax_tkg.reference.rms_norm import rms_norm
from jax_tkg.rope import tables_of_frequencies
from jax_tkg.sharding import partition_specs
from jax_tkg.transformer_tkg import transformer_tkg

SMALLEST_CONTEXT = 128
"""Smallest context bucket, in tokens."""

TENSOR_AXIS = "tp"
"""Name of the mesh axis over which the model is split."""


def context_bucket(length: int, capacity: int) -> int:
    """S_ctx for caches that hold `length` tokens: a power of two, at least `SMALLEST_CONTEXT`.

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
      tokens: [B] int32, the token each sequence says next; not yet in the caches.
      lengths: [B] int32, tokens in each sequence's cache.
      finished: [B] bool, the sequence has said a stop token, or was empty.
      key: PRNG key.
      K_caches: key caches, a list per layer.
      V_caches: value caches.
    """

    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array
    key: jax.Array
    K_caches: Any
    V_caches: Any


class Decoder:
    """Runs a model over a batch of sequences.

    Args:
      model: packed for `mesh`'s ranks.
      capacity: S_max, the longest sequence in tokens, prompt and answer together.
      mesh: one axis named `TENSOR_AXIS`, of the size the model is packed for; None for one
        device.
      sampling: how tokens are chosen.
      stop_tokens: ids that end a sequence.

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
    ):
        if not 1 <= capacity <= model.config.context_length:
            raise ValueError(
                f"capacity: expected 1..{model.config.context_length} tokens (the model's context "
                f"length), got {capacity}"
            )
        ranks = 1 if mesh is None else mesh.shape[TENSOR_AXIS]
        if ranks != model.tensor_parallel:
            raise ValueError(
                f"mesh: expected {model.tensor_parallel} devices, as the model is packed for, "
                f"got {ranks}"
            )
        self.model = model
        self.capacity = capacity
        self.mesh = mesh
        self.sampling = sampling or Sampling()
        self.stop_tokens = tuple(stop_tokens)
        self._frequencies = model.config.rope_frequencies()
        self._parameters = self._placed(model.parameters)
        self._prefill = jax.jit(
            self._prefill_chunk, static_argnames="S_ctx", donate_argnames=("K_caches", "V_caches")
        )
        self._decode = jax.jit(self._step, static_argnames="S_ctx", donate_argnames="state")
        self._scan = jax.jit(
            self._many_steps, static_argnames=("count", "S_ctx"), donate_argnames="state"
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
          ValueError: a prompt is empty, or leaves no room for an answer.
        """
        for index, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < self.capacity:
                raise ValueError(
                    f"prompts[{index}]: expected 1..{self.capacity - 1} tokens (capacity "
                    f"{self.capacity} less one for the answer), got {len(prompt)}"
                )
        key, first = jax.random.split(jax.random.key(0) if key is None else key)
        logits, K_caches, V_caches = self._read(prompts, progress)
        tokens = sample(logits, first, self.sampling)
        return DecodeState(
            tokens=tokens,
            lengths=jnp.asarray([len(prompt) for prompt in prompts], jnp.int32),
            finished=self._is_stop(tokens),
            key=key,
            K_caches=K_caches,
            V_caches=V_caches,
        )

    def step(self, state: DecodeState, S_ctx: int) -> DecodeState:
        """One jitted decode step; the state is donated.

        Args:
          state: from `start` or a step before.
          S_ctx: context bucket, at least the longest sequence in the caches.
        """
        return self._decode(self._parameters, state, S_ctx=S_ctx)

    def stream(self, state: DecodeState, max_tokens: int) -> Iterator[np.ndarray]:
        """Decodes step by step.

        Args:
          state: from `start`; donated.
          max_tokens: most tokens per sequence.

        Yields:
          [B] int32 tokens of each step, -1 for a sequence that has finished. A stop token is
          yielded once.
        """
        longest = int(state.lengths.max())
        for index in range(min(max_tokens, self.capacity - longest)):
            if index:
                length = longest + index
                state = self.step(state, context_bucket(length, self.capacity))
            tokens, finished = np.array(state.tokens), np.array(state.finished)
            yield tokens
            if (finished | (tokens < 0)).all():
                return

    def generate(self, state: DecodeState, max_tokens: int) -> np.ndarray:
        """Decodes on the device, in one `lax.scan`; the tokens are those of `stream`.

        Args:
          state: from `start`; donated.
          max_tokens: most tokens per sequence.

        Returns:
          [B, n] int32 with n <= max_tokens; -1 after a sequence's stop token.
        """
        longest = int(state.lengths.max())
        count = min(max_tokens, self.capacity - longest)
        first = np.array(state.tokens)
        S_ctx = context_bucket(longest + count, self.capacity)
        _, tokens = self._scan(self._parameters, state, count=count - 1, S_ctx=S_ctx)
        return np.concatenate([first[:, None], np.asarray(tokens).T], axis=1)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token of one text.

        Args:
          tokens: n ids, n <= capacity.

        Returns:
          [n, V] float32.
        """
        K_caches, V_caches = self._caches(1)
        rows = []
        for start in range(0, len(tokens), MAX_NEW_TOKENS):
            chunk, counts = _chunk([tokens], start)
            logits, K_caches, V_caches = self._prefill(
                self._parameters,
                chunk,
                np.asarray([start], np.int32),
                counts,
                K_caches=K_caches,
                V_caches=V_caches,
                S_ctx=context_bucket(start + MAX_NEW_TOKENS, self.capacity),
            )
            rows.append(np.asarray(logits)[0, : counts[0]])
        return np.concatenate(rows)

    def _read(
        self, prompts: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None
    ) -> tuple[jax.Array, Any, Any]:
        """Logits [B, V] after each prompt's last token, and the filled caches."""
        K_caches, V_caches = self._caches(len(prompts))
        longest = max(len(prompt) for prompt in prompts)
        last: jax.Array | None = None
        for start in range(0, longest, MAX_NEW_TOKENS):
            chunk, counts = _chunk(prompts, start)
            lengths = np.asarray([min(len(prompt), start) for prompt in prompts], np.int32)
            logits, K_caches, V_caches = self._prefill(
                self._parameters,
                chunk,
                lengths,
                counts,
                K_caches=K_caches,
                V_caches=V_caches,
                S_ctx=context_bucket(start + MAX_NEW_TOKENS, self.capacity),
            )
            ends = jnp.take_along_axis(logits, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[
                :, 0
            ]
            last = ends if last is None else jnp.where((counts > 0)[:, None], ends, last)
            if progress is not None:
                progress(min(start + MAX_NEW_TOKENS, longest), longest)
        assert last is not None
        return last, K_caches, V_caches

    def _caches(self, batch: int) -> tuple[Any, Any]:
        config = self.model.config
        sharding = None
        if self.mesh is not None:
            specs = partition_specs(TENSOR_AXIS)
            sharding = jax.sharding.NamedSharding(self.mesh, specs.K_caches)
        return allocate_caches(
            config.num_layers,
            batch,
            config.num_kv_heads,
            config.head_size,
            self.capacity,
            self.model.parameters.embedding.dtype,
            sharding=sharding,
        )

    def _placed(self, parameters: LlamaParameters) -> LlamaParameters:
        """The parameters on the mesh's devices."""
        if self.mesh is None:
            return parameters
        specs = partition_specs(TENSOR_AXIS)

        def place(spec: jax.sharding.PartitionSpec) -> Callable[[Any], Any]:
            sharding = jax.sharding.NamedSharding(self.mesh, spec)
            return functools.partial(jax.device_put, device=sharding)

        layers = {
            name: None if arrays is None else [place(getattr(specs, name))(a) for a in arrays]
            for name, arrays in parameters.layers.arguments().items()
        }
        replicated = place(jax.sharding.PartitionSpec())
        return LlamaParameters(
            layers=type(parameters.layers)(**layers),
            embedding=replicated(parameters.embedding),
            head=replicated(parameters.head),
            final_gamma=replicated(parameters.final_gamma),
        )

    def _is_stop(self, tokens: jax.Array) -> jax.Array:
        return jnp.isin(tokens, jnp.asarray(self.stop_tokens, jnp.int32))

    def _forward(
        self,
        parameters: LlamaParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int,
    ) -> tuple[jax.Array, Any, Any]:
        """Logits [B, S, V] of new tokens [B, S], of which the first `counts` [B] are real."""
        config = self.model.config
        batch, new = tokens.shape
        positions = lengths[:, None] + jnp.arange(new, dtype=jnp.int32)
        real = jnp.arange(new) < counts[:, None]
        cos, sin = tables_of_frequencies(positions, self._frequencies)
        arguments = {
            "X": parameters.embedding[tokens],
            **{n: a for n, a in parameters.layers.arguments().items() if a is not None},
            "K_caches": K_caches,
            "V_caches": V_caches,
            "RoPE_cos": cos,
            "RoPE_sin": sin,
            "mask_cache": cache_mask(lengths, S_ctx, config.num_heads, new),
            "mask_active": active_mask(new, batch, config.num_heads, counts),
            "position_ids": jnp.where(real, positions, -1),
        }
        hidden, K_caches, V_caches = self._transformer(arguments)
        normed = rms_norm(hidden, parameters.final_gamma, self.model.eps)
        return _head(normed, parameters.head), K_caches, V_caches

    def _transformer(self, arguments: dict[str, Any]) -> tuple[jax.Array, Any, Any]:
        static: dict[str, Any] = {"num_layers": self.model.config.num_layers, "eps": self.model.eps}
        if self.mesh is None:
            return tuple(transformer_tkg(**arguments, **static))
        specs = partition_specs(TENSOR_AXIS)
        call = jax.shard_map(
            lambda named: tuple(transformer_tkg(**named, **static, axis_name=TENSOR_AXIS)),
            mesh=self.mesh,
            in_specs=({name: getattr(specs, name) for name in arguments},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
        return call(arguments)

    def _prefill_chunk(
        self,
        parameters: LlamaParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int,
    ) -> tuple[jax.Array, Any, Any]:
        return self._forward(parameters, tokens, lengths, counts, K_caches, V_caches, S_ctx)

    def _step(self, parameters: LlamaParameters, state: DecodeState, S_ctx: int) -> DecodeState:
        counts = jnp.where(state.finished, 0, 1)
        key, this_step = jax.random.split(state.key)
        logits, K_caches, V_caches = self._forward(
            parameters,
            jnp.maximum(state.tokens, 0)[:, None],
            state.lengths,
            counts,
            state.K_caches,
            state.V_caches,
            S_ctx,
        )
        tokens = sample(logits[:, 0], this_step, self.sampling)
        return DecodeState(
            tokens=jnp.where(state.finished, -1, tokens),
            lengths=state.lengths + counts,
            finished=state.finished | self._is_stop(tokens),
            key=key,
            K_caches=K_caches,
            V_caches=V_caches,
        )

    def _many_steps(
        self, parameters: LlamaParameters, state: DecodeState, count: int, S_ctx: int
    ) -> tuple[DecodeState, jax.Array]:
        def body(state: DecodeState, _: None) -> tuple[DecodeState, jax.Array]:
            state = self._step(parameters, state, S_ctx)
            return state, state.tokens

        return jax.lax.scan(body, state, None, length=count)


def _chunk(prompts: Sequence[Sequence[int]], start: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, 8] of the prompts from `start`, padded with 0, and how many are real [B]."""
    tokens = np.zeros((len(prompts), MAX_NEW_TOKENS), np.int32)
    counts = np.zeros(len(prompts), np.int32)
    for index, prompt in enumerate(prompts):
        piece = list(prompt[start : start + MAX_NEW_TOKENS])
        tokens[index, : len(piece)] = piece
        counts[index] = len(piece)
    return tokens, counts


def _head(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """Logits [B, S, V] float32 of hidden states [B, S, H] and an output embedding [V, H]."""
    batch, new, size = hidden.shape
    rows = hidden.reshape(batch * new, size)
    if rows.shape[0] == 1:
        # One low-precision row is many times slower than two on XLA:CPU.
        return _head(jnp.concatenate([hidden, jnp.zeros_like(hidden)]), head)[:1]
    logits = jax.lax.dot_general(
        rows,
        head,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return logits.reshape(batch, new, -1)
