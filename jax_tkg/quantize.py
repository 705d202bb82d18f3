"""FP8 quantization of weights, one scale per output column."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes

from jax_tkg.call.arguments import FLOAT8_DTYPES, PARTITIONS


def quantize_float8(
    weight: jax.Array, dtype: jax.typing.DTypeLike = jnp.float8_e4m3, rows: int = PARTITIONS
) -> tuple[jax.Array, jax.Array]:
    """Rounds a weight to float8, so that weight is approximately quantized * scale.

    Args:
      weight: [n, m], or [L, n, m] for stacked layers; any floating dtype.
      dtype: float8_e4m3 (largest value 240, Trainium2), float8_e4m3fn (448, Trainium3) or
        float8_e5m2 (57344, both).
      rows: equal rows of the scale: 128, the layout of AWS's kernel, or 1.

    Returns:
      The float8 weight, of the shape given, and its scale [rows, m] (or [L, rows, m]) float32. The
      largest magnitude of a column becomes the dtype's largest value; a column of zeros has
      scale 1.

    Raises:
      TypeError: dtype is none of the three.
      ValueError: rows is neither 1 nor 128.
    """
    target = jnp.dtype(dtype)
    if target not in FLOAT8_DTYPES:
        names = ", ".join(candidate.name for candidate in FLOAT8_DTYPES)
        raise TypeError(f"dtype: expected one of {names}, got {target.name}")
    if rows not in (1, PARTITIONS):
        raise ValueError(f"rows: expected 1 or {PARTITIONS}, got {rows}")
    largest = float(ml_dtypes.finfo(target).max)
    wide = weight.astype(jnp.float32)
    peak = jnp.max(jnp.abs(wide), axis=-2, keepdims=True)
    scale = jnp.where(peak > 0, peak / largest, 1.0)
    quantized = jnp.clip(wide / scale, -largest, largest).astype(target)
    return quantized, jnp.broadcast_to(scale, (*scale.shape[:-2], rows, scale.shape[-1]))


def dequantize_float8(weight: jax.Array, scale: jax.Array) -> jax.Array:
    """The float32 weight that a float8 weight [.., n, m] and its scale [.., rows, m] stand for."""
    return weight.astype(jnp.float32) * scale[..., :1, :]
