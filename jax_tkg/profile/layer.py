"""One layer's modeled figures: what the last layer of a launch adds to a launch without it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from jax_tkg.profile.model_shapes import Case
from jax_tkg.profile.recording import record
from jax_tkg.profile.traffic import KINDS, kind_of
from jax_tkg.simulator.machine.record import Record
from jax_tkg.simulator.timing.costs import TARGETS, Costs
from jax_tkg.simulator.timing.placement import Placement
from jax_tkg.simulator.timing.timeline import (
    Dependencies,
    Timeline,
    memory_dependencies,
    schedule,
)
from jax_tkg.simulator.timing.timeline_report import critical_shares

STEADY_LAYERS = 3
"""Layers of a launch whose last one is like those of a model. The second is not where layers are so
short that the weights of several load while the first waits for its own."""


@dataclasses.dataclass(frozen=True)
class Launches:
    """Recorded launches of one layer fewer, and of all `layers`."""

    case: Case
    kernel: str
    layers: int
    records: tuple[Record, Record]
    _found: dict[Placement, tuple[Dependencies, Dependencies]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def dependencies(self, placement: Placement) -> tuple[Dependencies, Dependencies]:
        """What the memory of the launches orders, which is found once for each placement."""
        if placement not in self._found:
            shorter, longer = self.records
            self._found[placement] = (
                memory_dependencies(shorter, placement=placement),
                memory_dependencies(longer, placement=placement),
            )
        return self._found[placement]


@dataclasses.dataclass(frozen=True)
class LayerFigures:
    """Modeled figures of one layer; times in ns.

    Attributes:
      latency: of a layer.
      start_up: what a launch takes beside its layers.
      hbm_bytes: by kind, read and written by all cores of the rank.
      busy: busy time by engine, of core 0; "dma" is the average of the DMA engines.
      instructions: of core 0.
      critical: (words, time) of the critical path by statement, longest first; sums to `latency`.
      timeline: of the longer launch.
      layers: of the longer launch.
    """

    latency: float
    start_up: float
    hbm_bytes: dict[str, int]
    busy: dict[str, float]
    instructions: int
    critical: list[tuple[str, float]]
    timeline: Timeline
    layers: int


def record_launches(case: Case, kernel: str = "ours", layers: int = STEADY_LAYERS) -> Launches:
    """Records launches of `layers` - 1 and of `layers` layers.

    Raises:
      ValueError: the kernel cannot run the case, or `layers` is less than 2.
    """
    if layers < 2:
        raise ValueError(f"layers={layers}: expected 2 or more, to tell a layer from the start")
    shorter, longer = (record(case, count, kernel) for count in (layers - 1, layers))
    return Launches(case, kernel, layers, (shorter, longer))


def layer_figures(
    launches: Launches,
    costs: Costs | None = None,
    tensor_rate: str = "half",
    collectives: bool = True,
    placement: Placement = Placement.APART,
) -> LayerFigures:
    """Schedules the launches and takes the difference.

    Args:
      launches: recorded.
      costs: None takes those of the case's target.
      tensor_rate: as in `schedule`.
      collectives: whether collectives take time.
      placement: of the tensors on chip.
    """
    case = launches.case
    costs = costs or TARGETS[case.target]
    group_size = case.tensor_parallel if collectives else 1
    shorter, longer = (
        schedule(recorded, costs, 0, tensor_rate, group_size, dependencies)
        for recorded, dependencies in zip(
            launches.records, launches.dependencies(placement), strict=True
        )
    )
    latency = longer.latency - shorter.latency
    return LayerFigures(
        latency=latency,
        start_up=longer.latency - launches.layers * latency,
        hbm_bytes=_bytes(case, shorter, longer),
        busy={name: time - shorter.busy()[name] for name, time in longer.busy().items()},
        instructions=_instructions(longer) - _instructions(shorter),
        critical=_difference(_critical(longer), _critical(shorter)),
        timeline=longer,
        layers=launches.layers,
    )


def _instructions(timeline: Timeline) -> int:
    return len({e.instruction.index for e in timeline.events if e.instruction.core == 0})


def _bytes(case: Case, shorter: Timeline, longer: Timeline) -> dict[str, int]:
    """What a layer reads and writes, by kind."""
    classify = functools.partial(kind_of, experts=case.experts > 0)
    before, after = (timeline.hbm_bytes(classify) for timeline in (shorter, longer))
    return {kind: after.get(kind, 0) - before.get(kind, 0) for kind in KINDS}


def _critical(timeline: Timeline) -> dict[str, float]:
    return {share.described(): share.time for share in critical_shares(timeline)}


def _difference(longer: dict[str, float], shorter: dict[str, float]) -> list[tuple[str, float]]:
    words: Sequence[str] = list({**longer, **shorter})
    found = [(each, longer.get(each, 0.0) - shorter.get(each, 0.0)) for each in words]
    return sorted(found, key=lambda pair: -pair[1])


def required_bytes(case: Case) -> int:
    """What a layer cannot do without: each weight and each attended cache entry read once.

    Of experts, those that its tokens choose.
    """
    return case.weight_bytes() + case.cache_bytes()


def bound(case: Case, costs: Costs | None = None) -> float:
    """Least ns in which the rank's cores read `required_bytes` from HBM."""
    costs = costs or TARGETS[case.target]
    return required_bytes(case) / (costs.hbm_bandwidth * case.lnc)
