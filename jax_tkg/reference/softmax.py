"""The softmax of attention: its arithmetic, on the rows of some KV heads."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jax_tkg.reference.float8_caches import UNSCALED, CacheScales


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadRows:
    """What attention reads beside the caches, by KV head.

    N counts KV heads of all sequences, R = q // k * S the queries of one. Every array begins with
    N, so that a part of the heads is a slice of each.

    Attributes:
      query: [N, R, d].
      new_keys: [N, d, S].
      new_values: [N, S, d].
      mask: [N, R, T + S] bool: over the cached keys and the new ones.
      sinks: [N, R, 1] f32, one more logit of each query, with no value; None for none.
    """

    query: jax.Array
    new_keys: jax.Array
    new_values: jax.Array
    mask: jax.Array
    sinks: jax.Array | None = None


def joint_softmax(
    rows: HeadRows,
    keys: jax.Array,
    values: jax.Array,
    scale: float | None = None,
    softcap: float = 0.0,
    scales: CacheScales = UNSCALED,
) -> jax.Array:
    """Softmax over cached and new keys at once, in f32.

    Args:
      rows: queries, new keys and values, mask.
      keys: [N, d, T], cached.
      values: [N, T, d], cached.
      scale: factor of the scores; None: d**-0.5.
      softcap: where positive, scores become softcap * tanh(scores / softcap).
      scales: of the cached keys and values.

    Returns:
      [N, R, d] in the queries' dtype; zeros where no key is attended.
    """
    query, sinks = rows.query, rows.sinks
    both = (
        divided(batched_product(query, keys), scales.key),
        batched_product(query, rows.new_keys),
    )
    scores = jnp.concatenate(both, axis=-1)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(rows.mask, scores, -jnp.inf)
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = jnp.maximum(largest, sinks)
    # -inf minus -inf is NaN: a query without keys subtracts nothing instead.
    largest = jax.lax.stop_gradient(jnp.where(jnp.isneginf(largest), 0.0, largest))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - largest)
    cached, new = jnp.split(weights, [keys.shape[-1]], axis=-1)
    summed = divided(batched_product(cached, values), scales.value)
    summed = summed + batched_product(new, rows.new_values)
    attended = jnp.where(total > 0, summed / jnp.where(total > 0, total, 1.0), 0.0)
    return attended.astype(query.dtype)


def divided(product: jax.Array, scale: jax.Array | None) -> jax.Array:
    """A product with what a cache holds, [N, R, m], as with what that stands for."""
    return product if scale is None else product / scale[0, 0]


def batched_product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """[N, R, n] times [N, n, m] in f32: [N, R, m]."""
    return jnp.matmul(
        rows.astype(jnp.float32),
        matrix.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
