"""Caches in blocks: the slots of each sequence put together."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gather_blocks(cache: jax.Array, block_tables: jax.Array, slot_axis: int) -> jax.Array:
    """A layer's flat cache, of one in blocks.

    Args:
      cache: [blocks, k, d, block_len] or [blocks, k, block_len, d].
      block_tables: [B, n] int32; the slots of an entry that is no block are zeros.
      slot_axis: the axis of the slots, -1 or -2.

    Returns:
      [B, k, d, n * block_len] or [B, k, n * block_len, d].
    """
    blocks = cache.shape[0]
    present = (block_tables >= 0) & (block_tables < blocks)
    taken = cache[jnp.clip(block_tables, 0, blocks - 1)]
    return joined(jnp.where(present[:, :, None, None, None], taken, 0), slot_axis)


def joined(taken: jax.Array, slot_axis: int) -> jax.Array:
    """[B, n, k, d, block_len] as [B, k, d, n * block_len], or with the last two axes swapped."""
    B, n, k, first, second = taken.shape
    if slot_axis == -1:
        return taken.transpose(0, 2, 3, 1, 4).reshape(B, k, first, n * second)
    return taken.transpose(0, 2, 1, 3, 4).reshape(B, k, n * first, second)
