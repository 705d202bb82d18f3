"""Rotary position embedding without a concatenation in each layer.

XLA:CPU compiles each concatenation that it does not fuse anew, so heads are read with their halves
swapped instead of being put together from two results.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.reference import rope
from jax_tkg.reference.rope import Rotation


def rotation(cos: jax.Array, sin: jax.Array) -> Rotation:
    """The tables [d//2, B, S] of cosines and sines in the layout of whole heads.

    Returns:
      Both [B, S, 1, d]: cosines of both halves, and sines, negative in the first half.
    """
    half = rope.rotation(cos, sin)
    return Rotation(
        cosine=jnp.concatenate([half.cosine, half.cosine], axis=-1),
        sine=jnp.concatenate([-half.sine, half.sine], axis=-1),
    )


def apply_rope(heads: jax.Array, by: Rotation) -> jax.Array:
    """As `jax_tkg.reference.rope.apply_rope`, with this module's `rotation`."""
    wide = heads.astype(jnp.float32)
    halves = wide.reshape(*heads.shape[:-1], 2, -1)
    swapped = jnp.flip(halves, axis=-2).reshape(heads.shape)
    return (wide * by.cosine + swapped * by.sine).astype(heads.dtype)
