"""The transfers of one layer's weights and caches: contiguous bytes, triggers and descriptors."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

from jax_tkg.profile.layer import Launches
from jax_tkg.profile.traffic import LASTING, kind_of
from jax_tkg.simulator.machine.record import Instruction, Record
from jax_tkg.simulator.timing import pricing
from jax_tkg.simulator.timing.costs import TARGETS, Costs


@dataclasses.dataclass(frozen=True, order=True)
class Load:
    """What the transfers have in common that a row of the table counts.

    Attributes:
      tensor: the kernel's argument, without its layer.
      where: file and line of the statement.
      run: contiguous bytes in HBM.
      row: bytes of one partition.
      trigger, descriptors: as in `pricing.trigger_of` and `pricing.descriptors_of`.
      written: whether the tensor is written.
    """

    tensor: str
    where: str
    run: int
    row: int
    trigger: str
    descriptors: str
    written: bool


@dataclasses.dataclass(frozen=True)
class Count:
    """Transfers of both cores that are alike, and the bytes that they move."""

    load: Load
    transfers: int
    nbytes: int


def layer_loads(launches: Launches) -> list[Count]:
    """The transfers of weights and caches that one more layer adds, by tensor, shortest run first.

    The order is that of the tensors' names.
    """
    costs = TARGETS[launches.case.target]
    shorter, longer = (_counted(each, costs) for each in launches.records)
    transfers = collections.Counter({load: found[0] for load, found in longer.items()})
    nbytes = collections.Counter({load: found[1] for load, found in longer.items()})
    for load, (count, total) in shorter.items():
        transfers[load] -= count
        nbytes[load] -= total
    return [Count(load, transfers[load], nbytes[load]) for load in sorted(longer) if nbytes[load]]


def _counted(record: Record, costs: Costs) -> dict[Load, tuple[int, int]]:
    found: dict[Load, tuple[int, int]] = {}
    for (rank, _), stream in record.streams.items():
        for load, nbytes in _loads(stream, costs) if rank == 0 else ():
            count, total = found.get(load, (0, 0))
            found[load] = (count + 1, total + nbytes)
    return found


def _loads(stream: list[Instruction], costs: Costs) -> Iterator[tuple[Load, int]]:
    for instruction in stream:
        if instruction.engine != "dma" or pricing.is_collective(instruction):
            continue
        _, transfer = pricing.transfer_of(costs, instruction)
        sources, destinations = pricing.moved(instruction)
        for access in (*sources, *destinations):
            if access.space != "hbm" or kind_of(access.name) not in LASTING:
                continue
            load = Load(
                access.name.split("[")[0],
                instruction.where,
                min(access.nbytes, pricing.run_bytes(access)),
                transfer.row_bytes,
                pricing.trigger_of(costs, instruction),
                pricing.descriptors_of(costs, instruction),
                access.is_write,
            )
            yield load, access.nbytes


def describe_loads(counts: list[Count], name: str) -> str:
    """A table of the transfers of a kernel."""
    lines = [
        f"{name}: transfers of a layer's weights and caches, both cores",
        f"  {'tensor':16}{'':8}{'bytes in a run':>16}{'a partition':>14}{'transfers':>12}"
        f"{'bytes':>14}  {'trigger, descriptors':24}statement",
    ]
    for count in counts:
        load = count.load
        by = f"{load.trigger}, {load.descriptors}"
        lines.append(
            f"  {load.tensor:16}{'write' if load.written else 'read':8}{load.run:>16}{load.row:>14}"
            f"{count.transfers:>12}{count.nbytes:>14}  {by:24}{_short(load.where)}"
        )
    return "\n".join(lines)


def _short(where: str) -> str:
    return "/".join(where.rsplit("/", 2)[-2:])
