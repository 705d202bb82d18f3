"""Meshes of the CPU devices that `tests/conftest.py` makes."""

from __future__ import annotations

import jax
import numpy as np

from jax_tkg.models.forward import TENSOR_AXIS


def mesh(ranks: int) -> jax.sharding.Mesh | None:
    """What `Decoder` takes for that many ranks."""
    if ranks == 1:
        return None
    return jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:ranks]), (TENSOR_AXIS,))
