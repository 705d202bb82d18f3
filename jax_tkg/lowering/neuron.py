"""Lowering to the Neuron kernel: one custom call per launch, and a dry run of it on any machine."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.installed_nki import nki_problem
from jax_tkg.lowering import custom_call, kernel_entry
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch
from jax_tkg.lowering.launches import run_launches
from jax_tkg.lowering.neuron_settings import logical_cores, nc_version

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


def dry_run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Lowers a function for platform "neuron" on this machine, without compiling anything.

    Where AWS's nki (0.6 or later) is not installed, the kernel's custom calls name no compiled
    kernel. All else is as it is on a Trainium machine: targets, operands, aliases, and the config,
    to which this adds the replica groups and the number of layers.

    Args:
      function: jitted or not.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct`s.
      **kwargs: likewise.

    Returns:
      The StableHLO text.
    """
    return str(lower_for_neuron(function, *args, **kwargs).compiler_ir("stablehlo"))


def lower_for_neuron(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As `dry_run`, and gives JAX's Lowered object, whose module can be walked."""
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with _dry_running():
        return jitted.trace(*args, **kwargs).lower(lowering_platforms=("neuron",))


def neuron_transformer(
    operands: Operands, parameters: Parameters, kernel: KernelInterface = MEGAKERNEL
) -> tuple[jax.Array, Any, Any]:
    """The forward pass by a Neuron kernel: what `reference.transformer` gives."""
    cores = logical_cores(parameters)

    def run(tensors: dict[str, Any], launch: Launch) -> tuple[jax.Array, Any, Any]:
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
                custom_call.multiplications(operands, launch.num_layers),
            )
            results = custom_call.described_call(names, values, config)
        hidden, *caches = results
        half = len(caches) // 2
        if launch.stacked_caches:
            return hidden, caches[0], caches[1]
        return hidden, tuple(caches[:half]), tuple(caches[half:])

    return run_launches(operands, parameters, run, kernel)


def _call_kernel(
    source: str, values: list[Any], launch: Launch, cores: int
) -> tuple[jax.Array, ...]:
    """Through the installed nki's own entry for JAX arrays."""
    # Moved out of `experimental` by no release yet that is supported here.
    from jax.experimental.xla_metadata import set_xla_metadata

    entry = kernel_entry.load_entry(source)
    if launch.replica_groups is None:
        return entry[cores](*values)
    with set_xla_metadata(has_collectives="1"):
        return entry[cores](*values)
