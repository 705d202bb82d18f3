"""Which implementation a call lowers to, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.canonical import run_checked
from jax_tkg.call.signature import bind_arguments
from jax_tkg.lowering.implementation import Implementation
from jax_tkg.lowering.neuron_settings import logical_cores
from jax_tkg.lowering.registry import AUTOMATIC, named

_KERNELS = ("nki", "nkilib", "simulate")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a call lowers to.

    Attributes:
      implementation: the name of an implementation, never "auto".
      reason: why, in one sentence.
    """

    implementation: str
    reason: str


def choose(operands: Operands, parameters: Parameters, platforms: Sequence[str]) -> Choice:
    """Decides what a call lowers to.

    Args:
      operands: the call's arrays, or their abstract values.
      parameters: its static parameters.
      platforms: the platforms of the lowering, such as ("cpu",) or ("neuron",).

    Raises:
      ValueError: the implementation asked for cannot run: on these platforms, on this machine, or
        at these sizes.
    """
    asked = parameters.implementation
    if "neuron" in platforms:
        # Settings that make no sense are an error, also if "auto" could do without them.
        logical_cores(parameters)
    if asked == "auto":
        return _choose_automatically(operands, parameters, tuple(platforms))
    implementation = named(asked)
    if implementation.platforms:
        platform = _only_platform(implementation, tuple(platforms))
        implementation.check(operands, parameters, platform)
        problem = implementation.available(platform)
        if problem is not None:
            raise ValueError(
                "implementation: expected one that can run on this machine, got "
                f"'{asked}': {problem}"
            )
    return Choice(asked, f"implementation='{asked}' was asked for")


def _only_platform(implementation: Implementation, platforms: tuple[str, ...]) -> str:
    if len(platforms) == 1 and platforms[0] in implementation.platforms:
        return platforms[0]
    raise ValueError(
        f"implementation: expected '{implementation.name}' on platform "
        f"{' or '.join(implementation.platforms)} only (it is {implementation.description}), got "
        f"platforms {platforms}"
    )


def is_within_limits(name: str, **arguments: Any) -> bool:
    """Whether a kernel's implementation has the options and the on-chip memory that a call needs.

    It asks nothing of this machine: not that the platform is here, nor that its compiler is.

    Args:
      name: "nki", "nkilib" or "simulate".
      **arguments: arguments of `transformer_tkg`; arrays may be traced.

    Raises:
      TypeError, ValueError: as `transformer_tkg`, or there is no kernel of that name.
    """
    if name not in _KERNELS:
        raise ValueError(f"name: expected one of {', '.join(_KERNELS)}, got {name!r}")
    implementation = named(name)
    platform = implementation.platforms[0]
    within: list[bool] = []

    def run(operands: Operands, parameters: Parameters) -> tuple[Any, ...]:
        try:
            implementation.check(operands, parameters, platform)
        except ValueError:
            within.append(False)
        else:
            within.append(True)
        return operands.X, operands.K_caches, operands.V_caches

    run_checked(run, bind_arguments(**arguments))
    return all(within)


def _choose_automatically(
    operands: Operands, parameters: Parameters, platforms: tuple[str, ...]
) -> Choice:
    """The first implementation that can run; the reason tells why those before it cannot."""
    obstacles: list[str] = []
    for implementation in AUTOMATIC:
        if not implementation.platforms:
            reasons = obstacles or [f"platforms {platforms} have no implementation of their own"]
            return Choice(implementation.name, "; ".join(reasons))
        if len(platforms) > 1 or platforms[0] not in implementation.platforms:
            continue
        obstacle = _obstacle(implementation, operands, parameters, platforms[0])
        if obstacle is None:
            name = implementation.name
            reason = (
                f"the platform is {platforms[0]}, and the call is within the limits of '{name}'"
            )
            return Choice(name, reason)
        obstacles.append(obstacle)
    raise AssertionError("the last automatic implementation runs on every platform")


def _obstacle(
    implementation: Implementation, operands: Operands, parameters: Parameters, platform: str
) -> str | None:
    """Why an implementation cannot run a call on its platform, or None."""
    problem = implementation.available(platform)
    if problem is not None:
        return problem
    try:
        implementation.check(operands, parameters, platform)
    except ValueError as error:
        return f"the limits of '{implementation.name}' are exceeded: {error}"
    return None
