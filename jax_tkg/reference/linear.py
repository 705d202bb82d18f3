"""Matrix products of activations with weights, accumulated in f32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def linear(
    x: jax.Array, weight: jax.Array, scale: jax.Array | None = None, clamp_bound: float = 0.0
) -> jax.Array:
    """x @ weight with f32 accumulation, dequantised where the weight is float8.

    Args:
      x: [B, S, n] in the compute dtype.
      weight: [n, m] in the compute dtype, or float8 with a scale.
      scale: [128, m] (equal rows) or [1, m] f32; the product of column j is multiplied by
        scale[0, j]. None where the weight is not quantised.
      clamp_bound: where positive and the weight is quantised, x is clipped to +-clamp_bound.

    Returns:
      [B, S, m] f32.
    """
    batch, tokens, inner = x.shape
    rows = x.reshape(batch * tokens, inner)
    if scale is not None and clamp_bound > 0:
        rows = jnp.clip(rows, -clamp_bound, clamp_bound)
    # Every float8 value is a value of each compute dtype, so this conversion is exact.
    product = _product(rows, weight.astype(x.dtype))
    if scale is not None:
        product = product * scale[:1].astype(jnp.float32)
    return product.reshape(batch, tokens, weight.shape[1])


def _product(rows: jax.Array, weight: jax.Array) -> jax.Array:
    # XLA:CPU multiplies a single low-precision row 10 to 25 times slower than two rows, because
    # only matrix-matrix products take its library path.
    if rows.shape[0] == 1 and rows.dtype != jnp.float32:
        doubled = jnp.concatenate([rows, jnp.zeros_like(rows)])
        return _product(doubled, weight)[:1]
    return jnp.matmul(
        rows, weight, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
