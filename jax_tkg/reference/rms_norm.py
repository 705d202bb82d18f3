"""Root-mean-square normalization."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, gamma: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x**2) + eps) * gamma over the last axis, in f32.

    Args:
      x: [B, S, H], or heads [B, S, n, d].
      gamma: [1, H], or [1, d].
      eps: added to the mean of squares.

    Returns:
      In x's shape and dtype.
    """
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    gain = gamma.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * jax.lax.rsqrt(mean_square + eps) * gain).astype(x.dtype)
