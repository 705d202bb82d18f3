"""Attention of many new tokens: over the cache a block of slots at a time, in one pass.

The largest score so far and the sums that belong to it are carried from block to block and scaled
down when a larger score comes (the "online softmax" of Milakov and Gimelshein, arXiv:1805.02867,
and of FlashAttention, arXiv:2205.14135).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from jax_tkg.reference.softmax import divided
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import opaque_zero

LOWEST = -1e30
"""Largest score of no keys: finite, so that subtracting it from itself gives 0."""

QUERY_BLOCK = 128
"""New tokens, at least, whose queries attend the new tokens up to their own together.

Of the products and exponentials among 512 new tokens, blocks of 128 leave out three eighths.
"""

MOST_QUERY_BLOCKS = 8
"""Blocks of new tokens, at most: each is compiled."""

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

    def and_more(self, scores: jax.Array, weighted: Callable[[jax.Array], jax.Array]) -> _Sums:
        """With further keys.

        Args:
          scores: [n, R, T], -inf where not attended.
          weighted: [n, R, T] weights to the sums [n, R, d] of the keys' values times them.
        """
        largest = jnp.maximum(self.largest, scores.max(axis=-1, keepdims=True))
        kept, weights = jnp.exp(self.largest - largest), jnp.exp(scores - largest)
        return _Sums(
            largest,
            self.total * kept + weights.sum(axis=-1, keepdims=True),
            self.values * kept + weighted(weights),
        )


@dataclasses.dataclass(frozen=True)
class _Arithmetic:
    """How scores are made and values are weighted.

    Attributes:
      factor: of the scores.
      softcap: of the scores, or 0.
      dtype: of what is multiplied; sums are f32.
    """

    factor: float
    softcap: float
    dtype: np.dtype

    def scores(self, queries: jax.Array, keys: jax.Array, scale: jax.Array | None) -> jax.Array:
        """[n, R, T] of [n, R, d] and [n, d, T]; `scale` is [1, 1], of a float8 cache, or None."""
        scores = divided(self._product(queries, keys) * self.factor, scale)
        return self.softcap * jnp.tanh(scores / self.softcap) if self.softcap > 0 else scores

    def weighted(self, weights: jax.Array, values: jax.Array, scale: jax.Array | None) -> jax.Array:
        """[n, R, d] of [n, R, T] and [n, T, d]; `scale` as above."""
        return divided(self._product(weights, values), scale)

    def _product(self, rows: jax.Array, matrix: jax.Array) -> jax.Array:
        return jax.lax.dot_general(
            rows.astype(self.dtype),
            matrix.astype(self.dtype),
            (((2,), (1,)), ((0,), (0,))),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
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
    own_dtype: bool = False,
) -> jax.Array:
    """As `jax_tkg.reference.attention.attention`, with ranges of slots in place of a mask.

    Takes caches as arrays or where they are stored. With `own_dtype` bfloat16 is multiplied as it
    is, and the softmax's weights are rounded to it before they are multiplied; else all is f32.
    """
    batch, tokens, q, d = query.shape
    k = key.shape[2]
    caches = tuple(
        cache if isinstance(cache, StoredCache) else StoredCache(cache)
        for cache in (K_cache, V_cache)
    )
    narrow = own_dtype and query.dtype == jnp.bfloat16
    arithmetic = _Arithmetic(
        factor=d**-0.5 if scale is None else scale,
        softcap=softcap,
        dtype=jnp.dtype(jnp.bfloat16 if narrow else jnp.float32),
    )
    rows = _Heads(
        query=rows_of_queries(query, k),
        new_keys=merge_heads(key.transpose(0, 2, 3, 1)),
        new_values=merge_heads(value.transpose(0, 2, 1, 3)),
        starts=mask.starts,
        ends=mask.ends,
        sinks=None if sinks is None else sink_of_each_row(sinks, batch, k, tokens),
    )
    heads = batch * k
    count = _heads_at_once(heads, q // k * tokens * max(_query_block(tokens), mask.block))
    zero = opaque_zero(query)

    def attend(start: jax.Array) -> jax.Array:
        def mine(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, start, count)

        own = rows if count == heads else jax.tree.map(mine, rows)
        sums = _new_tokens(own, mask, arithmetic)

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
            scores = arithmetic.scores(own.query, keys, scales.key)
            return sums.and_more(
                jnp.where(attended, scores, -jnp.inf),
                lambda weights: arithmetic.weighted(weights, values, scales.value),
            )

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


def _query_block(tokens: int) -> int:
    """New tokens whose queries attend new tokens together; of the last block perhaps fewer."""
    return max(QUERY_BLOCK, -(-tokens // MOST_QUERY_BLOCKS))


def _new_tokens(own: _Heads, mask: Ranges, arithmetic: _Arithmetic) -> _Sums:
    """The new tokens, of which each row attends its own at least, and the sinks."""
    tokens, size = mask.tokens, _query_block(mask.tokens)
    heads, rows, _ = own.query.shape

    def of_block(first: int) -> _Sums:
        last = min(first + size, tokens)

        def mine(array: jax.Array) -> jax.Array:
            by_token = array.reshape(heads, rows // tokens, tokens, -1)
            return by_token[:, :, first:last].reshape(heads, -1, array.shape[-1])

        sinks = None if own.sinks is None else mine(own.sinks)
        return _block_of_new_tokens(mine(own.query), sinks, own, mask, arithmetic, first, last)

    def together(*blocks: jax.Array) -> jax.Array:
        width = blocks[0].shape[-1]
        by_token = [block.reshape(heads, rows // tokens, -1, width) for block in blocks]
        return jnp.concatenate(by_token, axis=2).reshape(heads, rows, width)

    blocks = [of_block(first) for first in range(0, tokens, size)]
    return blocks[0] if len(blocks) == 1 else jax.tree.map(together, *blocks)


def _block_of_new_tokens(
    queries: jax.Array,
    sinks: jax.Array | None,
    own: _Heads,
    mask: Ranges,
    arithmetic: _Arithmetic,
    first: int,
    last: int,
) -> _Sums:
    """The queries [n, g * (last - first), d] of some new tokens, and the keys that they attend.

    Of the ranks that share out the context, only one attends new tokens.
    """
    begin = 0 if mask.window is None else max(0, first + 1 - mask.window)
    key = jnp.arange(begin, last, dtype=jnp.int32)[None, :]
    query = first + jnp.arange(queries.shape[1], dtype=jnp.int32)[:, None] % (last - first)
    attended = key <= query
    if mask.window is not None:
        attended &= key > query - mask.window
    if mask.attends_new is not None:
        attended &= mask.attends_new
    scores = arithmetic.scores(queries, own.new_keys[:, :, begin:last], None)
    scores = jnp.where(attended[None], scores, -jnp.inf)
    no_values = jnp.zeros_like(queries, jnp.float32)
    if sinks is None:
        largest = jnp.maximum(scores.max(axis=-1, keepdims=True), LOWEST)
        none = _Sums(largest, jnp.zeros_like(largest), no_values)
    else:
        none = _Sums(sinks, jnp.ones_like(sinks), no_values)
    values = own.new_values[:, begin:last]
    return none.and_more(scores, lambda weights: arithmetic.weighted(weights, values, None))


def _attends(own: _Heads, slot: jax.Array) -> jax.Array:
    """[n, R, T] bool: whether each row attends each of the slots [1, 1, T]."""
    below, begun = slot < own.ends, slot >= own.starts
    return jnp.where(own.starts > own.ends, below | begun, below & begun)
