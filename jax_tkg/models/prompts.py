"""Reading prompts into caches, in chunks of a few sizes.

Most implementations read them by `jax_tkg.prefill`, whose programs serve every context: a size of
chunks is a compilation. Kernels read them by `transformer_tkg`, 8 tokens a call; there the context
bucket S_ctx is a shape too, which grows in powers of two.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_tkg.caches import context_bucket
from jax_tkg.limits import MAX_NEW_TOKENS
from jax_tkg.models.executables import Compiled, Executables, on_mesh
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.placed_parameters import PlacedParameters

CHUNK_SIZES = (32, 64, 128, 256, 512)
"""Tokens of a chunk. A prompt is read in chunks of one size: the smallest that holds all of it, or
a large one. Its last chunk is padded.

On two cores of an AMD EPYC, chunks of 512 read a prompt 1.04 to 1.08 times as fast as chunks of
256, and chunks of 1,024 no faster than those; memory for activations and scores grows with them.
"""

LARGE_CHUNK = 256
"""Tokens from which on a chunk is large: those of a long prompt are the ones with less padding."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A piece of the prompts.

    Attributes:
      start: position of its first token.
      size: S, how many positions it has.
      S_ctx: context bucket; None for `ModelForward.prefill`, which has none.
    """

    start: int
    size: int
    S_ctx: int | None


class PromptReader:
    """Reads prompts into caches.

    Args:
      forward: the model on its devices.
      capacity: S_max, the longest sequence in tokens.
      prefill: whether by `ModelForward.prefill` or by `ModelForward.hidden`. None: by the former,
        unless the forward pass's implementation is a kernel's or its platform is Neuron, where it
        has not been tried.
      longest_chunk: tokens of a chunk, at most.

    Attributes:
      prefill: as given, or decided.
      functions: what is compiled.
    """

    def __init__(
        self,
        forward: ModelForward,
        capacity: int,
        prefill: bool | None = None,
        longest_chunk: int = CHUNK_SIZES[-1],
    ):
        self.prefill = _prefills(forward) if prefill is None else prefill
        self._forward = forward
        self._capacity = capacity
        self._longest_chunk = longest_chunk
        whole, cached = forward.replicated, forward.cache_sharding
        self._read_chunk = Executables(
            self._traced_chunk,
            ("S_ctx",),
            donate_argnums=(4, 5),
            **on_mesh(forward.mesh, (cached, cached)),
        )
        self._every_logit = Executables(
            self._traced_logits,
            ("S_ctx",),
            donate_argnums=(4, 5),
            **on_mesh(forward.mesh, (whole, cached, cached)),
        )
        self.functions = (self._read_chunk, self._every_logit)

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """Those of `CHUNK_SIZES` that are allowed: the smallest at least."""
        return tuple(s for s in CHUNK_SIZES if s <= self._longest_chunk) or CHUNK_SIZES[:1]

    def chunks(self, length: int) -> Iterator[Chunk]:
        """The chunks in which prompts are read, given the length of the longest."""
        size = MAX_NEW_TOKENS
        if self.prefill:
            size = self._chunk_size(length)
        for start in range(0, length, size):
            bucket = None if self.prefill else context_bucket(start, self._capacity)
            yield Chunk(start, size, bucket)

    def _chunk_size(self, length: int) -> int:
        sizes = self.chunk_sizes
        if length <= sizes[-1]:
            return min(s for s in sizes if s >= length)
        large = [s for s in sizes if s >= LARGE_CHUNK] or sizes[-1:]
        return min(large, key=lambda size: (-(-length // size) * size, -size))

    def prepare(
        self, threads: concurrent.futures.Executor, batch: int, length: int
    ) -> list[Compiled]:
        """Compiles in threads what `read` runs.

        Args:
          threads: compiles; see `Executables.prepare`.
          batch: B, how many prompts.
          length: tokens of the longest, 0 or more.
        """
        counts = np.zeros(batch, np.int32)
        caches = self._forward.cache_shapes(batch)
        return [
            self._read_chunk.prepare(
                threads,
                self._forward.parameters,
                np.zeros((batch, size), np.int32),
                counts,
                counts,
                *caches,
                S_ctx=S_ctx,
            )
            for size, S_ctx in dict.fromkeys((c.size, c.S_ctx) for c in self.chunks(length))
        ]

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        K_caches: Any,
        V_caches: Any,
        progress: Callable[[int], None],
    ) -> tuple[Any, Any]:
        """Reads prompts from the first slot on.

        Args:
          prompts: token ids of each sequence, of any lengths, some may be empty.
          K_caches: as `ModelForward.caches` makes them; donated.
          V_caches: likewise.
          progress: called after each chunk with the tokens of the longest prompt read.

        Returns:
          The filled caches.
        """
        longest = max(map(len, prompts))
        for chunk in self.chunks(longest):
            K_caches, V_caches = self.read_chunk(prompts, chunk, K_caches, V_caches)
            progress(min(chunk.start + chunk.size, longest))
        return K_caches, V_caches

    def read_chunk(
        self, prompts: Sequence[Sequence[int]], chunk: Chunk, K_caches: Any, V_caches: Any
    ) -> tuple[Any, Any]:
        """Reads one of `chunks`, after those before it; otherwise as `read`."""
        tokens, counts = _tokens(prompts, chunk)
        return self._read_chunk(
            self._forward.parameters,
            tokens,
            np.asarray([min(len(prompt), chunk.start) for prompt in prompts], np.int32),
            counts,
            K_caches,
            V_caches,
            S_ctx=chunk.S_ctx,
        )

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [n, V] float32 after every token of one text of n tokens."""
        K_caches, V_caches = self._forward.caches(1)
        rows = []
        for chunk in self.chunks(len(tokens)):
            ids, counts = _tokens([tokens], chunk)
            logits, K_caches, V_caches = self._every_logit(
                self._forward.parameters,
                ids,
                np.asarray([chunk.start], np.int32),
                counts,
                K_caches,
                V_caches,
                S_ctx=chunk.S_ctx,
            )
            rows.append(np.asarray(logits)[0, : counts[0]])
        return np.concatenate(rows)

    def _traced_hidden(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int | None,
    ) -> tuple[jax.Array, Any, Any]:
        forward = self._forward
        if S_ctx is None:
            return forward.prefill(parameters, tokens, lengths, counts, K_caches, V_caches)
        return forward.hidden(parameters, tokens, lengths, counts, K_caches, V_caches, S_ctx)

    def _traced_chunk(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int | None,
    ) -> tuple[Any, Any]:
        _, K_caches, V_caches = self._traced_hidden(
            parameters, tokens, lengths, counts, K_caches, V_caches, S_ctx
        )
        return K_caches, V_caches

    def _traced_logits(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int | None,
    ) -> tuple[jax.Array, Any, Any]:
        hidden, K_caches, V_caches = self._traced_hidden(
            parameters, tokens, lengths, counts, K_caches, V_caches, S_ctx
        )
        return self._forward.logits(parameters, hidden), K_caches, V_caches


def _prefills(forward: ModelForward) -> bool:
    in_numpy = forward.implementation in ("auto", "cpu", "reference")
    return in_numpy and forward.platform != "neuron"


def _tokens(prompts: Sequence[Sequence[int]], chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, S] of a chunk, padded with 0, and how many are real [B]."""
    tokens = np.zeros((len(prompts), chunk.size), np.int32)
    counts = np.zeros(len(prompts), np.int32)
    for index, prompt in enumerate(prompts):
        piece = list(prompt[chunk.start : chunk.start + chunk.size])
        tokens[index, : len(piece)] = piece
        counts[index] = len(piece)
    return tokens, counts
