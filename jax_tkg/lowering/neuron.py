"""The implementation "nki": the megakernel as a Neuron custom call, one for each launch."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.installed_nki import nki_problem
from jax_tkg.lowering import custom_call, kernel_entry
from jax_tkg.lowering.implementation import Implementation, Results, on_plain_arrays
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch
from jax_tkg.lowering.kernel_limits import check_megakernel
from jax_tkg.lowering.launches import launches_loop, run_launches, split_results
from jax_tkg.lowering.neuron_settings import (
    check_grid,
    logical_cores,
    naming_cores,
    nc_version,
)

_dry = contextvars.ContextVar("jax_tkg_dry_run", default=False)


def is_dry_run() -> bool:
    """Whether this is a lowering for `dry_run`."""
    return _dry.get()


@contextlib.contextmanager
def _dry_running() -> Iterator[None]:
    token = _dry.set(True)
    try:
        yield
    finally:
        _dry.reset(token)


def lower_for_neuron(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Lowers a function for platform "neuron" on this machine, as `jax_tkg.dry_run` does.

    Args:
      function: jitted or not.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
      **kwargs: its keyword arguments.

    Returns:
      JAX's Lowered object, whose module can be walked.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with _dry_running():
        return jitted.trace(*args, **kwargs).lower(lowering_platforms=("neuron",))


def neuron_transformer(
    operands: Operands, parameters: Parameters, kernel: KernelInterface = MEGAKERNEL
) -> Results:
    """The forward pass by a Neuron kernel, with the results of `reference.transformer`."""
    cores = logical_cores(parameters)

    def run(tensors: dict[str, Any], launch: Launch) -> Results:
        names, values = kernel_entry.flatten(tensors, kernel)
        if nki_problem() is None:
            source = kernel_entry.entry_source(tensors, launch, kernel)
            results = _call_kernel(source, values, launch, cores)
        else:
            config = custom_call.kernel_config(
                kernel_entry.ENTRY_NAME,
                names,
                launch,
                cores,
                nc_version(tensors),
                custom_call.multiplications(operands, launch),
            )
            results = custom_call.described_call(
                names, values, config, parameters.candidates_per_token
            )
        return split_results(results, tensors, launch)

    return run_launches(operands, parameters, run, kernel)


def _call_kernel(
    source: str, values: list[Any], launch: Launch, cores: int
) -> tuple[jax.Array, ...]:
    """Through the installed nki's own entry for JAX arrays."""
    # Moved out of `experimental` by no release yet that is supported here.
    from jax.experimental.xla_metadata import set_xla_metadata

    entry = kernel_entry.load_entry(source)
    with naming_cores(cores):
        if launch.replica_groups is None:
            return entry[cores](*values)
        with set_xla_metadata(has_collectives="1"):
            return entry[cores](*values)


def nki_problem_here(platform: str) -> str | None:
    """Why a Neuron kernel cannot be lowered to on this machine, or None. A dry run always can."""
    del platform  # It is always neuron.
    return None if is_dry_run() else nki_problem()


def _check(operands: Operands, parameters: Parameters, platform: str) -> None:
    del platform
    check_megakernel(operands, parameters)
    check_grid(parameters, launches_loop(operands, parameters))


NEURON = Implementation(
    name="nki",
    description="the Neuron kernel",
    platforms=("neuron",),
    available=nki_problem_here,
    check=_check,
    run=on_plain_arrays(neuron_transformer),
    kernel=lambda operands: MEGAKERNEL,
)
