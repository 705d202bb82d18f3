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


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without LLVM's optimizations, for modules whose programs run once or twice.

    They are most of the time of compiling; what XLA itself fuses, copies and aliases is the same.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
