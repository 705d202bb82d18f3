"""Gathering the blocks of a cache where it is stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits
from jax_tkg.cpu.stored_cache import StoredCache
from jax_tkg.reference.blocks import joined


def gather_blocks(cache: StoredCache, block_tables: jax.Array, slot_axis: int) -> StoredCache:
    """As `jax_tkg.reference.blocks.gather_blocks`; no layer of a stack is copied whole."""
    stored = cache.values
    held = stored.bits if isinstance(stored, Bits) else stored
    blocks = held.shape[-4]
    present = (block_tables >= 0) & (block_tables < blocks)
    block = jnp.clip(block_tables, 0, blocks - 1)
    taken = held[block] if cache.layer is None else held[cache.layer, block]
    flat = joined(jnp.where(present[:, :, None, None, None], taken, 0), slot_axis)
    return StoredCache(Bits(flat, stored.dtype) if isinstance(stored, Bits) else flat)
