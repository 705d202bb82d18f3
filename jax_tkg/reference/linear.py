"""Matrix products of activations with weights, accumulated in f32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Multiply = Callable[[jax.Array, Any], jax.Array]
"""Computes rows [R, n] @ weight [n, m] as f32 [R, m]. The weight has a form of its own."""


def multiply(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """rows @ weight, accumulated in f32.

    Args:
      rows: [R, n] in the compute dtype.
      weight: [n, m] in the compute dtype or float8.

    Returns:
      [R, m] f32.
    """
    return jnp.matmul(
        rows,
        weight.astype(rows.dtype),  # Exact: each float8 value is one of each compute dtype.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def linear(
    x: jax.Array,
    weight: Any,
    scale: jax.Array | None = None,
    clamp_bound: float = 0.0,
    multiply: Multiply = multiply,
    bias: jax.Array | None = None,
) -> jax.Array:
    """x @ weight with f32 accumulation, dequantized where the weight is float8.

    Args:
      x: [B, S, n] in the compute dtype.
      weight: [n, m] in the compute dtype, or float8 with a scale; in the form that `multiply`
        takes.
      scale: [128, m] (equal rows) or [1, m] f32; the product of column j is multiplied by
        scale[0, j]. None where the weight is not quantized.
      clamp_bound: where positive and the weight is quantized, x is clipped to +-clamp_bound.
      multiply: computes the product.
      bias: [1, m], added to the product; None for none.

    Returns:
      [B, S, m] f32.
    """
    batch, tokens, inner = x.shape
    rows = x.reshape(batch * tokens, inner)
    if scale is not None and clamp_bound > 0:
        rows = jnp.clip(rows, -clamp_bound, clamp_bound)
    product = multiply(rows, weight)
    if scale is not None:
        product = product * scale[:1].astype(jnp.float32)
    if bias is not None:
        product = product + bias.astype(jnp.float32)
    return product.reshape(batch, tokens, product.shape[1])
