"""Attention of many new tokens: over the cache a block of slots at a time, in one pass.

The largest score so far and the sums that belong to it are carried from block to block and scaled
down when a larger score comes (the "online softmax" of Milakov and Gimelshein, arXiv:1805.02867,
and of FlashAttention, arXiv:2205.14135).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.cpu.loops import repeat
from jax_tkg.cpu.stored_cache import StoredCache
from jax_tkg.prefill.attended_keys import Ranges
from jax_tkg.reference.attention import (
    heads_of_tokens,
    merge_heads,
    rows_of_queries,
    sink_of_each_row,
)
from jax_tkg.reference.float8_caches import UNSCALED, CacheScales
from jax_tkg.reference.softmax import batched_product, divided
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import opaque_zero

LOWEST = -1e30
"""Largest score of no keys: finite, so that subtracting it from itself gives 0."""

SCORE_ELEMENTS = 1 << 20
"""Scores that are made at once, at most, unless one KV head alone has more: 4 MiB."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Heads:
    """Some KV heads: what does not come from the cache. Every array begins with them."""

    query: jax.Array
    new_keys: jax.Array
    new_values: jax.Array
    starts: jax.Array
    ends: jax.Array
    sinks: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sums:
    """What has been attended so far, by row: [n, R, 1] and [n, R, d], f32.

    Attributes:
      largest: the largest score.
      total: sum of exp(score - largest).
      values: sum of exp(score - largest) times the value.
    """

    largest: jax.Array
    total: jax.Array
    values: jax.Array

    def and_more(
        self, scores: jax.Array, values: jax.Array, scale: jax.Array | None = None
    ) -> _Sums:
        """With further keys.

        Args:
          scores: [n, R, T], -inf where not attended.
          values: [n, T, d].
          scale: [1, 1], of values from a float8 cache; None: of others.
        """
        largest = jnp.maximum(self.largest, scores.max(axis=-1, keepdims=True))
        kept, weights = jnp.exp(self.largest - largest), jnp.exp(scores - largest)
        return _Sums(
            largest,
            self.total * kept + weights.sum(axis=-1, keepdims=True),
            self.values * kept + divided(batched_product(weights, values), scale),
        )


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    K_cache: Any,
    V_cache: Any,
    mask: Ranges,
    sinks: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    scales: CacheScales = UNSCALED,
    partial: bool = False,
) -> jax.Array:
    """As `jax_tkg.reference.attention.attention`, with ranges of slots in place of a mask.

    Takes caches as arrays or where they are stored.
    """
    batch, tokens, q, d = query.shape
    k = key.shape[2]
    caches = tuple(
        cache if isinstance(cache, StoredCache) else StoredCache(cache)
        for cache in (K_cache, V_cache)
    )
    factor = d**-0.5 if scale is None else scale
    rows = _Heads(
        query=rows_of_queries(query, k).astype(jnp.float32) * factor,
        new_keys=merge_heads(key.transpose(0, 2, 3, 1)),
        new_values=merge_heads(value.transpose(0, 2, 1, 3)),
        starts=mask.starts,
        ends=mask.ends,
        sinks=None if sinks is None else sink_of_each_row(sinks, batch, k, tokens),
    )
    heads = batch * k
    count = _heads_at_once(heads, rows.query.shape[1] * max(tokens, mask.block))
    zero = opaque_zero(query)

    def attend(start: jax.Array) -> jax.Array:
        def mine(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, count)

        own = rows if count == heads else jax.tree.map(mine, rows)
        sums = _new_tokens(own, mask, softcap)

        def add(turn: jax.Array, sums: _Sums) -> _Sums:
            size = mask.block
            # The last block ends with the context, and begins with slots of the one before.
            begin = turn * jnp.uint32(size)
            first = jnp.minimum(begin, jnp.uint32(mask.context - size))
            keys, values = (
                cache.slots(axis, size, start, count, zero, first)
                for cache, axis in zip(caches, (-1, -2), strict=True)
            )
            slot = first.astype(jnp.int32) + jnp.arange(size, dtype=jnp.int32)[None, None, :]
            attended = _attends(own, slot) & (slot >= begin.astype(jnp.int32))
            scores = divided(batched_product(own.query, keys), scales.key)
            scores = jnp.where(attended, _capped(scores, softcap), -jnp.inf)
            return sums.and_more(scores, values, scales.value)

        if mask.context:
            sums = repeat(mask.turns, add, _varying(sums, own, caches, mask))
        if partial:
            return jnp.concatenate([sums.largest, sums.total, sums.values], axis=-1)
        return (sums.values / sums.total).astype(query.dtype)

    def put(turn: jax.Array, output: jax.Array) -> jax.Array:
        start = turn * jnp.uint32(count)
        return jax.lax.dynamic_update_slice_in_dim(output, attend(start), start, 0)

    if count == heads:
        output = attend(jnp.uint32(0))
    else:
        width, dtype = (2 + d, jnp.float32) if partial else (d, query.dtype)
        output = jnp.zeros((heads, rows.query.shape[1], width), dtype)
        output = repeat(heads // count, put, vary_with(output, rows, caches, mask))
    return heads_of_tokens(output, batch, tokens, q)


def _varying(sums: _Sums, *others: Any) -> _Sums:
    """Sums whose arrays vary over the axes of `jax.shard_map` that anything else varies over."""
    return jax.tree.map(lambda array: vary_with(array, *others), sums)


def _heads_at_once(heads: int, scores: int) -> int:
    """A divisor of `heads`, given how many scores one head has."""
    fits = [n for n in range(1, heads + 1) if heads % n == 0 and n * scores <= SCORE_ELEMENTS]
    return max(fits, default=1)


def _new_tokens(own: _Heads, mask: Ranges, softcap: float) -> _Sums:
    """The new tokens, of which each row attends its own at least, and the sinks.

    Of the ranks that share out the context, only one attends new tokens.
    """
    key = jnp.arange(mask.tokens, dtype=jnp.int32)[None, :]
    query = jnp.arange(own.query.shape[1], dtype=jnp.int32)[:, None] % mask.tokens
    attended = key <= query
    if mask.window is not None:
        attended &= key > query - mask.window
    if mask.attends_new is not None:
        attended &= mask.attends_new
    scores = _capped(batched_product(own.query, own.new_keys), softcap)
    scores = jnp.where(attended[None], scores, -jnp.inf)
    if own.sinks is None:
        largest = jnp.maximum(scores.max(axis=-1, keepdims=True), LOWEST)
        none = _Sums(largest, jnp.zeros_like(largest), jnp.zeros_like(own.query))
    else:
        none = _Sums(own.sinks, jnp.ones_like(own.sinks), jnp.zeros_like(own.query))
    return none.and_more(scores, own.new_values)


def _attends(own: _Heads, slot: jax.Array) -> jax.Array:
    """[n, R, T] bool: whether each row attends each of the slots [1, 1, T]."""
    below, begun = slot < own.ends, slot >= own.starts
    return jnp.where(own.starts > own.ends, below | begun, below & begun)


def _capped(scores: jax.Array, softcap: float) -> jax.Array:
    return softcap * jnp.tanh(scores / softcap) if softcap > 0 else scores
