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


def head_norms(
    heads: jax.Array, gamma_q: jax.Array | None, gamma_k: jax.Array | None, q: int, eps: float
) -> jax.Array:
    """Query heads and key heads, each kind normalized over the head's features if it has a gain.

    Args:
      heads: [B, S, q + k, d], query heads first.
      gamma_q: [1, d], gain of the query heads, or None.
      gamma_k: [1, d], gain of the key heads, or None.
      q: query heads.
      eps: added to the mean of squares.

    Returns:
      In the shape and dtype of `heads`.
    """
    if gamma_q is None and gamma_k is None:
        return heads
    parts = (heads[:, :, :q], gamma_q), (heads[:, :, q:], gamma_k)
    normed = [part if gain is None else rms_norm(part, gain, eps) for part, gain in parts]
    return jnp.concatenate(normed, axis=2)
