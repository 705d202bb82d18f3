"""Attention of the new tokens over the cache and over themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.reference.float8_caches import UNSCALED, CacheScales
from jax_tkg.reference.softmax import HeadRows, joint_softmax, partial_softmax


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
    K_cache: jax.Array,
    V_cache: jax.Array,
    mask: jax.Array,
    sinks: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    scales: CacheScales = UNSCALED,
    partial: bool = False,
) -> jax.Array:
    """Softmax attention taken jointly over the cache as passed in and the new keys.

    Args:
      query: [B, S, q, d], rotated, in the compute dtype.
      key: [B, S, k, d], rotated.
      value: [B, S, k, d].
      K_cache: [B, k, d, S_max].
      V_cache: [B, k, S_max, d].
      mask: from `attention_mask`.
      sinks: [1, q] f32, one more logit of each query head, with no value; None for none.
      scale: factor of the scores; None: d**-0.5.
      softcap: where positive, scores become softcap * tanh(scores / softcap).
      scales: of the caches.
      partial: whether these are only a part of the keys. There are no sinks then.

    Returns:
      [B, S, q, d] in the compute dtype; zeros for a query with nothing to attend. If `partial`,
      [B, S, q, 2 + d] f32, as `jax_tkg.reference.softmax.partial_softmax` makes it.
    """
    context = mask.shape[-1] - query.shape[1]
    rows = rows_by_head(query, key, value, mask, sinks)
    keys = merge_heads(K_cache[..., :context])
    values = merge_heads(V_cache[:, :, :context])
    softmax = partial_softmax if partial else joint_softmax
    attended = softmax(rows, keys, values, scale, softcap, scales)
    return heads_of_tokens(attended, *query.shape[:3])


def rows_by_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    sinks: jax.Array | None,
) -> HeadRows:
    """Arguments of `attention` by KV head: the query heads of one are rows beside each other."""
    batch, tokens, q, _ = query.shape
    k = key.shape[2]
    heads, rows = batch * k, q // k * tokens
    return HeadRows(
        query=rows_of_queries(query, k),
        new_keys=merge_heads(key.transpose(0, 2, 3, 1)),
        new_values=merge_heads(value.transpose(0, 2, 1, 3)),
        mask=mask.reshape(heads, rows, mask.shape[-1]),
        sinks=None if sinks is None else sink_of_each_row(sinks, batch, k, tokens),
    )


def rows_of_queries(query: jax.Array, k: int) -> jax.Array:
    """[B, S, q, d] as [B*k, q // k * S, d]: the query heads of a KV head one after the other."""
    batch, tokens, q, d = query.shape
    grouped = query.reshape(batch, tokens, k, q // k, d).transpose(0, 2, 3, 1, 4)
    return grouped.reshape(batch * k, q // k * tokens, d)


def sink_of_each_row(sinks: jax.Array, batch: int, k: int, tokens: int) -> jax.Array:
    """[1, q] as [B*k, q // k * S, 1]."""
    grouped = sinks.astype(jnp.float32).reshape(1, k, -1, 1)
    g = sinks.shape[1] // k
    repeated = jnp.broadcast_to(grouped, (batch, k, g, tokens))
    return repeated.reshape(batch * k, g * tokens, 1)


def heads_of_tokens(attended: jax.Array, batch: int, tokens: int, q: int) -> jax.Array:
    """[B*k, q // k * S, d] as [B, S, q, d]."""
    k, d = attended.shape[0] // batch, attended.shape[-1]
    grouped = attended.reshape(batch, k, q // k, tokens, d).transpose(0, 3, 1, 2, 4)
    return grouped.reshape(batch, tokens, q, d)


def merge_heads(array: jax.Array) -> jax.Array:
    """[B, k, ...] as [B*k, ...]."""
    # Not -1, which has no answer where the context has no slots before the new tokens.
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
