"""Attention of the new tokens over the cache and over themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits
from jax_tkg.reference import cache_update, formulation
from jax_tkg.reference.cache_update import WritePlan
from jax_tkg.reference.loops import repeat


def attention_mask(
    mask_cache: jax.Array,
    mask_active: jax.Array | None,
    k: int,
    slots: jax.Array | None,
    capacity: int,
) -> jax.Array:
    """Which keys each query attends, in the layout of the scores; the same for every layer.

    Args:
      mask_cache: [S_ctx, B, q, S]; non-zero means attend. Where `mask_active` is None its last S
        rows are the active mask, and the cache slots with those numbers are not attended.
      mask_active: [S(key), B, q, S(query)], or None.
      k: KV heads.
      slots: [B, S] int32 slots about to be written (see `cache_update.write_slots`), or None.
      capacity: S_max.

    Returns:
      [B, k, g, S, T + C] bool, g = q // k: over the first T slots of the updated cache, the S new
      keys, and, where `slots` is given, the S keys that were displaced.
    """
    context, batch, q, tokens = mask_cache.shape
    if mask_active is None:
        mask_cache, mask_active = mask_cache[: context - tokens], mask_cache[context - tokens :]

    def by_head(mask: jax.Array) -> jax.Array:
        grouped = (mask != 0).reshape(mask.shape[0], batch, k, q // k, tokens)
        return grouped.transpose(1, 2, 3, 4, 0)

    prior, active = by_head(mask_cache), by_head(mask_active)
    if slots is None:
        return jnp.concatenate([prior, active], axis=-1)
    prior, displaced = _split_mask(prior, slots, capacity)
    return jnp.concatenate([prior, active, displaced], axis=-1)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    K_cache: jax.Array | Bits,
    V_cache: jax.Array | Bits,
    layer: jax.Array | None,
    writes: WritePlan | None,
    mask: jax.Array,
    platform: str | None = None,
) -> tuple[jax.Array, jax.Array | Bits, jax.Array | Bits]:
    """Softmax attention taken jointly over the cache as passed in and the new keys.

    Args:
      query: [B, S, q, d], rotated, in the compute dtype.
      key: [B, S, k, d], rotated.
      value: [B, S, k, d].
      K_cache: [B, k, d, S_max], or [L, B, k, d, S_max] where `layer` is given.
      V_cache: [B, k, S_max, d], likewise.
      layer: uint32 scalar, which layer of the caches, or None.
      writes: where the new keys and values are written, or None to leave the caches alone.
      mask: from `attention_mask`.
      platform: the platform lowered for, where it is one; chooses the formulation.

    Returns:
      The attention output [B, S, q, d] in the compute dtype (zeros for a query with nothing to
      attend), and the updated caches.
    """
    batch, tokens, q, d = query.shape
    k = key.shape[2]
    heads, rows = batch * k, q // k * tokens
    grouped = query.reshape(batch, tokens, k, q // k, d).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(heads, rows, d)
    if writes is not None:
        update = cache_update.update_caches(K_cache, V_cache, layer, writes, key, value)
        K_cache, V_cache = update.K_cache, update.V_cache
        key = jnp.concatenate([key, update.displaced_key], axis=1)
        value = jnp.concatenate([value, update.displaced_value], axis=1)
    new_keys = _by_head(key.transpose(0, 2, 3, 1))
    new_values = _by_head(value.transpose(0, 2, 1, 3))
    columns = mask.shape[-1]
    context = columns - key.shape[1]
    mask = mask.reshape(heads, rows, columns)
    count = formulation.attention_heads(K_cache, heads, context, platform)

    def attend(start: jax.Array) -> jax.Array:
        def mine(array: jax.Array) -> jax.Array:
            if count == heads:
                return array
            return jax.lax.dynamic_slice_in_dim(array, start, count)

        return _joint_softmax(
            mine(grouped),
            [_of_layer(K_cache, layer, -1, context, start, count), mine(new_keys)],
            [_of_layer(V_cache, layer, -2, context, start, count), mine(new_values)],
            mine(mask),
        ).astype(query.dtype)

    def add(turn: jax.Array, output: jax.Array) -> jax.Array:
        start = turn * jnp.uint32(count)
        return jax.lax.dynamic_update_slice_in_dim(output, attend(start), start, 0)

    if count == heads:
        output = attend(jnp.uint32(0))
    else:
        output = repeat(heads // count, add, _zeros(grouped, K_cache, V_cache, mask))
    output = output.reshape(batch, k, q // k, tokens, d).transpose(0, 3, 1, 2, 4)
    return output.reshape(batch, tokens, q, d), K_cache, V_cache


def _zeros(like: jax.Array, *others: Any) -> jax.Array:
    """Zeros that vary over the axes of `shard_map` that any of the arrays varies over."""
    zeros = jnp.zeros_like(like)
    for array in jax.tree.leaves(others):
        zeros = zeros + jnp.zeros_like(array, shape=like.shape, dtype=like.dtype)
    return zeros


def _of_layer(
    cache: jax.Array | Bits,
    layer: jax.Array | None,
    slot_axis: int,
    context: int,
    start: jax.Array,
    count: int,
) -> jax.Array:
    """The first `context` slots of heads start..start+count of one layer.

    Returns:
      [count, d, T] or [count, T, d], as `slot_axis` says.
    """
    one = cache.bits if isinstance(cache, Bits) else cache
    *_, batch, k, first, second = one.shape
    if count < batch * k:
        one = one.reshape(*one.shape[:-4], batch * k, first, second)
        place = [start, jnp.uint32(0), jnp.uint32(0)]
        sizes = [count, first, second]
        sizes[slot_axis] = context
        if layer is not None:
            place, sizes = [layer, *place], [1, *sizes]
        one = jax.lax.dynamic_slice(one, place, sizes).reshape(sizes[-3:])
    else:
        if layer is not None:
            one = jax.lax.dynamic_index_in_dim(one, layer, keepdims=False)
        one = _by_head(jax.lax.slice_in_dim(one, 0, context, axis=slot_axis))
    return jax.lax.bitcast_convert_type(one, cache.dtype) if isinstance(cache, Bits) else one


def _by_head(columns: jax.Array) -> jax.Array:
    """[B, k, ...] as [B*k, ...]."""
    # Not -1, which has no answer where the context has no slots before the new tokens.
    return columns.reshape(columns.shape[0] * columns.shape[1], *columns.shape[2:])


def _split_mask(prior: jax.Array, slots: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Moves the slots about to be written out of the mask of the cache.

    Returns:
      The mask without those slots, and the mask of the columns they held, [B, k, g, S, S].
    """
    context = prior.shape[-1]
    replaced = jnp.any(slots[:, :, None] == jnp.arange(context), axis=1)
    moved = (
        jnp.take_along_axis(
            prior, jnp.minimum(slots, max(context - 1, 0))[:, None, None, None, :], axis=-1
        )
        if context
        else jnp.zeros((*prior.shape[:-1], slots.shape[1]), jnp.bool_)
    )
    valid = cache_update.first_writers(slots, capacity) & (slots < context)
    return prior & ~replaced[:, None, None, None, :], moved & valid[:, None, None, None, :]


def _joint_softmax(
    query: jax.Array, keys: list[jax.Array], values: list[jax.Array], mask: jax.Array
) -> jax.Array:
    """Softmax over several sets of keys at once, in f32.

    Args:
      query: [N, R, d]; N counts KV heads of all sequences, R the queries of one.
      keys: each [N, d, T].
      values: each [N, T, d].
      mask: [N, R, sum of T] bool.

    Returns:
      [N, R, d] f32; zeros where no key is attended.
    """
    scores = jnp.concatenate([_batched_product(query, key) for key in keys], axis=-1)
    scores = jnp.where(mask, scores * query.shape[-1] ** -0.5, -jnp.inf)
    largest = scores.max(axis=-1, keepdims=True)
    # -inf minus -inf is NaN: a query without keys subtracts nothing instead.
    largest = jax.lax.stop_gradient(jnp.where(jnp.isneginf(largest), 0.0, largest))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    parts = jnp.split(weights, [keys[0].shape[-1]], axis=-1)
    summed = sum(map(_batched_product, parts, values))
    return jnp.where(total > 0, summed / jnp.where(total > 0, total, 1.0), 0.0)


def _batched_product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """[N, R, n] times [N, n, m] in f32: [N, R, m]."""
    return jnp.matmul(
        rows.astype(jnp.float32),
        matrix.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
