"""JAX as the tests need it: eight CPU devices for those under shard_map, set before JAX starts."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs() -> Iterator[None]:
    """Hundreds of compiled programs per module would fill the memory of a small machine."""
    yield
    jax.clear_caches()
