"""A layer's latency on the machines of the stress set: a range, where one figure is a guess."""

from __future__ import annotations

from collections.abc import Sequence

from jax_tkg.profile.layer import Launches, bound, layer_figures
from jax_tkg.simulator.timing.costs import Costs
from jax_tkg.simulator.timing.stress import Machine


def on_machines(
    launches: Launches, costs: Costs, machines: Sequence[Machine]
) -> list[tuple[Machine, float, float]]:
    """Each machine with the latency of a layer in ns, and that over the HBM bound.

    Args:
      launches: recorded.
      costs: of the generation; a machine's own all-reduce latency takes precedence.
      machines: which.
    """
    found = []
    for machine in machines:
        changed = machine.costs(costs)
        figures = layer_figures(launches, changed, machine.tensor_rate, placement=machine.placement)
        latency = figures.latency
        found.append((machine, latency, latency / bound(launches.case, changed)))
    return found


def describe(found: Sequence[tuple[Machine, float, float]]) -> str:
    """The range, and a line for each machine."""
    latencies = [latency for _, latency, _ in found]
    ratios = [ratio for _, _, ratio in found]
    lines = [
        f"  on other machines, modeled:       {min(latencies) / 1e3:.2f} to "
        f"{max(latencies) / 1e3:.2f} us, {min(ratios):.2f} to {max(ratios):.2f} times the HBM bound"
    ]
    lines += [
        f"    {latency / 1e3:10.2f} us  {ratio:5.2f}  {machine.name}: {machine.assumes}"
        for machine, latency, ratio in found
    ]
    return "\n".join(lines)
