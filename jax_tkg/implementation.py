"""Which implementation a call lowers to, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax_tkg.arguments import Dimensions, Parameters
from jax_tkg.kernel_limits import check_kernel_limits
from jax_tkg.launches import logical_cores
from jax_tkg.neuron import is_dry_run
from jax_tkg.simulator.install import real_nki_present


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a call lowers to.

    Attributes:
      implementation: "reference", "nki" or "simulate".
      reason: why, in one sentence.
    """

    implementation: str
    reason: str


def choose(parameters: Parameters, dimensions: Dimensions, platforms: Sequence[str]) -> Choice:
    """Decides what a call lowers to.

    Args:
      parameters: the call's static parameters.
      dimensions: its sizes.
      platforms: what is lowered for, such as ("cpu",) or ("neuron",).

    Raises:
      ValueError: the implementation asked for cannot run: on these platforms, or at these sizes.
    """
    asked = parameters.implementation
    cores = logical_cores(parameters)
    if asked == "reference":
        return Choice("reference", "implementation='reference' was asked for")
    if asked == "simulate":
        if tuple(platforms) != ("cpu",):
            raise ValueError(
                "implementation: expected 'simulate' on platform cpu only (it is a host "
                f"callback), got platforms {tuple(platforms)}"
            )
        check_kernel_limits(dimensions, parameters.num_layers, cores)
        return Choice("simulate", "implementation='simulate' was asked for")
    if asked == "nki":
        if tuple(platforms) != ("neuron",):
            raise ValueError(
                f"implementation: expected 'nki' on platform neuron only, got platforms "
                f"{tuple(platforms)}"
            )
        if not _has_nki():
            raise ValueError(
                "implementation: expected an installed nki package for 'nki' (it comes from AWS's "
                "own package repository), got none"
            )
        check_kernel_limits(dimensions, parameters.num_layers, cores)
        return Choice("nki", "implementation='nki' was asked for")
    if tuple(platforms) != ("neuron",):
        return Choice("reference", f"platforms {tuple(platforms)} have no kernel")
    if not _has_nki():
        return Choice("reference", "AWS's nki package is not installed")
    try:
        check_kernel_limits(dimensions, parameters.num_layers, cores)
    except ValueError as error:
        return Choice("reference", f"the kernel's limits are exceeded: {error}")
    return Choice("nki", "the platform is neuron and the kernel's limits are kept")


def _has_nki() -> bool:
    """Whether the kernel can be lowered to: a dry run needs no compiler."""
    return real_nki_present() or is_dry_run()
