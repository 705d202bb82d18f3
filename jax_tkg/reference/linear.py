"""Matrix products of activations with weights, accumulated in f32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.reference import formulation
from jax_tkg.reference.products import multiply
from jax_tkg.reference.stored_weight import StoredWeight


def linear(
    x: jax.Array,
    weight: StoredWeight,
    scale: jax.Array | None = None,
    clamp_bound: float = 0.0,
    platform: str | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """x @ weight with f32 accumulation, dequantized where the weight is float8.

    Args:
      x: [B, S, n] in the compute dtype.
      weight: [n, m] in the compute dtype, or float8 with a scale.
      scale: [128, m] (equal rows) or [1, m] f32; the product of column j is multiplied by
        scale[0, j]. None where the weight is not quantized.
      clamp_bound: where positive and the weight is quantized, x is clipped to +-clamp_bound.
      platform: the platform lowered for, where it is one; chooses the formulation.
      bias: [1, m], added to the product; None for none.

    Returns:
      [B, S, m] f32.
    """
    batch, tokens, inner = x.shape
    rows = x.reshape(batch * tokens, inner)
    if scale is not None and clamp_bound > 0:
        rows = jnp.clip(rows, -clamp_bound, clamp_bound)
    product = multiply(rows, weight, formulation.choose(weight, rows.shape[0], platform))
    if scale is not None:
        product = product * scale[:1].astype(jnp.float32)
    if bias is not None:
        product = product + bias.astype(jnp.float32)
    return product.reshape(batch, tokens, weight.shape[1])
