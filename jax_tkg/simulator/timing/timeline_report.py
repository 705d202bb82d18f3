"""Readable forms of a timeline: where its time goes, and a trace for Perfetto or Chrome."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.timing.high_water import high_water
from jax_tkg.simulator.timing.timeline import Event, Timeline

_THREADS = ("tensor", "vector", "scalar", "gpsimd", "sync", "collective")
_WORDS = {
    "data": "waited for its data",
    "reuse": "waited for a reader of what it overwrites",
    "overwrite": "waited for a writer of what it overwrites",
    "explicit": "waited as the kernel asks",
    "engine": "waited for its engine",
    "trigger": "from its trigger on",
    "dma engine": "waited for the DMA engines",
    "descriptor": "waited for the generator of descriptors",
    "memory": "waited for another engine's access to the memory",
    "loop": "waited for a turn of its loop",
    "start": "waited for nothing",
}


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the latency that one statement of the kernel adds.

    Attributes:
      where: file and line.
      opcode, resource: those of its instructions.
      why: what their part on the critical path waited for, as in `Event.why`.
      count: how many of them are on the critical path.
      time: ns that they add.
    """

    where: str
    opcode: str
    resource: str
    why: str
    count: int
    time: float

    def described(self) -> str:
        """Describes the statement and why it waited."""
        return f"{self.opcode} on {self.resource}, {_WORDS[self.why]}: {self.where}"

    def __str__(self) -> str:
        return f"{self.time / 1e3:9.2f} us  {self.count:5d} x {self.described()}"


def critical_shares(timeline: Timeline) -> list[Share]:
    """The critical path by statement, longest first. The times add up to the latency."""
    totals: dict[tuple[str, str, str, str], list[float]] = {}
    reached = 0.0
    for wait in timeline.critical_waits():
        event = timeline.events[wait.event]
        instruction = event.instruction
        key = (instruction.where, instruction.opcode, event.resource, wait.why)
        total = totals.setdefault(key, [0, 0.0])
        total[0] += 1
        total[1] += wait.end - reached
        reached = wait.end
    shares = [Share(*key, int(count), time) for key, (count, time) in totals.items()]
    return sorted(shares, key=lambda share: -share.time)


def summary(timeline: Timeline, kind_of: Callable[[str], str] = str, lines: int = 10) -> str:
    """Latency, busy engines, HBM bytes, memory and the critical path in words, all modeled."""
    latency = timeline.latency
    kinds = timeline.hbm_bytes(kind_of)
    total = sum(kinds.values())
    bound = timeline.hbm_bound(total)
    rate = total / latency if latency else 0.0
    out = [
        f"modeled on {timeline.costs.target}, Tensor Engine at {timeline.tensor_rate} rate, "
        f"all-reduce latency {timeline.costs.all_reduce_latency / 1e3:g} us",
        f"latency {latency / 1e3:.2f} us, HBM bound {bound / 1e3:.2f} us; "
        f"{rate:.0f} GB/s of {timeline.costs.hbm_bandwidth * timeline.lnc:.0f}",
        f"HBM bytes: {total}",
    ]
    out += [f"  {kind or '(unnamed)'}: {n}" for kind, n in sorted(kinds.items())]
    for core in range(timeline.lnc):
        busy = ", ".join(
            f"{name} {time / latency if latency else 0:.0%}"
            for name, time in timeline.busy(core).items()
        )
        out.append(f"core {core} busy: {busy}")
        program = _program(timeline, core)
        marks = ", ".join(
            f"{space.upper()} {high_water(program, space).partition_bytes}"
            for space in ("sbuf", "psum")
        )
        out.append(f"core {core} most bytes per partition: {marks}")
    out.append("critical path:")
    out += [f"  {share}" for share in critical_shares(timeline)[:lines]]
    return "\n".join(out)


def _program(timeline: Timeline, core: int) -> list[Instruction]:
    found = {
        e.instruction.index: e.instruction for e in timeline.events if e.instruction.core == core
    }
    return [found[index] for index in sorted(found)]


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace in Chrome's JSON format, which Perfetto reads: a process per core, a thread per
    engine and per DMA engine, times in microseconds."""
    rows: list[dict[str, Any]] = []
    threads = [*_THREADS, *(f"dma {i}" for i in range(int(timeline.costs.dma_engines)))]
    for core in range(timeline.lnc):
        rows.append(_named("process_name", core, 0, f"core {core} (modeled)"))
        rows += [_named("thread_name", core, i, name) for i, name in enumerate(threads)]
    for event in timeline.events:
        for thread, start, end in _spans(event):
            rows.append(
                {
                    "ph": "X",
                    "pid": event.instruction.core,
                    "tid": thread,
                    "name": event.instruction.opcode,
                    "ts": start / 1e3,
                    "dur": (end - start) / 1e3,
                    "args": {
                        "index": event.instruction.index,
                        "where": event.instruction.where,
                        "operands": repr(event.instruction.accesses),
                        "why": _WORDS[event.why],
                    },
                }
            )
    return {"traceEvents": rows, "displayTimeUnit": "ns"}


def _spans(event: Event) -> list[tuple[int, float, float]]:
    if event.resource == "dma":
        return [(len(_THREADS) + engine, start, end) for engine, start, end in event.engines]
    return [(_THREADS.index(event.resource), event.start, event.end)]


def _named(what: str, core: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": core, "tid": thread, "name": what, "args": {"name": name}}


def write_trace(timeline: Timeline, path: str | pathlib.Path) -> None:
    """Writes the trace as a JSON file."""
    pathlib.Path(path).write_text(json.dumps(chrome_trace(timeline)))
