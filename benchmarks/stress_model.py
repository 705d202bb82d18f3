"""Both kernels on every machine of `jax_tkg.simulator.timing.stress`, for a few cells of the grid.

Called by `python -m benchmarks.trainium_model --stress`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from jax_tkg.profile.layer import Launches, LayerFigures, bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import Case
from jax_tkg.simulator.timing.costs import TARGETS
from jax_tkg.simulator.timing.stress import MACHINES, Machine

CELLS = (
    "70b.tp8.B1.S1.ctx1024.bf16",
    "70b.tp8.B8.S1.ctx1024.bf16",
    "70b.tp8.B1.S1.ctx36864.bf16",
    "70b.tp32.B16.S1.ctx1024.bf16",
    "70b.tp32.B4.S1.ctx1024.fp8",
)
"""Those whose weights, caches or small steps dominate, at both ends of the tensor parallelism."""

_HEADINGS = ["machine", "ours us", "/ bound", "in turn", "AWS us", "/ bound", "ours / AWS"]
"""In turn: what the Tensor Engine and the all-reduces take of ours, over the bound. Neither can go
on during the other: each takes what the other made."""


@dataclasses.dataclass(frozen=True)
class StressRow:
    """One machine on one cell; times in ns, None where the kernel was not modeled.

    Attributes:
      bound: that of HBM.
      ours, aws: a layer's latency.
      in_turn: what of ours cannot overlap: the Tensor Engine's time and the all-reduces'.
    """

    machine: Machine
    bound: float
    ours: float | None
    in_turn: float | None
    aws: float | None

    def columns(self) -> list[str]:
        """The row of a table."""
        return [
            self.machine.name,
            _us(self.ours),
            _ratio(self.ours, self.bound),
            _ratio(self.in_turn, self.bound),
            _us(self.aws),
            _ratio(self.aws, self.bound),
            _ratio(self.ours, self.aws),
        ]


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e3:.1f}"


def _ratio(value: float | None, other: float | None) -> str:
    return "-" if value is None or other is None else f"{value / other:.2f}"


def stressed(case: Case, kernels: Sequence[str]) -> list[StressRow]:
    """A cell on every machine: recorded once for each kernel, and scheduled again and again."""
    recorded = {name: _recorded(case, name) for name in kernels}

    def figures(kernel: str, machine: Machine) -> LayerFigures | None:
        launches = recorded.get(kernel)
        return None if launches is None else figures_on(launches, machine)

    return [
        _row(machine, bound(case), figures("ours", machine), figures("nkilib", machine))
        for machine in MACHINES
    ]


def _row(
    machine: Machine, least: float, ours: LayerFigures | None, aws: LayerFigures | None
) -> StressRow:
    return StressRow(
        machine,
        least,
        None if ours is None else ours.latency,
        None if ours is None else ours.busy["tensor"] + ours.busy["collective"],
        None if aws is None else aws.latency,
    )


def _recorded(case: Case, kernel: str) -> Launches | None:
    try:
        return record_launches(case, kernel)
    except ValueError as error:
        print(f"{kernel}: {error}", flush=True)
        return None


def figures_on(launches: Launches, machine: Machine) -> LayerFigures:
    """A layer's figures; all-reduces are free unless the machine gives them a latency."""
    costs = machine.costs(TARGETS[launches.case.target])
    collectives = "all_reduce_latency" in machine.changes
    return layer_figures(launches, costs, machine.tensor_rate, collectives, machine.placement)


def latency_on(launches: Launches, machine: Machine) -> float:
    """The latency of `figures_on`, in ns."""
    return figures_on(launches, machine).latency


def chain_latency(launches: Launches) -> float:
    """A layer's latency in ns with an HBM and DMA engines that take no time for bytes.

    What is left are the steps that wait for each other.
    """
    costs = TARGETS[launches.case.target]
    instant = dataclasses.replace(costs, hbm_bandwidth=1e9, dma_bandwidth=1e9, dma_run=0.0)
    return layer_figures(launches, instant).latency


def run(cells: Sequence[tuple[str, Case]], kernels: Sequence[str], markdown: str | None) -> None:
    """Prints a table for each cell, and writes them to a file if one is given."""
    texts = ["Modeled, not measured. All-reduces are free unless the machine gives them a latency."]
    texts += [f"- {machine.name}: {machine.assumes}" for machine in MACHINES]
    for name, case in cells:
        rows = stressed(case, kernels)
        table = [_HEADINGS, ["---"] * len(_HEADINGS), *(row.columns() for row in rows)]
        lines = [f"| {' | '.join(cells)} |" for cells in table]
        text = "\n".join(["", f"{name}, bound {rows[0].bound / 1e3:.1f} us", "", *lines])
        print(text, flush=True)
        texts.append(text)
        if markdown:
            pathlib.Path(markdown).write_text("\n".join(texts) + "\n")
