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


def write_slots(
    position_ids: jax.Array, new_tokens: int, capacity: int, block_len: int | None = None
) -> jax.Array:
    """The slot each new token is written to.

    Args:
      position_ids: [B, 1], the first slot of each sequence, or [B, S], the slot of each token;
        any integer dtype. 2**32 - 1 (unsigned) or a negative value (signed) skips: the whole
        sequence in the first form, that token in the second.
      new_tokens: S.
      capacity: S_max; of caches in blocks, blocks * block_len.
      block_len: slots of a block, or None. The tokens after a sequence's first slot are in its
        block, or not written.

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
    slots = jnp.minimum(first + jnp.arange(new_tokens, dtype=jnp.int32)[None], capacity)
    if block_len is None:
        return slots
    return jnp.where(slots // block_len == first // block_len, slots, jnp.int32(capacity))


def write_caches(
    K_caches: Caches,
    V_caches: Caches,
    slots: jax.Array,
    keys: Any,
    values: Any,
    after: jax.Array,
    by_block: bool = False,
) -> tuple[Caches, Caches]:
    """Writes the new keys and values of all layers.

    Args:
      K_caches: [B, k, d, S_max] each, or [L, B, k, d, S_max].
      V_caches: [B, k, S_max, d] each, or [L, B, k, S_max, d].
      slots: [B, S] int32, from `write_slots`; where two tokens of a sequence share a slot, the
        later one stays.
      keys: [B, S, k, d] of each layer, one after the other or stacked. Stacked caches may have
        more layers; those keep their values.
      values: [B, S, k, d] of each layer, in the same form.
      after: an array, not empty, that depends on everything that was read from the caches.
      by_block: whether caches are in blocks: B and S_max of their shapes are then `blocks` and
        `block_len`, and a slot is block * block_len + offset. Of all tokens in one slot the last
        stays.

    Returns:
      The updated caches, every other bit as it was.
    """
    blocks, _, _, capacity = jax.tree.leaves(K_caches)[0].shape[-4:]
    if by_block:
        rows, slots = _blocks_and_offsets(slots, blocks, capacity)
    else:
        rows = jnp.arange(slots.shape[0])[:, None]
        later_in_same_slot = jnp.triu(slots[:, :, None] == slots[:, None, :], 1).any(axis=-1)
        # Each beyond the cache, where nothing is written, and no two of a sequence alike.
        nowhere = capacity + jnp.arange(slots.shape[1], dtype=slots.dtype)
        slots = jnp.where(later_in_same_slot | (slots == capacity), nowhere, slots)
    # XLA copies a buffer that is read and then updated, unless the update depends on what was read.
    slots = slots + opaque_zero(after).astype(slots.dtype)
    K = _each_written(K_caches, (rows, slots), keys, slot_axis=-1)
    return K, _each_written(V_caches, (rows, slots), values, slot_axis=-2)


def _blocks_and_offsets(
    slots: jax.Array, blocks: int, block_len: int
) -> tuple[jax.Array, jax.Array]:
    """Block and offset of each token, [B, S] each; a token that is not written has a block past the
    last one."""
    flat = slots.reshape(-1)
    token = jnp.arange(flat.size, dtype=flat.dtype)
    later_in_same_slot = jnp.triu(flat[:, None] == flat[None], 1).any(axis=-1)
    # No two alike, as the scatter is promised.
    nowhere = blocks * block_len + token * block_len
    flat = jnp.where(later_in_same_slot | (flat == blocks * block_len), nowhere, flat)
    return (flat // block_len).reshape(slots.shape), (flat % block_len).reshape(slots.shape)


_Places = tuple[jax.Array, jax.Array]
"""Sequence, or block, and slot in it of each token: [B, 1] or [B, S], and [B, S]."""


def _each_written(caches: Any, places: _Places, columns: Any, slot_axis: int) -> Caches:
    if is_stacked(caches):
        columns = columns if is_stacked(columns) else jnp.stack(columns)
        return _written(caches, places, columns, slot_axis)
    return tuple(
        _written(cache, places, new, slot_axis) for cache, new in zip(caches, columns, strict=True)
    )


def _written(cache: Any, places: _Places, columns: jax.Array, slot_axis: int) -> Any:
    """A cache with columns [..., B, S, k, d] in their places, those outside of it dropped."""
    if isinstance(cache, Bits):
        bits = _written(cache.bits, places, as_bits(columns).bits, slot_axis)
        return Bits(bits, cache.dtype)
    # Inside a shard_map, what is written may vary over axes that a cache does not vary over.
    cache = vary_with(cache, places, columns)
    sequences, slots = places
    layers = (slice(columns.shape[0]),) if cache.ndim == 5 else ()
    where = (slice(None), slots) if slot_axis == -2 else (slice(None), slice(None), slots)
    # Axes of indices that are arrays, B and S, come first.
    columns = jnp.moveaxis(columns, 0, 2) if layers else columns
    return cache.at[(*layers, sequences, *where)].set(columns, mode="drop", unique_indices=True)
