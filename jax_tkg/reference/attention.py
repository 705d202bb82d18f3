"""Attention of the new tokens over the cache and over themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits
from jax_tkg.reference import formulation
from jax_tkg.reference.loops import repeat
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import unseen_zero


def attention_mask(mask_cache: jax.Array, mask_active: jax.Array | None, k: int) -> jax.Array:
    """Which keys each query attends, in the layout of the scores; the same for every layer.

    Args:
      mask_cache: [S_ctx, B, q, S]; non-zero means attend. Where `mask_active` is None its last S
        rows are the active mask, and the cache slots with those numbers are not attended.
      mask_active: [S(key), B, q, S(query)], or None.
      k: KV heads.

    Returns:
      [B, k, g, S, T + S] bool, g = q // k: over the first T slots of the cache and the S new keys.
    """
    _, batch, q, tokens = mask_cache.shape
    attended = mask_cache.astype(jnp.bool_)
    if mask_active is not None:
        attended = jnp.concatenate([attended, mask_active.astype(jnp.bool_)])
    grouped = attended.reshape(attended.shape[0], batch, k, q // k, tokens)
    return grouped.transpose(1, 2, 3, 4, 0)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    K_cache: jax.Array | Bits,
    V_cache: jax.Array | Bits,
    layer: jax.Array | None,
    mask: jax.Array,
    platform: str | None = None,
    sinks: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Softmax attention taken jointly over the cache as passed in and the new keys.

    Args:
      query: [B, S, q, d], rotated, in the compute dtype.
      key: [B, S, k, d], rotated.
      value: [B, S, k, d].
      K_cache: [B, k, d, S_max], or [L, B, k, d, S_max] where `layer` is given.
      V_cache: [B, k, S_max, d], likewise.
      layer: uint32 scalar, which layer of the caches, or None.
      mask: from `attention_mask`.
      platform: the platform lowered for, where it is one; chooses the formulation.
      sinks: [1, q] f32, one more logit of each query head, with no value; None for none.
      scale: factor of the scores; None: d**-0.5.
      softcap: where positive, scores become softcap * tanh(scores / softcap).

    Returns:
      [B, S, q, d] in the compute dtype; zeros for a query with nothing to attend.
    """
    batch, tokens, q, d = query.shape
    k = key.shape[2]
    heads, rows = batch * k, q // k * tokens
    grouped = query.reshape(batch, tokens, k, q // k, d).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(heads, rows, d)
    new_keys = _by_head(key.transpose(0, 2, 3, 1))
    new_values = _by_head(value.transpose(0, 2, 1, 3))
    columns = mask.shape[-1]
    context = columns - tokens
    mask = mask.reshape(heads, rows, columns)
    scale = d**-0.5 if scale is None else scale
    sink_rows = None if sinks is None else _by_query(sinks, batch, k, tokens)
    count = formulation.attention_heads(K_cache, heads, context, platform)
    # Nothing else tells XLA to copy or convert this layer's cache when it is this layer's turn,
    # instead of all layers' caches before the first layer.
    zero = unseen_zero(query)

    def attend(start: jax.Array) -> jax.Array:
        def mine(array: jax.Array) -> jax.Array:
            if count == heads:
                return array
            return jax.lax.dynamic_slice_in_dim(array, start, count)

        return _joint_softmax(
            mine(grouped),
            [_of_layer(K_cache, layer, -1, context, start, count, zero), mine(new_keys)],
            [_of_layer(V_cache, layer, -2, context, start, count, zero), mine(new_values)],
            mine(mask),
            scale,
            softcap,
            None if sink_rows is None else mine(sink_rows),
        ).astype(query.dtype)

    def add(turn: jax.Array, output: jax.Array) -> jax.Array:
        start = turn * jnp.uint32(count)
        return jax.lax.dynamic_update_slice_in_dim(output, attend(start), start, 0)

    if count == heads:
        output = attend(jnp.uint32(0))
    else:
        output = vary_with(
            jnp.zeros_like(grouped), grouped, K_cache, V_cache, new_keys, new_values, mask, sinks
        )
        output = repeat(heads // count, add, output)
    output = output.reshape(batch, k, q // k, tokens, d).transpose(0, 3, 1, 2, 4)
    return output.reshape(batch, tokens, q, d)


def _of_layer(
    cache: jax.Array | Bits,
    layer: jax.Array | None,
    slot_axis: int,
    context: int,
    start: jax.Array,
    count: int,
    zero: jax.Array,
) -> jax.Array:
    """The first `context` slots of heads start..start+count of one layer.

    Args:
      cache: as in `attention`.
      layer: likewise.
      slot_axis: the axis of the slots, -1 or -2.
      context: T.
      start: uint32 scalar.
      count: heads.
      zero: uint32 0, before which nothing is copied or converted.

    Returns:
      [count, d, T] or [count, T, d], as `slot_axis` says.
    """
    one = cache.bits if isinstance(cache, Bits) else cache
    *_, batch, k, first, second = one.shape
    one = one.reshape(*one.shape[:-4], batch * k, first, second)
    place, sizes = [start, jnp.uint32(0), jnp.uint32(0)], [count, first, second]
    place[slot_axis], sizes[slot_axis] = zero, context
    if layer is not None:
        place, sizes = [layer + zero, *place], [1, *sizes]
    if isinstance(cache, Bits) and tuple(sizes) == one.shape:
        one = one | zero.astype(one.dtype)  # This slice is the whole, wherever it begins.
    one = jax.lax.dynamic_slice(one, place, sizes).reshape(sizes[-3:])
    return jax.lax.bitcast_convert_type(one, cache.dtype) if isinstance(cache, Bits) else one


def _by_head(columns: jax.Array) -> jax.Array:
    """[B, k, ...] as [B*k, ...]."""
    # Not -1, which has no answer where the context has no slots before the new tokens.
    return columns.reshape(columns.shape[0] * columns.shape[1], *columns.shape[2:])


def _by_query(sinks: jax.Array, batch: int, k: int, tokens: int) -> jax.Array:
    """[1, q] as [B*k, g*S, 1]: the sink of each row of queries."""
    grouped = sinks.astype(jnp.float32).reshape(1, k, -1, 1)
    q = sinks.shape[1]
    repeated = jnp.broadcast_to(grouped, (batch, k, q // k, tokens))
    return repeated.reshape(batch * k, q // k * tokens, 1)


def _joint_softmax(
    query: jax.Array,
    keys: list[jax.Array],
    values: list[jax.Array],
    mask: jax.Array,
    scale: float,
    softcap: float = 0.0,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax over several sets of keys at once, in f32.

    Args:
      query: [N, R, d]; N counts KV heads of all sequences, R the queries of one.
      keys: each [N, d, T].
      values: each [N, T, d].
      mask: [N, R, sum of T] bool.
      scale: factor of the scores.
      softcap: where positive, bounds the scaled scores by a tanh.
      sinks: [N, R, 1] f32, one more logit of each query, or None.

    Returns:
      [N, R, d] f32; zeros where no key is attended.
    """
    scores = jnp.concatenate([_batched_product(query, key) for key in keys], axis=-1)
    scores = scores * scale
    if softcap > 0:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask, scores, -jnp.inf)
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = jnp.maximum(largest, sinks)
    # -inf minus -inf is NaN: a query without keys subtracts nothing instead.
    largest = jax.lax.stop_gradient(jnp.where(jnp.isneginf(largest), 0.0, largest))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - largest)
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
