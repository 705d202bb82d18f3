"""Tables for rotary position embedding."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of low frequencies; `rope_type` "llama3" in Hugging Face configs.

    Attributes:
      factor: by how much long wavelengths are stretched.
      low_frequency_factor: wavelengths over original_context_length / low_frequency_factor are
        stretched fully.
      high_frequency_factor: wavelengths under original_context_length / high_frequency_factor are
        left alone; those between are interpolated.
      original_context_length: context length of the pre-training, in tokens.
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_length: int = 8192


def rope_frequencies(
    d_head: int, theta: float = 10000.0, scaling: Llama3Scaling | None = None
) -> np.ndarray:
    """Angle per position of each pair of features: theta ** (-2i / d_head).

    Args:
      d_head: d, even.
      theta: base of the frequencies.
      scaling: Llama 3's scaling, or None.

    Returns:
      [d//2] float64, radians per position.

    Raises:
      ValueError: d_head is odd or not positive.
    """
    if d_head < 2 or d_head % 2:
        raise ValueError(f"d_head: expected a positive even number, got {d_head}")
    frequencies = theta ** (-np.arange(0, d_head, 2, dtype=np.float64) / d_head)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context_length / wavelengths
    kept = (turns - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_tables(
    position_ids: jax.Array,
    d_head: int,
    theta: float = 10000.0,
    scaling: Llama3Scaling | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation at each new token's position.

    Args:
      position_ids: [B, S] integers, the position of each new token.
      d_head: d, even.
      theta: base of the frequencies.
      scaling: Llama 3's scaling, or None.
      dtype: dtype of the tables.

    Returns:
      RoPE_cos and RoPE_sin, each [d//2, B, S].

    Raises:
      ValueError: d_head is odd or not positive.
    """
    return tables_of_frequencies(position_ids, rope_frequencies(d_head, theta, scaling), dtype)


def tables_of_frequencies(
    position_ids: jax.Array, frequencies: np.ndarray, dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for frequencies that come with a checkpoint.

    Args:
      position_ids: [B, S] integers, the position of each new token.
      frequencies: [d//2], radians per position.
      dtype: dtype of the tables.

    Returns:
      RoPE_cos and RoPE_sin, each [d//2, B, S].
    """
    per_position = jnp.asarray(frequencies, jnp.float32)[:, None, None]
    angles = per_position * jnp.asarray(position_ids).astype(jnp.float32)[None]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
