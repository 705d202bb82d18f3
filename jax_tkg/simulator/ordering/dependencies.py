"""Which instructions of a rank must wait for which: data dependencies, and meetings of its cores.

On the device instructions of one core run on many engines and queues at once. What orders them is
only that the compiler makes a consumer wait for its producer, and a writer for earlier readers and
writers of the same bytes (`hazards`); and that an instruction of one core waits for its partner at
a meeting (`core_barrier`, `sendrecv`, a collective on HBM). A barrier takes part for its `data`: it
waits for the earlier accesses to it and holds back the later ones.
"""

from jax_tkg.simulator.machine.machine import Machine
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.ordering.hazards import UNORDERED, Hazards

Node = tuple[int, int]


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
        hazards = Hazards(stream)
        for instruction in stream:
            node = (core, instruction.index)
            # The compiler may move anything that memory does not order, also within an engine.
            for index in hazards.add(instruction, UNORDERED):
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
