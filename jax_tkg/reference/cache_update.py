"""Writing new keys and values into their cache slots, in place, when all layers have read them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits, as_bits
from jax_tkg.call.arguments import is_stacked
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import opaque_zero

Caches = tuple[jax.Array | Bits, ...] | jax.Array | Bits
"""One array per layer, or one array with a leading layer axis."""


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
    if position_ids.dtype.itemsize < 4:
        # The capacity may be too large for the ids' own dtype.
        position_ids = position_ids.astype(jnp.int32)
    inside = (position_ids >= 0) & (position_ids < capacity)
    first = jnp.where(inside, position_ids.astype(jnp.int32), jnp.int32(capacity))
    if position_ids.shape[1] == new_tokens:
        return first
    return jnp.minimum(first + jnp.arange(new_tokens, dtype=jnp.int32)[None], capacity)


def write_caches(
    K_caches: Caches,
    V_caches: Caches,
    slots: jax.Array,
    keys: Any,
    values: Any,
    after: jax.Array,
) -> tuple[Caches, Caches]:
    """Writes the new keys and values of all layers.

    Args:
      K_caches: [B, k, d, S_max] each, or [L, B, k, d, S_max].
      V_caches: [B, k, S_max, d] each, or [L, B, k, S_max, d].
      slots: [B, S] int32, from `write_slots`; where two tokens of a sequence share a slot, the
        later one stays.
      keys: [B, S, k, d] of each layer, one after the other or stacked. Stacked caches may have
        more layers; those keep their values.
      values: likewise.
      after: an array, not empty, that depends on everything that was read from the caches.

    Returns:
      The updated caches, every other bit as it was.
    """
    capacity = jax.tree.leaves(K_caches)[0].shape[-1]
    later_in_same_slot = jnp.triu(slots[:, :, None] == slots[:, None, :], 1).any(axis=-1)
    # Each beyond the cache, where nothing is written, and no two of a sequence alike.
    nowhere = capacity + jnp.arange(slots.shape[1], dtype=slots.dtype)
    slots = jnp.where(later_in_same_slot | (slots == capacity), nowhere, slots)
    # XLA copies a buffer that is read and then updated, unless the update depends on what was read.
    slots = slots + opaque_zero(after).astype(slots.dtype)
    K = _each_written(K_caches, slots, keys, slot_axis=-1)
    return K, _each_written(V_caches, slots, values, slot_axis=-2)


def _each_written(caches: Any, slots: jax.Array, columns: Any, slot_axis: int) -> Caches:
    if is_stacked(caches):
        columns = columns if is_stacked(columns) else jnp.stack(columns)
        return _written(caches, slots, columns, slot_axis)
    return tuple(
        _written(cache, slots, new, slot_axis) for cache, new in zip(caches, columns, strict=True)
    )


def _written(cache: Any, slots: jax.Array, columns: jax.Array, slot_axis: int) -> Any:
    """A cache with columns [..., B, S, k, d] in their slots, those outside of it dropped."""
    if isinstance(cache, Bits):
        bits = _written(cache.bits, slots, as_bits(columns).bits, slot_axis)
        return Bits(bits, cache.dtype)
    # Inside a shard_map, what is written may vary over axes that a cache does not vary over.
    cache = vary_with(cache, slots, columns)
    sequences = jnp.arange(slots.shape[0])[:, None]
    layers = (slice(columns.shape[0]),) if cache.ndim == 5 else ()
    where = (slice(None), slots) if slot_axis == -2 else (slice(None), slice(None), slots)
    # Axes of indices that are arrays, B and S, come first.
    columns = jnp.moveaxis(columns, 0, 2) if layers else columns
    return cache.at[(*layers, sequences, *where)].set(columns, mode="drop", unique_indices=True)
