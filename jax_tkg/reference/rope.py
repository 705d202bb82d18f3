"""Rotary position embedding of contiguous halves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """Angles of the new tokens' positions, the same for every layer.

    Attributes:
      cosine: [B, S, 1, d//2] f32.
      sine: [B, S, 1, d//2] f32.
    """

    cosine: jax.Array
    sine: jax.Array


def rotation(cos: jax.Array, sin: jax.Array) -> Rotation:
    """The tables [d//2, B, S] of cosines and sines in the layout of the heads."""
    cosine, sine = (
        table.astype(jnp.float32).transpose(1, 2, 0)[:, :, None, :] for table in (cos, sin)
    )
    return Rotation(cosine, sine)


def apply_rope(heads: jax.Array, by: Rotation) -> jax.Array:
    """Rotates each head: y1 = x1*cos - x2*sin, y2 = x2*cos + x1*sin, in f32.

    Args:
      heads: [B, S, n, d], n query or key heads; x1 is the first half of d, x2 the second.
      by: the new tokens' rotation.

    Returns:
      [B, S, n, d] in the dtype of `heads`.
    """
    x1, x2 = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = x1 * by.cosine - x2 * by.sine, x2 * by.cosine + x1 * by.sine
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)
