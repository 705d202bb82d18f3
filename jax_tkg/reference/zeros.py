"""Zeros that XLA does not see to be zeros, so that they depend on what they are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def unseen_zero(array: jax.Array) -> jax.Array:
    """uint32 0, made of the first number of an array, which is not to be empty.

    Inside `shard_map` it varies over the axes over which the array varies.
    """
    first = array.reshape(-1)[0].astype(jnp.float32)
    return (jax.lax.bitcast_convert_type(first, jnp.uint32) >> 31) >> 1
