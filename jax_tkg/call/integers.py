"""Integers of sequences and tokens, which callers give in any dtype and for either."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def saturated(numbers: Any) -> Any:
    """NumPy's 64-bit integers in the 32-bit dtype that JAX gives them, clipped to its range.

    JAX itself keeps their last 32 bits only: 2**32 + 3 would be 3. In 64-bit mode, and of any other
    type or dtype, numbers stay as they are.
    """
    if not isinstance(numbers, np.ndarray | np.generic) or numbers.dtype.kind not in "iu":
        return numbers
    held = jax.dtypes.canonicalize_dtype(numbers.dtype)
    if held == numbers.dtype:
        return numbers
    range_held = np.iinfo(held)
    return np.clip(numbers, range_held.min, range_held.max).astype(held)


def as_int32(numbers: jax.typing.ArrayLike) -> jax.Array:
    """Integers of any dtype as int32; those beyond its range as its largest or smallest."""
    numbers = jnp.asarray(saturated(numbers))
    given, wanted = jnp.iinfo(numbers.dtype), jnp.iinfo(jnp.int32)
    if given.max > wanted.max:
        numbers = jnp.minimum(numbers, numbers.dtype.type(wanted.max))
    if given.min < wanted.min:
        numbers = jnp.maximum(numbers, numbers.dtype.type(wanted.min))
    return numbers.astype(jnp.int32)


def by_token(numbers: jax.Array) -> jax.Array:
    """[B] or [B, S] as [B, 1] or [B, S]."""
    return numbers if numbers.ndim == 2 else numbers[:, None]
