"""JAX as the tests need it: eight CPU devices for those under shard_map, set before JAX starts."""

import functools
import gc
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import pytest
from jax._src import compiler
from jax.experimental.compilation_cache import compilation_cache

from tests import compiled_programs, worker_memory

jax.config.update("jax_num_cpu_devices", 8)

LARGE_BYTES = 2 << 30
"""Resident memory of a worker, which is to stay below 3 GB, that one test more may add to."""


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs() -> Iterator[None]:
    """Hundreds of compiled programs per module would fill the memory of a small machine."""
    yield
    _forget()


@pytest.fixture(autouse=True)
def forget_when_large() -> Iterator[None]:
    """Drawn shapes, of which each has programs of its own, fill it within a module too."""
    yield
    if worker_memory.resident_bytes() > LARGE_BYTES:
        _forget()


def _forget() -> None:
    jax.clear_caches()
    gc.collect()
    worker_memory.give_back()


@functools.cache
def _older_emitters() -> list[tuple[str, bool]]:
    """Options of XLA's older way to emit fusions on CPUs, which takes half the time to compile.

    Empty where there is none, as in JAX 0.12.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return []
    return list(options.items())


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without LLVM's optimizations, for modules whose programs run once or twice.

    They are most of the time of compiling; what XLA itself fuses, copies and aliases is the same.
    """
    older_emitters = _older_emitters()
    original = compiler.get_compile_options

    def get_compile_options(*args: Any, **kwargs: Any) -> Any:
        options = original(*args, **kwargs)
        options.env_option_overrides = [*options.env_option_overrides, *older_emitters]
        return options

    jax.config.update("jax_disable_most_optimizations", True)
    # JAX has no public switch for options of the compiler, but one for each function.
    with mock.patch.object(compiler, "get_compile_options", get_compile_options):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def programs_of_this_run() -> Iterator[None]:
    """Compiled programs are shared by all modules with this fixture and by commands."""
    settings = {
        "jax_compilation_cache_dir": os.environ[compiled_programs.FOLDER_VARIABLE],
        **compiled_programs.SETTINGS,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        # JAX looks at the settings once.
        compilation_cache.reset_cache()
        if values is settings:
            yield
