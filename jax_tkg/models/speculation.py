"""Decoding with drafts: several tokens are proposed, and one step verifies them all.

A step of a few tokens reads the weights once, as a step of one token does. The drafts are looked up
(`jax_tkg.models.prompt_lookup`), so each is certain, and the rule of speculative sampling
(Leviathan et al. 2023) becomes: draw the next token as without drafts; where it is the drafted one,
what the step computed after it holds too. The text, greedy or drawn with a seed, is therefore that
of plain decoding, up to rounding where two tokens are nearly tied.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.caches import context_bucket
from jax_tkg.limits import MAX_NEW_TOKENS
from jax_tkg.models.decode import NO_TOKEN, STEPS_AHEAD, Decoder, DecodeState, shape_of
from jax_tkg.models.executables import Compiled, Executables, on_mesh
from jax_tkg.models.integers import as_integer
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.placed_parameters import PlacedParameters
from jax_tkg.models.prompt_lookup import PromptLookup
from jax_tkg.models.sampling import Scores

MOST_DRAFTS = MAX_NEW_TOKENS - 1
"""Tokens that one step verifies at most: a call takes one more."""

WORTHWHILE_ON_CPU = 2
"""Drafted tokens that must hold on a CPU, where a step of 8 tokens takes two to three plain ones.

Elsewhere one is enough.
"""


class SpeculativeDecoder(Decoder):
    """A decoder whose steps may say several tokens.

    Args:
      model: as of `Decoder`.
      capacity: likewise.
      num_drafts: tokens that a step verifies, 1 to `MOST_DRAFTS`.
      options: the others of `Decoder`.

    Raises:
      ValueError: as `Decoder`; or `num_drafts` is out of its range.
      TypeError: as `Decoder`; or `num_drafts` is no integer.
    """

    def __init__(self, model: PackedModel, capacity: int, *, num_drafts: int, **options: Any):
        num_drafts = as_integer("num_drafts", num_drafts)
        if not 1 <= num_drafts <= MOST_DRAFTS:
            raise ValueError(f"num_drafts: expected 1..{MOST_DRAFTS}, got {num_drafts}")
        super().__init__(model, capacity, **options)
        self.num_drafts = num_drafts
        shardings = (self._state_shardings(), self._forward.replicated)
        self._verify = Executables(
            self._traced_verify,
            ("S_ctx",),
            donate_argnums=(1,),
            **on_mesh(self._forward.mesh, shardings),
        )

    @property
    def _functions(self) -> tuple[Executables, ...]:
        return (*super()._functions, self._verify)

    def prepare(
        self,
        threads: concurrent.futures.Executor,
        lengths: Sequence[int],
        key: jax.Array | None = None,
        device_loop: bool = False,
    ) -> list[Compiled]:
        """As `Decoder.prepare`; `speculate` follows, unless `device_loop` says `generate`."""
        prepared = super().prepare(threads, lengths, key, device_loop)
        if not device_loop:
            state = self._state_shapes(len(lengths), key)
            S_ctx = context_bucket(max(lengths), self.capacity)
            prepared.append(self._prepare_verify(threads, state, S_ctx))
        return prepared

    def speculate(
        self,
        prompts: Sequence[Sequence[int]],
        state: DecodeState,
        max_tokens: int,
        threads: concurrent.futures.Executor | None = None,
    ) -> Iterator[np.ndarray]:
        """Decodes as `stream` does, with drafts.

        Args:
          prompts: those that `start` was given.
          state: from `start`; donated.
          max_tokens: most tokens per sequence; a sequence that fills the capacity ends before,
            alone.
          threads: as in `stream`.

        Yields:
          [B] int32 tokens, `NO_TOKEN` for a sequence that says nothing, because it has finished or
          because others say more in this step.

        Raises:
          ValueError: there are more or fewer prompts than `start` was given.
        """
        # Nobody says more than the capacity; counts of NumPy hold no larger number than int32.
        max_tokens = min(as_integer("max_tokens", max_tokens), self.capacity)
        if len(prompts) != len(state.lengths):
            raise ValueError(
                f"prompts: expected the {len(state.lengths)} that start was given, got "
                f"{len(prompts)}"
            )
        worthwhile = WORTHWHILE_ON_CPU if self._forward.platform == "cpu" else 1
        lookups = [PromptLookup(prompt, min(worthwhile, self.num_drafts)) for prompt in prompts]
        lengths, told = np.array(state.lengths), np.zeros(len(prompts), np.int32)
        spoken = np.array(state.tokens)[:, None]
        while True:
            spoken = np.where(_numbered(spoken) <= (max_tokens - told)[:, None], spoken, NO_TOKEN)
            for lookup, row in zip(lookups, spoken.tolist(), strict=True):
                for token in row:
                    if token != NO_TOKEN:
                        lookup.add(token)
            told += (spoken != NO_TOKEN).sum(axis=1)
            yield from (column.copy() for column in spoken.T if (column != NO_TOKEN).any())
            going = ~np.asarray(state.finished) & (told < max_tokens)
            if not going.any():
                return
            room = np.minimum(max_tokens - told - 1, self.capacity - 1 - lengths)
            drafts, counts = self._drafts(lookups, np.where(going, room, 0))
            longest = int(lengths.max())
            S_ctx = context_bucket(longest, self.capacity)
            if threads is not None:
                ahead = context_bucket(longest + STEPS_AHEAD, self.capacity)
                shapes = jax.tree.map(shape_of, state)
                self._step.prepare(threads, self._forward.parameters, shapes, S_ctx=ahead)
                self._prepare_verify(threads, shapes, ahead)
            if counts.any():
                state, said = self._verify(
                    self._forward.parameters, state, drafts, counts, S_ctx=S_ctx
                )
                spoken = np.array(said)
                for lookup, row, count in zip(lookups, spoken, counts, strict=True):
                    if count:
                        lookup.verified(int((row != NO_TOKEN).sum()) - 1)
            else:
                state = self.step(state, S_ctx)
                spoken = np.array(state.tokens)[:, None]
            lengths += (spoken != NO_TOKEN).sum(axis=1).astype(lengths.dtype)

    def _drafts(
        self, lookups: Sequence[PromptLookup], room: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Drafts [B, num_drafts], padded with 0, and how many each sequence has [B]."""
        drafts = np.zeros((len(lookups), self.num_drafts), np.int32)
        counts = np.zeros(len(lookups), np.int32)
        for index, lookup in enumerate(lookups):
            draft = lookup.draft(min(self.num_drafts, int(room[index])))
            drafts[index, : len(draft)] = draft
            counts[index] = len(draft)
        return drafts, counts

    def _prepare_verify(
        self, threads: concurrent.futures.Executor, state: DecodeState, S_ctx: int
    ) -> Compiled:
        counts = np.zeros(state.lengths.shape, np.int32)
        drafts = np.zeros((*counts.shape, self.num_drafts), np.int32)
        return self._verify.prepare(
            threads, self._forward.parameters, state, drafts, counts, S_ctx=S_ctx
        )

    def _traced_verify(
        self,
        parameters: PlacedParameters,
        state: DecodeState,
        drafts: jax.Array,
        draft_counts: jax.Array,
        S_ctx: int,
    ) -> tuple[DecodeState, jax.Array]:
        """One step with drafts.

        Args:
          parameters: of the model.
          state: before it.
          drafts: [B, n] int32, what may follow `state.tokens`.
          draft_counts: [B] int32, how many of them are drafts.
          S_ctx: context bucket.

        Returns:
          The state after the last token said, and what is said: [B, n + 1], then `NO_TOKEN`.
        """
        scores, K_caches, V_caches = self._forward.scores(
            parameters,
            jnp.concatenate([jnp.maximum(state.tokens, 0)[:, None], drafts], axis=1),
            state.lengths,
            jnp.where(state.finished, 0, 1 + draft_counts),
            state.K_caches,
            state.V_caches,
            S_ctx,
            self.sampling.candidates,
        )
        speaking, said = ~state.finished, []
        state = dataclasses.replace(
            state,
            tokens=jnp.where(state.finished, NO_TOKEN, state.tokens),
            K_caches=K_caches,
            V_caches=V_caches,
        )
        for index in range(1 + drafts.shape[1]):
            state = self._spoken(state, scores.at(index), speaking)
            said.append(jnp.where(speaking, state.tokens, NO_TOKEN))
            if index < drafts.shape[1]:
                holds = (index < draft_counts) & (state.tokens == drafts[:, index])
                speaking = speaking & holds & ~state.finished
        return state, jnp.stack(said, axis=1)

    def _spoken(self, state: DecodeState, scores: Scores, speaking: jax.Array) -> DecodeState:
        """The state after one more token of the sequences that are speaking [B]."""
        keys = jax.vmap(jax.random.split)(state.key)
        tokens = self._chosen(scores, keys[:, 1], state.seen)
        seen = state.seen
        if seen is not None:
            said = jax.nn.one_hot(tokens, seen.shape[1], dtype=jnp.bool_)
            seen = seen | (said & speaking[:, None])
        lengths = state.lengths + speaking.astype(jnp.int32)
        return dataclasses.replace(
            state,
            tokens=jnp.where(speaking, tokens, state.tokens),
            lengths=lengths,
            finished=state.finished | (speaking & self._is_last(tokens, lengths)),
            key=jnp.where(speaking, keys[:, 0], state.key),
            seen=seen,
        )


def _numbered(spoken: np.ndarray) -> np.ndarray:
    """[B, n]: the number of each token within its row, from 1 on."""
    return np.cumsum(spoken != NO_TOKEN, axis=1)
