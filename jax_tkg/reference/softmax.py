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
    sinks = rows.sinks
    scores = _scores(rows, keys, scale, softcap, scales)
    largest = _reference_point(scores.max(axis=-1, keepdims=True), sinks)
    weights = jnp.exp(scores - largest)
    total = _with_sinks(weights.sum(axis=-1, keepdims=True), largest, sinks)
    return _normalized(_weighted(weights, rows, values, scales), total).astype(rows.query.dtype)


def partial_softmax(
    rows: HeadRows,
    keys: jax.Array,
    values: jax.Array,
    scale: float | None = None,
    softcap: float = 0.0,
    scales: CacheScales = UNSCALED,
) -> jax.Array:
    """The softmax over a part of the keys, for `merged_softmax`; arguments as of `joint_softmax`.

    Args:
      rows: without sinks.
      keys: [N, d, T], cached.
      values: [N, T, d], cached.
      scale: factor of the scores; None: d**-0.5.
      softcap: where positive, scores become softcap * tanh(scores / softcap).
      scales: of the cached keys and values.

    Returns:
      [N, R, 2 + d] f32: the largest score (-inf where no key is attended), the sum of exponentials
      relative to it, and the sum of values weighted by them.
    """
    scores = _scores(rows, keys, scale, softcap, scales)
    # Not differentiated, because what is relative to it cancels in `merged_softmax`.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - _reference_point(largest))
    total = weights.sum(axis=-1, keepdims=True)
    return jnp.concatenate([largest, total, _weighted(weights, rows, values, scales)], axis=-1)


def merged_softmax(parts: jax.Array, sinks: jax.Array | None = None) -> jax.Array:
    """The softmax over all keys, of its parts.

    Args:
      parts: [parts, ..., 2 + d] f32, of `partial_softmax`.
      sinks: [..., 1] f32, one more logit, with no value; None for none.

    Returns:
      [..., d] f32; zeros where no key is attended.
    """
    largest = _reference_point(parts[..., :1].max(axis=0), sinks)
    kept = jnp.exp(parts[..., :1] - largest)
    total, weighted = jnp.split((parts[..., 1:] * kept).sum(axis=0), [1], axis=-1)
    return _normalized(weighted, _with_sinks(total, largest, sinks))


def _scores(
    rows: HeadRows, keys: jax.Array, scale: float | None, softcap: float, scales: CacheScales
) -> jax.Array:
    """[N, R, T + S] f32; -inf for keys that are not attended."""
    query = rows.query
    both = (
        divided(batched_product(query, keys), scales.key),
        batched_product(query, rows.new_keys),
    )
    scores = jnp.concatenate(both, axis=-1)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(rows.mask, scores, -jnp.inf)


def _reference_point(largest: jax.Array, sinks: jax.Array | None = None) -> jax.Array:
    """What scores are relative to: the largest, or 0 for a query without keys."""
    if sinks is not None:
        largest = jnp.maximum(largest, sinks)
    # -inf minus -inf is NaN: a query without keys subtracts nothing instead.
    return jax.lax.stop_gradient(jnp.where(jnp.isneginf(largest), 0.0, largest))


def _with_sinks(total: jax.Array, largest: jax.Array, sinks: jax.Array | None) -> jax.Array:
    if sinks is not None:
        total = total + jnp.exp(sinks - largest)
    return total


def _weighted(
    weights: jax.Array, rows: HeadRows, values: jax.Array, scales: CacheScales
) -> jax.Array:
    """[N, R, d] f32: the sum of values, cached and new, times weights [N, R, T + S]."""
    cached, new = jnp.split(weights, [values.shape[-2]], axis=-1)
    summed = divided(batched_product(cached, values), scales.value)
    return summed + batched_product(new, rows.new_values)


def _normalized(weighted: jax.Array, total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), 0.0)


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
