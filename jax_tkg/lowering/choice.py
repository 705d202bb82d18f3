"""Which implementation a call lowers to, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.installed_nki import nki_problem
from jax_tkg.lowering.kernel_interface import MEGAKERNEL
from jax_tkg.lowering.kernel_limits import check_kernel_limits
from jax_tkg.lowering.neuron import is_dry_run
from jax_tkg.lowering.neuron_settings import check_target, logical_cores
from jax_tkg.lowering.nkilib import NKILIB, find_module
from jax_tkg.lowering.nkilib_limits import check_nkilib_limits


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a call lowers to.

    Attributes:
      implementation: "reference", "nki", "simulate" or "nkilib".
      reason: why, in one sentence.
    """

    implementation: str
    reason: str


def choose(operands: Operands, parameters: Parameters, platforms: Sequence[str]) -> Choice:
    """Decides what a call lowers to.

    Args:
      operands: the call's arrays, or their abstract values.
      parameters: its static parameters.
      platforms: what is lowered for, such as ("cpu",) or ("neuron",).

    Raises:
      ValueError: the implementation asked for cannot run: on these platforms, or at these sizes.
    """
    asked = parameters.implementation
    dimensions = Dimensions.of(operands)
    cores = logical_cores(parameters)
    if asked == "auto":
        return _choose_automatically(operands, parameters, dimensions, cores, platforms)
    choice = Choice(asked, f"implementation='{asked}' was asked for")
    if asked == "reference":
        return choice
    _check_platforms(asked, tuple(platforms))
    check_target(operands)
    if asked == "nkilib":
        if not is_dry_run():
            find_module()
        NKILIB.check_supported(operands, parameters)
        check_nkilib_limits(operands, parameters, dimensions, cores)
        return choice
    problem = _nki_problem()
    if asked == "nki" and problem is not None:
        raise ValueError(
            "implementation: expected AWS's nki package, from AWS's own package repository, for "
            f"'nki': {problem}"
        )
    MEGAKERNEL.check_supported(operands, parameters)
    check_kernel_limits(dimensions, parameters.num_layers, cores)
    return choice


_PLATFORMS = {
    "nki": ("neuron", "the Neuron kernel"),
    "simulate": ("cpu", "a host callback"),
}


def _check_platforms(asked: str, platforms: tuple[str, ...]) -> None:
    if asked == "nkilib":
        if platforms not in (("neuron",), ("cpu",)):
            raise ValueError(
                "implementation: expected 'nkilib' on platform neuron, or on cpu alone (in the "
                f"simulator), got platforms {platforms}"
            )
        return
    platform, what = _PLATFORMS[asked]
    if platforms != (platform,):
        raise ValueError(
            f"implementation: expected '{asked}' on platform {platform} only (it is {what}), got "
            f"platforms {platforms}"
        )


def _choose_automatically(
    operands: Operands,
    parameters: Parameters,
    dimensions: Dimensions,
    cores: int,
    platforms: Sequence[str],
) -> Choice:
    if tuple(platforms) != ("neuron",):
        return Choice("reference", f"platforms {tuple(platforms)} have no kernel")
    problem = _nki_problem()
    if problem is not None:
        return Choice("reference", problem)
    try:
        check_target(operands)
        MEGAKERNEL.check_supported(operands, parameters)
        check_kernel_limits(dimensions, parameters.num_layers, cores)
    except ValueError as error:
        return Choice("reference", f"the kernel's limits are exceeded: {error}")
    return Choice("nki", "the platform is neuron and the kernel's limits are kept")


def _nki_problem() -> str | None:
    """Why the kernel cannot be lowered to, or None. A dry run needs no compiler."""
    return None if is_dry_run() else nki_problem()
