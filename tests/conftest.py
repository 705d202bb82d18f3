"""Eight CPU devices for the tests under shard_map, set before JAX starts; the NKI simulator."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest

from jax_tkg import simulator

jax.config.update("jax_num_cpu_devices", 8)
# Kernels import nki.
simulator.install()

# Runs are repeatable, and a slow machine is no failure.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Hundreds of compiled programs per module would fill the memory of a small machine."""
    yield
    jax.clear_caches()
