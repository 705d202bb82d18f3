"""Arrays of the host on devices, those of other processes included."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def put(arrays: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """`jax.device_put`, also where some of the devices belong to other processes.

    Args:
      arrays: a pytree. With devices of other processes every process has the same, whole.
      sharding: where each goes; None: on the default device.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(arrays, sharding)

    def one(array: Any) -> jax.Array:
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            words = one(jax.random.key_data(array))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(array))
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, arrays)
