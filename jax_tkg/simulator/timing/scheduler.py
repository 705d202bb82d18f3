"""Schedules the instructions of the cores of a rank on engines and DMA queues.

Engines run their instructions in program order, but for products on different tiles of the Tensor
Engine's array (`tensor_array`). A DMA is triggered by an engine, as one of that
engine's instructions: so it waits its turn and keeps later ones waiting until its data dependencies
are met. Then the DMA engines of its partitions serve it, first come, first served. No instruction
starts before its data dependencies are met. `costs` holds the constants.

A turn of a device loop starts after everything earlier on its core has ended, on all engines and in
all queues, and adds `Costs.loop_turn`. So no instruction of a turn overlaps the previous turn.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque

from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.ordering.hazards import UNORDERED
from jax_tkg.simulator.timing.costs import Costs
from jax_tkg.simulator.timing.instruction_costs import collective_time, dma_engine_times
from jax_tkg.simulator.timing.pricing import (
    descriptors_of,
    engine_time,
    is_collective,
    loading_time,
    moved,
    transfer_of,
    trigger_of,
)
from jax_tkg.simulator.timing.tensor_array import WHOLE, TensorArray, Tile
from jax_tkg.simulator.timing.waits import Free, Waits

ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync")
"""The engines of a core, by the names of records."""

# The start of a turn of a device loop, and the end of the loop.
_LOOP_MARKS = ("loop_turn", "loop_end")

# The steps of an event.
_REACHES_ENGINES = "reaches the DMA engines"
_ENDS = "ends"


@dataclasses.dataclass(slots=True)
class Event:
    """One instruction's use of a resource.

    Attributes:
      number: position in `Timeline.events`.
      instruction: what ran.
      resource: "tensor", "vector", "scalar", "gpsimd", "sync", "dma" or "collective". A DMA has an
        event on the engine that triggers it, too, just before its own.
      start, end: in ns. A DMA starts when its first DMA engine does.
      waited_for: number of the event that delayed its start, or None.
      why: "data" (reads what that wrote), "reuse" (overwrites what that read), "overwrite",
        "explicit", "engine" (the engine was busy), "descriptor" (the trigger waited for the
        generator of descriptors), "memory" (another engine accessed the memory), "trigger" (of a
        DMA: the event that triggered it), "dma engine" (the DMA engines were busy), "loop" (a turn
        of a device loop starts after everything earlier, and before everything later), or "start".
      engines: of a DMA, (DMA engine, start, end) of each that it used.
      wait: number of the `Wait` that ends with the event.
    """

    number: int
    instruction: Instruction
    resource: str
    start: float = 0.0
    end: float = 0.0
    waited_for: int | None = None
    why: str = "start"
    engines: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    wait: int = -1


@dataclasses.dataclass(slots=True)
class _Node:
    """An event while it is scheduled.

    Attributes:
      missing: dependencies that have not ended.
      ready: when the last of those that have ended lets it start.
      cause, why: the number of the `Wait` that ends then, and why it counts.
      followers: events that wait for this one, and why.
      transfer: the DMA that this event triggers, or None.
      partner: the other core's event of the same meeting.
      arrived: when a meeting's event could start if its partner were there; None before.
    """

    event: Event
    core: int
    missing: int = 0
    ready: float = 0.0
    cause: int | None = None
    why: str = "start"
    followers: list[tuple[_Node, str]] = dataclasses.field(default_factory=list)
    transfer: _Node | None = None
    partner: _Node | None = None
    arrived: float | None = None

    def wait(self, time: float, cause: int | None, why: str) -> None:
        """Moves the earliest start."""
        if time > self.ready:
            self.ready, self.cause, self.why = time, cause, why


@dataclasses.dataclass(slots=True)
class _CoreState:
    """Resources of one core: the waiting events, and when each resource is free."""

    waiting: dict[str, deque[_Node]]
    free: dict[str, Free]
    dma_engines: list[Free]
    generators: dict[str, Free]
    memories: dict[str, Free]
    array: TensorArray = dataclasses.field(default_factory=TensorArray)
    loaded: set[str] = dataclasses.field(default_factory=set)


class Scheduler:
    """Schedules cores that were added: `add_core` each, `pair_meetings`, then `run`.

    Attributes:
      nodes: the events, in the order of the program.
      waits: what they waited for.
    """

    def __init__(self, costs: Costs, tensor_rate: str, group_size: int | None):
        self.costs = costs
        self.tensor_rate = tensor_rate
        self.group_size = group_size
        self.nodes: list[_Node] = []
        self.waits = Waits()
        self.cores: list[_CoreState] = []
        self._meetings: list[list[_Node]] = []
        # (time, order of pushing, node, what happens)
        self._heap: list[tuple[float, int, _Node, str]] = []
        self._pushed = 0

    # Building the graph

    def add_core(
        self, core: int, stream: list[Instruction], dependencies: list[dict[int, str]]
    ) -> None:
        """Adds a core's instructions and their dependencies."""
        costs = self.costs
        resources = (*ENGINES, "collective")
        state = _CoreState(
            waiting={name: deque() for name in resources},
            free=dict.fromkeys(resources, (0.0, None)),
            dma_engines=[(0.0, None)] * int(costs.dma_engines),
            generators=dict.fromkeys(ENGINES, (0.0, None)),
            memories=dict.fromkeys(("sbuf", "psum"), (0.0, None)),
        )
        self.cores.append(state)
        by_index: dict[int, _Node] = {}
        meetings = []
        turn: _Node | None = None
        of_turn: list[_Node] = []
        for instruction, waits in zip(stream, dependencies, strict=True):
            resource = _resource(instruction)
            if resource == "dma":
                first = self._new_node(core, instruction, trigger_of(costs, instruction))
                node = first.transfer = self._new_node(core, instruction, resource)
            else:
                node = first = self._new_node(core, instruction, resource)
            state.waiting[first.event.resource].append(first)
            for index, kind in waits.items():
                self._follow(first, by_index[index], kind)
            by_index[instruction.index] = node
            if turn is not None:
                self._follow(first, turn, "loop")
            if instruction.opcode in _LOOP_MARKS:
                for earlier in of_turn:
                    self._follow(node, earlier, "loop")
                turn, of_turn = node, []
            else:
                of_turn.append(node)
            if "meeting" in instruction.attributes:
                meetings.append(first)
        self._meetings.append(meetings)

    def _new_node(self, core: int, instruction: Instruction, resource: str) -> _Node:
        node = _Node(Event(len(self.nodes), instruction, resource), core)
        self.nodes.append(node)
        return node

    @staticmethod
    def _follow(node: _Node, producer: _Node, why: str) -> None:
        producer.followers.append((node, why))
        node.missing += 1

    def pair_meetings(self) -> None:
        """Makes the n-th meeting of one core wait for the n-th of the other."""
        if len(self._meetings) < 2:
            return
        counts = [len(meetings) for meetings in self._meetings]
        if len(set(counts)) > 1:
            raise ValueError(
                f"record: the cores of the rank meet {counts} times, not equally often"
            )
        for first, second in zip(*self._meetings, strict=True):
            first.partner, second.partner = second, first

    # Running it

    def run(self) -> None:
        """Schedules everything in order of time."""
        for core in range(len(self.cores)):
            for engine in self.cores[core].waiting:
                self._advance(core, engine)
        while self._heap:
            time, _, node, phase = heapq.heappop(self._heap)
            if phase == _ENDS:
                self._finish(node, time)
            else:
                self._occupy_dma(node, time)
        for state in self.cores:
            # Program order is one valid order, so that nothing can be left waiting.
            assert not any(state.waiting.values())

    def _push(self, time: float, node: _Node, phase: str) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (time, self._pushed, node, phase))

    def _finish(self, node: _Node, time: float) -> None:
        # In program order: who goes first decides between transfers that start at one time.
        touched: dict[str, None] = {}
        for follower, why in node.followers:
            follower.missing -= 1
            follower.wait(time + self._lag(node, follower, why), node.event.wait, why)
            if follower.missing == 0:
                touched[follower.event.resource] = None
        for resource in touched:
            self._advance(node.core, resource)

    def _lag(self, producer: _Node, consumer: _Node, why: str) -> float:
        """The time from a producer's end until its consumer may start."""
        if why == "loop":
            return 0.0
        first, second = producer.event.resource, consumer.event.resource
        is_engine = first in ENGINES
        result = self.costs.overhead / self.costs.clock(first) if is_engine else 0.0
        if consumer.transfer is not None:
            # The start of a DMA includes waiting for its semaphore.
            return 0.0 if why == "reuse" else result
        if first == second and is_engine:
            # In order on one engine; the Tensor Engine's instructions are pipelined into PSUM.
            return result if why == "data" and first != "tensor" else 0.0
        return float(self.costs.semaphore) + (0.0 if why == "reuse" else result)

    # Engines that run in order

    def _advance(self, core: int, engine: str) -> None:
        """Starts the events at the head of an engine's queue whose data is ready."""
        queue = self.cores[core].waiting[engine]
        while queue and queue[0].missing == 0:
            node = queue[0]
            free, last = self.cores[core].free[engine]
            node.wait(free, last, "engine")
            if node.partner is None:
                queue.popleft()
                self._start(node)
                continue
            node.arrived = node.ready
            other = node.partner
            if other.arrived is None:
                return
            late = node if node.ready >= other.ready else other
            for each in (node, other):
                each.wait(late.ready, late.cause, late.why)
                self.cores[each.core].waiting[each.event.resource].popleft()
                self._start(each)
            self._advance(other.core, other.event.resource)

    def _start(self, node: _Node) -> None:
        event = node.event
        state = self.cores[node.core]
        generated = (
            node.transfer is not None
            and descriptors_of(self.costs, event.instruction) == "hardware"
        )
        if generated:
            node.wait(*state.generators[event.resource], "descriptor")
        memories = self._exclusive_memories(node)
        for name in memories:
            node.wait(*state.memories[name], "memory")
        if event.resource == "tensor":
            self._await_array(node, state.array)
        event.start, event.why = node.ready, node.why
        event.waited_for = self.waits.event(node.cause)
        event.end = event.start + self._duration(node)
        event.wait = self.waits.add(event.number, node.why, event.end, node.cause)
        if event.resource == "tensor":
            # A later product may run on a tile that is free before this one ends.
            state.array.occupy(self._tile(event), event.start, event.end, event.wait)
        else:
            state.free[event.resource] = (event.end, event.wait)
        for name in memories:
            state.memories[name] = (event.end, event.wait)
        if generated:
            made = event.start + self.costs.dge_interval
            wait = self.waits.add(event.number, node.why, made, node.cause)
            state.generators[event.resource] = (made, wait)
        if node.transfer is not None:
            node.transfer.cause, node.transfer.why = event.wait, "trigger"
            reached = max(event.end, event.start + self.costs.dma_start)
            self._push(reached, node.transfer, _REACHES_ENGINES)
        self._push(event.end, node, _ENDS)

    def _tile(self, event: Event) -> Tile:
        """The part of the Tensor Engine's array that an instruction keeps to itself."""
        tile = event.instruction.attributes.get("tile")
        if tile is None or not self.costs.tiles_in_parallel:
            return WHOLE
        return Tile(*tile)

    def _await_array(self, node: _Node, array: TensorArray) -> None:
        """Waits for earlier loads of stationary tiles, then for the instruction's own tile."""
        event = node.event
        tile = self._tile(event)
        if tile != WHOLE:
            node.wait(*array.loads, "engine")
            time = loading_time(self.costs, event.instruction)
            loaded = node.ready + time / self._tensor_rate(node)
            array.loads = (loaded, self.waits.add(event.number, node.why, loaded, node.cause))
        node.wait(*array.free(tile), "engine")

    def _exclusive_memories(self, node: _Node) -> list[str]:
        """The memories in which no other engine may be active while an instruction runs."""
        if not self.costs.vector_and_gpsimd_share_sbuf or node.event.instruction.engine == "dma":
            return []
        spaces = {access.space for access in node.event.instruction.accesses}
        engines = {"sbuf": ("vector", "gpsimd"), "psum": ("vector", "scalar")}
        return [
            name
            for name, users in engines.items()
            if name in spaces and node.event.resource in users
        ]

    def _duration(self, node: _Node) -> float:
        costs, event = self.costs, node.event
        instruction = event.instruction
        if event.resource == "collective":
            nbytes = instruction.attributes.get("bytes", 0)
            ranks = len(instruction.attributes["ranks"])
            if self.group_size == 1 or (self.group_size and instruction.opcode == "all_reduce"):
                ranks = self.group_size
            return collective_time(costs, instruction.opcode, nbytes, ranks)
        if _on_gpsimd_dma(instruction):
            nbytes = sum(access.nbytes for access in moved(instruction)[0])
            return costs.dma_start + nbytes / costs.gpsimd_dma_bandwidth
        if node.transfer is not None:
            software = descriptors_of(costs, instruction) == "software"
            return float(costs.software_descriptor if software else costs.dma_trigger)
        if instruction.opcode == "core_barrier":
            return float(costs.barrier)
        if instruction.opcode in _LOOP_MARKS:
            return float(costs.loop_turn) if instruction.opcode == "loop_turn" else 0.0
        time = engine_time(costs, instruction)
        if event.resource == "tensor":
            return time / self._tensor_rate(node)
        function = str(instruction.attributes.get("op"))
        loaded = self.cores[node.core].loaded
        if instruction.opcode.startswith("activat") and function not in loaded:
            # Which functions share a table is not documented: each is loaded once.
            loaded.add(function)
            time += costs.activation_table
        return time

    def _tensor_rate(self, node: _Node) -> float:
        if self.tensor_rate == "full":
            return 1.0
        slow = float(self.costs.tensor_throttled_rate)
        if self.tensor_rate == "half":
            return slow
        array = self.cores[node.core].array
        busy = array.busy_between(node.ready - self.costs.tensor_ramp, node.ready)
        return slow if busy < slow * self.costs.tensor_ramp else 1.0

    # DMA

    def _occupy_dma(self, node: _Node, time: float) -> None:
        """A DMA reaches its engines; each serves it after the transfers that came before."""
        event = node.event
        first, transfer = transfer_of(self.costs, event.instruction)
        engines = self.cores[node.core].dma_engines
        event.start, event.end = float("inf"), time
        event.wait = self.waits.add(event.number, node.why, time, node.cause)
        # Most engines wait for the same, and end at one time.
        waits: dict[tuple[float, int | None], int] = {}
        for i, busy in enumerate(dma_engine_times(self.costs, transfer)):
            if not busy:
                continue
            engine = (first + i) % len(engines)
            free, last = engines[engine]
            start = max(free, time)
            end = start + busy
            cause, why = (last, "dma engine") if free > time else (node.cause, node.why)
            if (end, cause) not in waits:
                waits[end, cause] = self.waits.add(event.number, why, end, cause)
            engines[engine] = (end, waits[end, cause])
            event.engines.append((engine, start, end))
            event.start = min(event.start, start)
            if end > event.end:
                event.end, event.wait = end, waits[end, cause]
        event.start = min(event.start, event.end)
        event.why = self.waits.all[event.wait].why
        event.waited_for = self.waits.event(self.waits.all[event.wait].before)
        self._push(event.end, node, _ENDS)


def _resource(instruction: Instruction) -> str:
    if is_collective(instruction):
        return "collective"
    if _on_gpsimd_dma(instruction):
        return "gpsimd"
    return instruction.engine


def _on_gpsimd_dma(instruction: Instruction) -> bool:
    """Whether the GpSimd Engine's own DMA swaps tiles, which waits for no other transfer.

    It starts like another DMA, for only its bandwidth is published.
    """
    return instruction.attributes.get("dma_engine") == "gpsimd_dma"


def queue_of(instruction: Instruction) -> str:
    """The queue whose program order `hazards` may rely on for an instruction.

    A product on a tile may end before an earlier one on another tile.
    """
    resource = _resource(instruction)
    tile = instruction.attributes.get("tile")
    if resource == "tensor" and tile is not None:
        return f"tensor {tile}"
    return UNORDERED if resource == "collective" else resource
