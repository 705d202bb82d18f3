"""Allocation of key and value caches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.operand_table import BY_NAME, names


def allocate_caches(
    num_layers: int,
    *,
    B: int,
    k: int,
    d: int,
    S_max: int,
    dtype: jax.typing.DTypeLike,
    stacked: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[Any, Any]:
    """Zeroed caches in the layout of `transformer_tkg`, each array a buffer of its own.

    Args:
      num_layers: L.
      B: batch.
      k: KV heads, over all ranks where the caches are sharded.
      d: d_head.
      S_max: capacity in tokens.
      dtype: dtype of keys and values: X's.
      stacked: one array with a leading layer axis in place of a list of arrays.
      sharding: sharding of each array, or None.

    Returns:
      K_caches (each [B, k, d, S_max]) and V_caches (each [B, k, S_max, d]): lists of L arrays, or
      two arrays with a leading axis of L.
    """
    sizes = {"B": B, "k": k, "d": d, "S_max": S_max}
    K_shape, V_shape = (BY_NAME[name].layout.shape(sizes) for name in names("cache"))
    if stacked:
        return (
            jnp.zeros((num_layers, *K_shape), dtype, device=sharding),
            jnp.zeros((num_layers, *V_shape), dtype, device=sharding),
        )
    return (
        [jnp.zeros(K_shape, dtype, device=sharding) for _ in range(num_layers)],
        [jnp.zeros(V_shape, dtype, device=sharding) for _ in range(num_layers)],
    )
