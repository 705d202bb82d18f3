"""Choosing the next token of each slot, by settings of its own.

`jax_tkg.models.sampling` chooses by the same settings for all sequences, which are part of the
compiled program. Here they are arrays, so that one program serves all requests. Sorting a large
vocabulary and drawing take time, so there are programs without: `Way` says which is enough.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.models.sampling import (
    LARGEST_TEMPERATURE,
    MOST_CANDIDATES,
    Sampling,
    Scores,
    draw_candidates,
    likeliest_token,
    relative,
)


class Way(enum.Enum):
    """How much is computed to choose tokens; each does all that those before it do."""

    LIKELIEST = enum.auto()
    """The largest logits."""

    DRAWN = enum.auto()
    """Repetition penalty, temperature and min_p."""

    FILTERED = enum.auto()
    """Also top_k and top_p."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """The `Sampling` of each slot. A pytree.

    Attributes:
      temperature: [B] float32; 0 takes the likeliest token.
      top_k: [B] int32; 0 for all.
      top_p: [B] float32.
      floor: [B] float32, log(min_p); -inf for all.
      penalty: [B] float32.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    floor: Any
    penalty: Any


class SettingsTable:
    """`Settings` that the host changes slot by slot.

    Args:
      slots: B.
    """

    def __init__(self, slots: int):
        self._samplings = [Sampling()] * slots
        self.settings = Settings(
            temperature=np.zeros(slots, np.float32),
            top_k=np.zeros(slots, np.int32),
            top_p=np.ones(slots, np.float32),
            floor=np.full(slots, -np.inf, np.float32),
            penalty=np.ones(slots, np.float32),
        )

    def put(self, slot: int, sampling: Sampling) -> None:
        """Gives a slot its settings."""
        self._samplings[slot] = sampling
        to = self.settings
        temperature = min(sampling.temperature, LARGEST_TEMPERATURE)
        to.temperature[slot] = 0 if sampling.greedy else temperature
        to.top_k[slot] = min(sampling.top_k, int(np.iinfo(np.int32).max))
        to.top_p[slot] = sampling.nucleus
        to.floor[slot] = math.log(sampling.min_p) if sampling.min_p else -math.inf
        to.penalty[slot] = sampling.penalty

    def way(self, slots: Sequence[int]) -> Way:
        """What is enough for these slots."""
        samplings = [self._samplings[slot] for slot in slots]
        if any(not one.greedy and (one.top_k or one.top_p < 1) for one in samplings):
            return Way.FILTERED
        if any(not one.greedy or one.penalizes for one in samplings):
            return Way.DRAWN
        return Way.LIKELIEST

    def candidates(self, slots: Sequence[int]) -> int | None:
        """How many of the likeliest tokens are enough for these slots, 1 or `MOST_CANDIDATES`.

        None: all are needed.
        """
        counts = [self._samplings[slot].candidates for slot in slots]
        found = [count for count in counts if count is not None]
        if len(found) < len(counts):
            return None
        return 1 if max(found) == 1 else MOST_CANDIDATES


def choose(
    logits: jax.Array, keys: jax.Array, settings: Settings, seen: jax.Array, way: Way
) -> jax.Array:
    """One token per slot, as `jax_tkg.models.sampling.sample` chooses it with the slot's settings.

    Args:
      logits: [B, V] float32.
      keys: [B] PRNG keys.
      settings: of each slot.
      seen: [B, V] bool, the tokens in each prompt and the answer so far, where it is penalized.
      way: enough for the slots whose tokens count.

    Returns:
      [B] int32.
    """
    if way is Way.LIKELIEST:
        return likeliest_token(logits)
    penalty = settings.penalty[:, None]
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(seen, penalized, logits)
    likeliest = likeliest_token(logits)
    greedy = settings.temperature == 0
    scaled = relative(logits) / jnp.where(greedy, 1, settings.temperature)[:, None]
    floor = settings.floor[:, None]
    if way is Way.FILTERED:
        ordered = jnp.sort(scaled, axis=-1, descending=True)
        count = _count(settings, ordered.shape[-1])
        last = jnp.take_along_axis(ordered, count - 1, axis=-1)
        # Of those that equal the last, as many of the lowest ids as there is room for.
        equal = scaled == last
        room = count - jnp.sum(scaled > last, axis=-1, keepdims=True)
        kept = (scaled > last) | (equal & (jnp.cumsum(equal, axis=-1) <= room))
        scaled = jnp.where(kept, scaled, -jnp.inf)
        floor = jnp.maximum(floor, _nucleus_floor(_first(ordered, count), settings))
    scaled = jnp.where(scaled >= floor, scaled, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
    return jnp.where(greedy, likeliest, drawn)


def choose_candidates(
    scores: Scores, keys: jax.Array, settings: Settings, vocabulary_size: int
) -> jax.Array:
    """What `choose` gives, of the likeliest tokens, which are enough.

    Args:
      scores: [B, n] of candidates, n of `SettingsTable.candidates` or V.
      keys: [B] PRNG keys.
      settings: of each slot.
      vocabulary_size: V.

    Returns:
      [B] int32.
    """
    likeliest, n = scores.ids[:, 0], scores.ids.shape[1]
    if n == 1:
        return likeliest
    greedy = settings.temperature == 0
    scaled = relative(scores.logits) / jnp.where(greedy, 1, settings.temperature)[:, None]
    ordered = _first(scaled, _count(settings, n))
    floor = jnp.maximum(settings.floor[:, None], _nucleus_floor(ordered, settings))
    left = jnp.where(ordered >= floor, ordered, -jnp.inf)
    drawn = draw_candidates(left, scores.ids, keys, vocabulary_size)
    return jnp.where(greedy, likeliest, drawn)


def _count(settings: Settings, tokens: int) -> jax.Array:
    """[B, 1]: how many of so many tokens top_k leaves."""
    top_k = settings.top_k[:, None]
    return jnp.where((top_k > 0) & (top_k < tokens), top_k, tokens)


def _first(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """The first `count` [B, 1] of logits [B, n], and -inf."""
    return jnp.where(jnp.arange(ordered.shape[-1])[None] < count, ordered, -jnp.inf)


def _nucleus_floor(ordered: jax.Array, settings: Settings) -> jax.Array:
    """[B, 1]: the smallest logit that top_p leaves, of logits in descending order."""
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token is in while the likelier ones have not reached top_p: the likeliest always is.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    top_p = settings.top_p[:, None]
    inside = (before < top_p) | (top_p >= 1)
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
