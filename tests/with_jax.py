"""JAX as the tests need it: eight CPU devices for those under shard_map, set before JAX starts."""

import functools
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import pytest
from jax._src import compiler, dispatch
from jax.experimental.compilation_cache import compilation_cache

from tests import compiled_programs, worker_memory

jax.config.update("jax_num_cpu_devices", 8)

LARGE_BYTES = 3 << 29
"""Resident memory of a worker, which is to stay below 3 GB, that one test more may add to."""


@pytest.fixture(autouse=True)
def forget_when_large() -> Iterator[None]:
    """Compiled programs are kept for the tests after, equal ones of other modules among them, until
    they fill the memory of a small machine."""
    yield
    if worker_memory.resident_bytes() > LARGE_BYTES:
        _forget()


@pytest.fixture(autouse=True, scope="session")
def failures_told_once() -> Iterator[None]:
    """A simulated launch that fails, as some tests want, leaves a token of its program, with which
    JAX would raise the same error again when the process ends."""
    yield
    dispatch.runtime_tokens.clear()


@pytest.fixture
def little_memory() -> None:
    """For tests that take gigabytes: what those before them have left is given back first."""
    _forget()


def _forget() -> None:
    jax.clear_caches()
    gc.collect()
    worker_memory.give_back()


QUICK_OPTIONS = {
    # One module of LLVM's for all fusions takes less than several, which repeat what they share.
    "xla_cpu_parallel_codegen_split_count": 1,
    # The older way to emit fusions on CPUs takes half the time to compile.
    "xla_cpu_use_fusion_emitters": False,
}
"""Options of XLA with which it compiles quickly; JAX 0.12 has no older emitters."""


@functools.cache
def _available(option: str) -> bool:
    """Whether this release of XLA has the option."""
    try:
        jax.jit(lambda: 0, compiler_options={option: QUICK_OPTIONS[option]})()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def xla_flags() -> str:
    """`QUICK_OPTIONS` as the environment variable XLA_FLAGS has them."""
    options = {name: value for name, value in QUICK_OPTIONS.items() if _available(name)}
    return " ".join(f"--{name}={value}".lower() for name, value in options.items())


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the programs of a module are compiled: quickly, unless it has the mark `compilation`.

    Most programs run once or twice, and LLVM's optimizations are most of the time of compiling.
    With `compilation("users_hlo")` they are left out, and all that XLA itself fuses, copies and
    allocates is as users have it; by default XLA's older emitters are used too, which changes what
    it fuses. `compilation("full")` is what users have.
    """
    mark = request.node.get_closest_marker("compilation")
    kind = "quick" if mark is None else mark.args[0]
    assert kind in ("quick", "users_hlo", "full"), kind
    if kind != "quick":
        # Programs of other modules would be used again.
        _forget()
    jax.config.update("jax_disable_most_optimizations", kind != "full")
    # JAX has no public switch for options of the compiler, but one for each function.
    with mock.patch.object(compiler, "get_compile_options", _options_with(kind)):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    if kind != "quick":
        _forget()


def _options_with(kind: str) -> Callable[..., Any]:
    """JAX's `get_compile_options`, with the options of `quick_compilation`."""
    original = compiler.get_compile_options
    if kind == "full":
        return original
    options = {name: value for name, value in QUICK_OPTIONS.items() if _available(name)}
    if kind == "users_hlo":
        options.pop("xla_cpu_use_fusion_emitters", None)

    def get_compile_options(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        found.env_option_overrides = [*found.env_option_overrides, *options.items()]
        return found

    return get_compile_options


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
