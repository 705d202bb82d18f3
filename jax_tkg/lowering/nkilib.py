"""The implementation "nkilib": AWS's published kernel, on Neuron or in the simulator.

The library is a checkout of aws-neuron/nki-library that the environment variable NKILIB names, or
else the `nkilib` of an installed Neuron compiler.
"""

from __future__ import annotations

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.lowering.implementation import Implementation, Results, on_plain_arrays
from jax_tkg.lowering.kernel_interface import KernelInterface
from jax_tkg.lowering.neuron import is_dry_run, neuron_transformer, nki_problem_here
from jax_tkg.lowering.neuron_settings import check_grid, check_target, logical_cores
from jax_tkg.lowering.nkilib_kernel import interface
from jax_tkg.lowering.nkilib_limits import check_nkilib_limits
from jax_tkg.lowering.nkilib_release import NEWEST, Release, installed_release
from jax_tkg.lowering.simulate import simulated_transformer, simulator_problem
from jax_tkg.reference.masks import with_masks


def _release() -> Release:
    """What the installed library takes. A dry run needs none, and then describes the newest."""
    try:
        return installed_release()
    except ValueError:
        if is_dry_run():
            return NEWEST
        raise


def _available(platform: str) -> str | None:
    problem = nki_problem_here(platform) if platform == "neuron" else simulator_problem(platform)
    if problem is not None:
        return problem
    try:
        _release()
    except ValueError as error:
        return str(error).removeprefix("implementation: ")
    return None


def _check(operands: Operands, parameters: Parameters, platform: str) -> None:
    if platform == "neuron":
        check_grid(parameters, looped=False)
    check_target(operands)
    _kernel(operands).check_supported(operands, parameters)
    check_nkilib_limits(operands, parameters, logical_cores(parameters), _release())


def _kernel(operands: Operands) -> KernelInterface:
    return interface(_release(), operands)


def _run(operands: Operands, parameters: Parameters, platform: str | None) -> Results:
    transformer = neuron_transformer if platform == "neuron" else simulated_transformer
    # It takes masks only.
    operands = with_masks(operands, Dimensions.of(operands, parameters.context_bucket))
    kernel = _kernel(operands)
    run = on_plain_arrays(lambda given, options: transformer(given, options, kernel))
    return run(operands, parameters, platform)


NKILIB = Implementation(
    name="nkilib",
    description="AWS's kernel, on Neuron or in the simulator",
    platforms=("neuron", "cpu"),
    available=_available,
    check=_check,
    run=_run,
    kernel=_kernel,
    calls_host=True,
)
