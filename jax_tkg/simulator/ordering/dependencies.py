"""The order of a rank's instructions on the device: data dependencies and meetings of its cores.

The instructions of a core run on many engines and queues at once. Two things order them. First, the
compiler makes a consumer wait for its producer, and a writer wait for earlier readers and writers
of the same bytes (`hazards`). Second, an instruction waits for its partner on the other core at a
meeting (`core_barrier`, `sendrecv`, or a collective on HBM). A barrier acts on its `data`: it waits
for earlier accesses to that tensor and holds back later ones.
"""

from collections.abc import Callable

from jax_tkg.simulator.machine.machine import Machine
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.ordering.hazards import UNORDERED, Hazards

Node = tuple[int, int]


def is_meeting(instruction: Instruction) -> bool:
    """Whether an instruction waits for the other core of its rank."""
    return "meeting" in instruction.attributes


class DependencyGraph:
    """The order that the hardware keeps between the instructions of one rank's cores.

    The graph is built at the first query, because few programs need one.
    """

    def __init__(self, machine: Machine, rank: int, meets: Callable[[Instruction], bool]):
        """Args:
        machine: after a run.
        rank: whose cores.
        meets: which instructions count as meetings: the n-th of one core meets the other's n-th.
        """
        self._machine = machine
        self._rank = rank
        self._meets = meets
        self._is_built = False
        self._after: dict[Node, list[Node]] = {}
        self._before: dict[Node, list[Node]] = {}
        self._partner: dict[Node, Node] = {}
        self._reached: dict[tuple[Node, bool], set[Node]] = {}

    def leads(self, start: Instruction, end: Instruction, forward: bool) -> bool:
        """Whether `end` runs after (or, if not `forward`, before) `start` on the other core."""
        if not self._is_built:
            self._build()
        key = ((start.core, start.index), forward)
        if key not in self._reached:
            self._reached[key] = self._reachable(*key)
        return (end.core, end.index) in self._reached[key]

    def _build(self) -> None:
        self._is_built = True
        meetings = []
        for core in range(self._machine.lnc):
            stream = self._machine.cores[(self._rank, core)].instructions
            self._add_core(core, stream)
            meetings.append([i.index for i in stream if self._meets(i)])
        for first, second in zip(*meetings, strict=False):
            self._partner[(0, first)] = (1, second)
            self._partner[(1, second)] = (0, first)

    def _add_core(self, core: int, stream: list[Instruction]) -> None:
        hazards = Hazards(stream)
        for instruction in stream:
            node = (core, instruction.index)
            # The compiler may reorder what memory does not order, even within an engine.
            for index in hazards.add(instruction, UNORDERED):
                self._after.setdefault((core, index), []).append(node)
                self._before.setdefault(node, []).append((core, index))

    def _reachable(self, start: Node, forward: bool) -> set[Node]:
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
                # The partner's meeting is simultaneous; only its followers come after.
                following += edges.get(partner, ())
            for other in following:
                if other not in found:
                    found.add(other)
                    pending.append(other)
        return found
