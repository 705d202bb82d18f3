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
      cosine: [B, S, 1, d] f32, the cosines of both halves.
      sine: [B, S, 1, d] f32, the sines, negative in the first half.
    """

    cosine: jax.Array
    sine: jax.Array


def rotation(cos: jax.Array, sin: jax.Array) -> Rotation:
    """The tables [d//2, B, S] of cosines and sines in the layout of the heads."""
    cosine, sine = (
        table.astype(jnp.float32).transpose(1, 2, 0)[:, :, None, :] for table in (cos, sin)
    )
    return Rotation(
        cosine=jnp.concatenate([cosine, cosine], axis=-1),
        sine=jnp.concatenate([-sine, sine], axis=-1),
    )


def apply_rope(heads: jax.Array, by: Rotation) -> jax.Array:
    """Rotates each head: y1 = x1*cos - x2*sin, y2 = x2*cos + x1*sin, in f32.

    Written with the halves swapped, not as two results put together, because XLA:CPU compiles
    each concatenation that it does not fuse anew.

    Args:
      heads: [B, S, n, d], n query or key heads; x1 is the first half of d, x2 the second.
      by: the new tokens' rotation.

    Returns:
      [B, S, n, d] in the dtype of `heads`.
    """
    wide = heads.astype(jnp.float32)
    halves = wide.reshape(*heads.shape[:-1], 2, -1)
    swapped = jnp.flip(halves, axis=-2).reshape(heads.shape)
    return (wide * by.cosine + swapped * by.sine).astype(heads.dtype)
