"""Integers of sequences and tokens, which callers give in any dtype and for either."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def as_int32(numbers: jax.typing.ArrayLike) -> jax.Array:
    """Integers of any dtype as int32; those beyond its range as its largest or smallest."""
    numbers = jnp.asarray(numbers)
    given, wanted = jnp.iinfo(numbers.dtype), jnp.iinfo(jnp.int32)
    if given.max > wanted.max:
        numbers = jnp.minimum(numbers, numbers.dtype.type(wanted.max))
    if given.min < wanted.min:
        numbers = jnp.maximum(numbers, numbers.dtype.type(wanted.min))
    return numbers.astype(jnp.int32)


def by_token(numbers: jax.Array) -> jax.Array:
    """[B] or [B, S] as [B, 1] or [B, S]."""
    return numbers if numbers.ndim == 2 else numbers[:, None]
