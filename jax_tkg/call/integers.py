"""Integers: of sequences and tokens, which callers give in any dtype, and counts."""

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


def as_int32(numbers: jax.typing.ArrayLike, name: str = "numbers") -> jax.Array:
    """Integers of any dtype as int32; those beyond its range as its largest or smallest.

    Args:
      numbers: of any shape.
      name: of the argument, for the message.

    Raises:
      TypeError: they are no integers.
    """
    numbers = jnp.asarray(saturated(numbers))
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype, got {numbers.dtype.name}")
    given, wanted = jnp.iinfo(numbers.dtype), jnp.iinfo(jnp.int32)
    if given.max > wanted.max:
        numbers = jnp.minimum(numbers, numbers.dtype.type(wanted.max))
    if given.min < wanted.min:
        numbers = jnp.maximum(numbers, numbers.dtype.type(wanted.min))
    return numbers.astype(jnp.int32)


def check_count(name: str, value: Any) -> int:
    """A positive integer of Python.

    Raises:
      TypeError: the value is no integer. A bool is none.
      ValueError: it is less than 1.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def by_token(numbers: jax.Array) -> jax.Array:
    """[B] or [B, S] as [B, 1] or [B, S]."""
    return numbers if numbers.ndim == 2 else numbers[:, None]
