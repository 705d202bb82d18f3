"""Rotary position embedding of contiguous halves."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def apply_rope(heads: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each head: y1 = x1*cos - x2*sin, y2 = x2*cos + x1*sin, in f32.

    Args:
      heads: [B, S, n, d], n query or key heads; x1 is the first half of d, x2 the second.
      cos: [d//2, B, S].
      sin: [d//2, B, S].

    Returns:
      [B, S, n, d] in the dtype of `heads`.
    """
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cosine = cos.astype(jnp.float32).transpose(1, 2, 0)[:, :, None, :]
    sine = sin.astype(jnp.float32).transpose(1, 2, 0)[:, :, None, :]
    rotated = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return rotated.astype(heads.dtype)
