"""Several CPU devices for the tests that need a mesh."""

from __future__ import annotations

import os

import jax
import numpy as np

from jax_tkg.models.forward import TENSOR_AXIS

# Test modules are imported before the first test runs, so before JAX makes its devices.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)


def mesh(ranks: int) -> jax.sharding.Mesh | None:
    """What `Decoder` takes for that many ranks."""
    if ranks == 1:
        return None
    return jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:ranks]), (TENSOR_AXIS,))
