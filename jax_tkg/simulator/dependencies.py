"""Which instructions of a rank must wait for which: data dependencies, and meetings of its cores.

On the device instructions of one core run on many engines and queues at once. What orders them is
only that the compiler makes a consumer wait for its producer, and a writer for earlier readers and
writers of the same bytes; and that an instruction of one core waits for its partner at a meeting
(`core_barrier`, `sendrecv`, a collective on HBM). A barrier takes part for its `data`: it waits
for the earlier accesses to it and holds back the later ones.

Regions are compared by their extents, so two interleaved accesses count as dependent.
"""

import dataclasses

from jax_tkg.simulator.machine import Machine
from jax_tkg.simulator.record import Access, Instruction

Node = tuple[int, int]
_Key = tuple[str, int, int | None, int | None]


@dataclasses.dataclass(slots=True)
class _Use:
    """An earlier access: extents in partitions and bytes, and the instruction."""

    partitions: tuple[int, int]
    bytes: tuple[int, int]
    index: int

    def overlaps(self, other: "_Use") -> bool:
        return (
            self.bytes[0] < other.bytes[1]
            and other.bytes[0] < self.bytes[1]
            and self.partitions[0] < other.partitions[1]
            and other.partitions[0] < self.partitions[1]
        )

    def covers(self, other: "_Use") -> bool:
        return (
            self.bytes[0] <= other.bytes[0]
            and other.bytes[1] <= self.bytes[1]
            and self.partitions[0] <= other.partitions[0]
            and other.partitions[1] <= self.partitions[1]
        )


_EVERYTHING = (0, 1 << 62)


class DependencyGraph:
    """The order that the hardware keeps between the instructions of one rank's cores."""

    def __init__(self, machine: Machine, rank: int):
        self._after: dict[Node, list[Node]] = {}
        self._before: dict[Node, list[Node]] = {}
        meetings = []
        for core in range(machine.lnc):
            stream = machine.cores[(rank, core)].instructions
            self._add_core(core, stream)
            meetings.append([i.index for i in stream if "meeting" in i.attributes])
        self._partner: dict[Node, Node] = {}
        for first, second in zip(*meetings, strict=False):
            self._partner[(0, first)] = (1, second)
            self._partner[(1, second)] = (0, first)

    def _add_core(self, core: int, stream: list[Instruction]) -> None:
        writes: dict[_Key, list[_Use]] = {}
        reads: dict[_Key, list[_Use]] = {}
        for instruction in stream:
            producers: set[int] = set()
            uses = _uses(instruction)
            for key, use, is_write in uses:
                producers.update(u.index for u in writes.get(key, ()) if u.overlaps(use))
                if is_write:
                    producers.update(u.index for u in reads.get(key, ()) if u.overlaps(use))
            for key, use, is_write in uses:
                if is_write:
                    # What this write covers is ordered through it from now on.
                    for table in (writes, reads):
                        table[key] = [u for u in table.get(key, ()) if not use.covers(u)]
                    writes[key].append(use)
                else:
                    reads.setdefault(key, []).append(use)
            node = (core, instruction.index)
            for index in producers - {instruction.index}:
                self._after.setdefault((core, index), []).append(node)
                self._before.setdefault(node, []).append((core, index))

    def reachable(self, start: Node, forward: bool) -> set[Node]:
        """All instructions that run after (or before) `start`, on both cores.

        What precedes a meeting on one core precedes what follows it on the other.
        """
        edges = self._after if forward else self._before
        found: set[Node] = set()
        pending = [start]
        while pending:
            node = pending.pop()
            following = list(edges.get(node, ()))
            partner = self._partner.get(node)
            if partner is not None:
                # Not the meeting of the partner itself, but what waits for it.
                following += edges.get(partner, ())
            for other in following:
                if other not in found:
                    found.add(other)
                    pending.append(other)
        return found


def _uses(instruction: Instruction) -> list[tuple[_Key, _Use, bool]]:
    index = instruction.index
    uses = [(a.memory, _use_of(a, index), a.is_write) for a in instruction.accesses]
    for storage in instruction.attributes.get("meeting", ()):
        key: _Key = ("hbm", instruction.rank, None, storage)
        uses.append((key, _Use(_EVERYTHING, _EVERYTHING, index), True))
    return uses


def _use_of(access: Access, index: int) -> _Use:
    start = access.partition_start
    low, high = access.byte_range
    if access.rows is not None and len(access.rows):
        low, high = low + int(min(access.rows)), high + int(max(access.rows))
    return _Use((start, start + access.partitions), (low, high), index)
