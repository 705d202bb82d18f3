"""float8 caches: what they hold is keys and values times a scale, clipped to the format's range."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jax_tkg.quantize import scaled_to_float8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheScales:
    """The scales of one layer's caches, each [1, 1] f32; None for a cache in the compute dtype."""

    key: jax.Array | None = None
    value: jax.Array | None = None


UNSCALED = CacheScales()
"""Of caches that hold keys and values as they are."""


def stored(columns: jax.Array, scale: jax.Array | None, dtype: Any) -> jax.Array:
    """New keys or values as a cache holds them.

    Args:
      columns: in the compute dtype.
      scale: [1, 1] f32 of a float8 cache; None for a cache in the compute dtype.
      dtype: of the cache.
    """
    if scale is None:
        return columns
    return scaled_to_float8(columns, scale[0, 0], dtype)
