"""FP8 quantization: of weights, one scale per output column, and of caches, one per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_tkg.bits import Bits, as_bits, without_bits
from jax_tkg.call.arguments import FLOAT8_CACHE_DTYPES, FLOAT8_DTYPES, PARTITIONS, is_stacked

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: devices flush smaller ones to 0, whose inverse is infinite."""

_LARGEST_SCALE = 1 / _SMALLEST_SCALE
"""2**126: the inverse of a larger scale is not normal."""


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
      largest magnitude of a column becomes the dtype's largest value, or less where the scale
      would be below float32's normal numbers; a column of zeros has scale 1.

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
    scale = jnp.where(peak > 0, jnp.maximum(peak / largest, _SMALLEST_SCALE), 1.0)
    quantized = jnp.clip(wide / scale, -largest, largest).astype(target)
    return quantized, jnp.broadcast_to(scale, (*scale.shape[:-2], rows, scale.shape[-1]))


def dequantize_float8(weight: jax.Array, scale: jax.Array) -> jax.Array:
    """The float32 weight that a float8 weight [.., n, m] and its scale [.., rows, m] stand for."""
    return weight.astype(jnp.float32) * scale[..., :1, :]


def cache_scales(
    samples: Any, dtype: jax.typing.DTypeLike = jnp.float8_e4m3, margin: float = 1.0
) -> Any:
    """`k_scales` of `jax_tkg.transformer_tkg` from sample keys, or `v_scales` from sample values.

    Args:
      samples: a sequence with an array or `Bits` for each layer, or one with a leading layer axis:
        keys or values of typical prompts, such as caches in the compute dtype hold. Of any shape.
      dtype: of the caches: float8_e4m3 (Trainium2) or float8_e4m3fn (Trainium3).
      margin: how far beyond the largest sample of a layer keys or values may go before they are
        clipped. 2 costs the last bit of the smallest numbers only.

    Returns:
      [1, 1] float32 for each layer in a list, or [L, 1, 1]: the dtype's largest value over that
      bound, within 2**-126..2**126, so that the scale and its inverse are normal numbers; 1 for a
      layer of zeros. Traced samples that are not finite give NaN.

    Raises:
      TypeError: dtype is none of the two.
      ValueError: margin is not positive and finite, or a sample is not finite in float32.
    """
    largest = _largest_in_caches(dtype)
    if not margin > 0 or not math.isfinite(margin):
        raise ValueError(f"margin: expected a positive finite number, got {margin}")
    # Not margin * peak, which may be above float32's range.
    bound = min(max(largest / float(margin), _SMALLEST_SCALE), float(np.finfo(np.float32).max))

    def scale(sample: Any, label: str, layers: int) -> jax.Array:
        sample = without_bits(sample)
        axes = tuple(range(layers, sample.ndim))
        peak = jnp.max(jnp.abs(jnp.asarray(sample, jnp.float32)), axis=axes)
        is_finite = jnp.isfinite(peak)
        if not isinstance(peak, jax.core.Tracer) and not is_finite.all():
            got = peak[~is_finite].ravel()[0]
            raise ValueError(f"{label}: expected finite numbers in float32, got {got}")
        scales = jnp.clip(bound / peak, _SMALLEST_SCALE, _LARGEST_SCALE)
        scales = jnp.where(is_finite, scales, jnp.nan)
        return jnp.where(peak == 0, 1.0, scales)[..., None, None]

    if is_stacked(samples):
        return scale(samples, "samples", 1)
    return [scale(sample, f"samples[{index}]", 0) for index, sample in enumerate(samples)]


def quantize_caches(caches: Any, scales: Any, dtype: jax.typing.DTypeLike = jnp.float8_e4m3) -> Any:
    """Caches in float8, such as a prompt's that were filled in the compute dtype.

    Args:
      caches: a sequence with an array or `Bits` for each layer, or one with a leading layer axis.
      scales: [1, 1] float32 for each layer, or [L, 1, 1], from `cache_scales`.
      dtype: float8_e4m3 or float8_e4m3fn.

    Returns:
      The caches in their container, `Bits` where they were.

    Raises:
      TypeError: dtype is none of the two.
    """
    _largest_in_caches(dtype)
    if isinstance(caches, Sequence):
        pairs = zip(caches, scales, strict=True)
        container: Any = type(caches)
        return container([quantize_caches(cache, scale, dtype) for cache, scale in pairs])
    values = caches.values() if isinstance(caches, Bits) else caches
    scale = scales.reshape(*scales.shape[:-2], *(1,) * (values.ndim - scales.ndim + 2))
    quantized = scaled_to_float8(values, scale, dtype)
    return as_bits(quantized) if isinstance(caches, Bits) else quantized


def scaled_to_float8(values: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """values * scale, clipped to a float8 dtype's range, in that dtype."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return jnp.clip(values.astype(jnp.float32) * scale, -largest, largest).astype(dtype)


def _largest_in_caches(dtype: jax.typing.DTypeLike) -> float:
    target = jnp.dtype(dtype)
    if target not in FLOAT8_CACHE_DTYPES:
        names = " or ".join(candidate.name for candidate in FLOAT8_CACHE_DTYPES)
        raise TypeError(f"dtype: expected {names}, got {target.name}")
    return float(ml_dtypes.finfo(target).max)
