"""When each instruction of a recorded run would execute: a model, not a measurement.

`scheduler` says what is modeled, and `costs` holds the constants. Not modeled: contention of
collectives with other DMA traffic, bank conflicts, the compiler's reordering, instruction fetch,
and the outcome of a race. One rank is scheduled; the other ranks are assumed to arrive at each
collective at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jax_tkg.simulator.machine.record import Instruction, Record
from jax_tkg.simulator.ordering import hazards
from jax_tkg.simulator.timing.costs import TARGETS, Costs
from jax_tkg.simulator.timing.placement import Placement, place
from jax_tkg.simulator.timing.pricing import moved
from jax_tkg.simulator.timing.scheduler import ENGINES, Event, Scheduler, queue_of
from jax_tkg.simulator.timing.waits import Wait, Waits

TENSOR_RATES = ("half", "ramp", "full")


@dataclasses.dataclass
class Timeline:
    """The modeled execution of one rank.

    Attributes:
      costs: the constants used.
      tensor_rate: how the Tensor Engine's throttle was modeled.
      lnc: cores of the rank.
      events: in the order of the program.
      waits: what they waited for.
    """

    costs: Costs
    tensor_rate: str
    lnc: int
    events: list[Event]
    waits: Waits

    @property
    def latency(self) -> float:
        """Modeled time from the start of the kernel to its last instruction's end, in ns."""
        return max((event.end for event in self.events), default=0.0)

    def busy(self, core: int = 0) -> dict[str, float]:
        """Busy time of each engine in ns; of "dma", the average over the DMA engines.

        Products that run at once count once.
        """
        totals = dict.fromkeys((*ENGINES, "dma", "collective"), 0.0)
        products = []
        for event in self.events:
            if event.instruction.core != core:
                continue
            if event.resource == "dma":
                used = sum(end - start for _, start, end in event.engines)
                totals["dma"] += used / self.costs.dma_engines
            elif event.resource == "tensor":
                products.append((event.start, event.end))
            else:
                totals[event.resource] += event.end - event.start
        reached = 0.0
        for start, end in sorted(products):
            totals["tensor"] += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return totals

    def hbm_bytes(self, kind_of: Callable[[str], str] = str) -> dict[str, int]:
        """Bytes that all cores of the rank read from and write to HBM.

        Args:
          kind_of: the kind to count a tensor under, from its name; by default each name is a kind.
        """
        totals: dict[str, int] = {}
        for event in self.events:
            if event.resource not in ("dma", "collective"):
                continue
            for group in moved(event.instruction):
                for access in group:
                    if access.space == "hbm":
                        kind = kind_of(access.name)
                        totals[kind] = totals.get(kind, 0) + access.nbytes
        return totals

    def hbm_bound(self, nbytes: int) -> float:
        """Least time in ns in which the rank's cores move that many bytes of HBM."""
        return nbytes / (self.costs.hbm_bandwidth * self.lnc)

    def critical_waits(self) -> list[Wait]:
        """The chain of parts of events that ends last; each waited for the one before it."""
        if not self.events:
            return []
        return self.waits.chain(max(self.events, key=lambda event: event.end).wait)

    def critical_path(self) -> list[Event]:
        """The chain of events that ends last; a part of each waited for the one before it."""
        return [self.events[wait.event] for wait in self.critical_waits()]


Dependencies = list[list[dict[int, str]]]
"""Per core and instruction of a rank, the earlier instructions that it waits for, and why."""


def memory_dependencies(
    record: Record, rank: int = 0, placement: Placement = Placement.APART
) -> Dependencies:
    """The memory dependencies of a rank's instructions, which do not depend on costs.

    Args:
      record: of a run.
      rank: whose instructions.
      placement: of the tensors that have no address, which wait for those whose bytes they reuse.

    Raises:
      ValueError: the rank has no record.
    """
    found = []
    for stream in _streams(record, rank):
        addresses = {
            storage: address
            for space in ("sbuf", "psum")
            for storage, address in place(stream, space, record.target, placement).items()
        }
        memory = hazards.Hazards(stream, addresses)
        found.append([memory.add(i, queue_of(i)) for i in stream])
    return found


def _streams(record: Record, rank: int) -> list[list[Instruction]]:
    streams = [record.streams.get((rank, core)) for core in range(record.lnc)]
    if any(stream is None for stream in streams):
        raise ValueError(f"rank={rank}: the record has ranks 0..{record.ranks - 1}")
    return [stream or [] for stream in streams]


def schedule(
    record: Record,
    costs: Costs | None = None,
    rank: int = 0,
    tensor_rate: str = "half",
    group_size: int | None = None,
    dependencies: Dependencies | None = None,
) -> Timeline:
    """Models when the instructions of one rank execute.

    Args:
      record: of a run.
      costs: the constants; None takes those of the record's target.
      rank: whose instructions.
      tensor_rate: "half": the Tensor Engine is always throttled; "ramp": it is until it was busy
        for half of the last `tensor_ramp`; "full": never, the optimistic case.
      group_size: how many ranks take part in an all-reduce, where another number was recorded
        (one rank of a group behaves as all do); 1 makes all collectives free.
      dependencies: the record's `memory_dependencies`, if already computed.

    Raises:
      ValueError: the target has no costs, the rank no record, `tensor_rate` is unknown, or the
        cores do not meet equally often.
    """
    if tensor_rate not in TENSOR_RATES:
        raise ValueError(f"tensor_rate={tensor_rate!r}: expected one of {list(TENSOR_RATES)}")
    if costs is None:
        costs = TARGETS.get(record.target)
        if costs is None:
            raise ValueError(f"no costs are known for {record.target!r}, only for {[*TARGETS]}")
    streams = _streams(record, rank)
    if dependencies is None:
        dependencies = memory_dependencies(record, rank)
    scheduler = Scheduler(costs, tensor_rate, group_size)
    for core, stream in enumerate(streams):
        scheduler.add_core(core, stream, dependencies[core])
    scheduler.pair_meetings()
    scheduler.run()
    events = [node.event for node in scheduler.nodes]
    return Timeline(costs, tensor_rate, record.lnc, events, scheduler.waits)
