"""Writing new keys and values into their cache slots, in place.

Attention is defined on the caches as they were passed in, but XLA copies a buffer that is read
and then updated. So the few old columns that an update replaces are read first (`displaced`),
the cache is updated, and attention reads the updated cache without the replaced slots, plus the
displaced columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def write_slots(position_ids: jax.Array, new_tokens: int, capacity: int) -> jax.Array:
    """The slot each new token is written to.

    Args:
      position_ids: [B, 1], the first slot of each sequence, or [B, S], the slot of each token;
        any integer dtype. 2**32 - 1 (unsigned) or a negative value (signed) skips: the whole
        sequence in the first form, that token in the second.
      new_tokens: S.
      capacity: S_max.

    Returns:
      [B, S] int32; `capacity` stands for "not written" (skipped, or outside 0..S_max-1).
    """
    inside = (position_ids >= 0) & (position_ids < capacity)
    first = jnp.where(inside, position_ids, capacity).astype(jnp.int32)
    if position_ids.shape[1] == new_tokens:
        return first
    return jnp.minimum(first + jnp.arange(new_tokens, dtype=jnp.int32), capacity)


def first_writers(slots: jax.Array, capacity: int) -> jax.Array:
    """[B, S] bool: the token is written, and no earlier token is written to the same slot."""
    tokens = slots.shape[1]
    same = slots[:, :, None] == slots[:, None, :]
    earlier = jnp.tril(jnp.ones((tokens, tokens), jnp.bool_), -1)
    return (slots < capacity) & ~jnp.any(same & earlier, axis=-1)


def gather_columns(cache: jax.Array, layer: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """The columns of one layer's cache at `slots`.

    Args:
      cache: [L, B, k, d, S_max] or [L, B, k, S_max, d].
      layer: int32 scalar.
      slots: [B, S] int32; values of S_max or more read zeros.
      axis: the axis of S_max, 4 or 3.

    Returns:
      [B, S, k, d].
    """
    kept = tuple(size for i, size in enumerate(cache.shape[2:], 2) if i != axis)
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=(2, 3), collapsed_slice_dims=(0, 1, axis), start_index_map=(0, 1, axis)
    )
    sizes = tuple(1 if i in (0, 1, axis) else size for i, size in enumerate(cache.shape))
    columns = jax.lax.gather(
        cache,
        _column_indices(layer, slots),
        numbers,
        sizes,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        fill_value=0,
    )
    return columns.reshape(*slots.shape, *kept)


def scatter_columns(
    cache: jax.Array, layer: jax.Array, slots: jax.Array, columns: jax.Array, axis: int
) -> jax.Array:
    """The cache with one layer's columns written at `slots`.

    Args:
      cache: [L, B, k, d, S_max] or [L, B, k, S_max, d].
      layer: int32 scalar.
      slots: [B, S] int32; values of S_max or more are not written.
      columns: [B, S, k, d]; where two tokens share a slot, the later one stays.
      axis: the axis of S_max, 4 or 3.

    Returns:
      The cache; all other bits as they were.
    """
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2),
        inserted_window_dims=(0, 1, axis),
        scatter_dims_to_operand_dims=(0, 1, axis),
    )
    indices = _column_indices(layer, slots)
    # One scatter a token: with several updates of one slot in a single scatter, XLA leaves open
    # which of them stays.
    for token in range(slots.shape[1]):
        cache = jax.lax.scatter(
            cache,
            indices[:, token],
            columns[:, token],
            numbers,
            mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        )
    return cache


def _column_indices(layer: jax.Array, slots: jax.Array) -> jax.Array:
    """[B, S, 3] int32: layer, sequence and slot of each column."""
    batch = jax.lax.broadcasted_iota(jnp.int32, slots.shape, 0)
    return jnp.stack([jnp.full(slots.shape, layer, jnp.int32), batch, slots], axis=-1)
