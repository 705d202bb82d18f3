"""A picture of one layer: what each engine does when, colored by what it works on."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from jax_tkg.profile.layer import LayerFigures
from jax_tkg.profile.traffic import LASTING, kind_of
from jax_tkg.simulator.timing.timeline import Event, Timeline
from jax_tkg.simulator.timing.timeline_plot import Bar, busy_spans, draw


def bars(timeline: Timeline, core: int = 0) -> Iterator[Bar]:
    """What each engine of a core works on, as bars; what touches and has one label is merged.

    The label is the weight or cache that an instruction moves or multiplies, else the file of the
    kernel that it stands in.
    """
    loaded: dict[int, str] = {}
    open_bars: dict[str, Bar] = {}
    for event in _in_program_order(timeline, core):
        label = _label(event, loaded)
        for row, start, end in busy_spans(event):
            last = open_bars.get(row)
            if last is not None and last[1] == label and start - last[3] < _GAP:
                open_bars[row] = (row, label, last[2], max(end, last[3]))
                continue
            if last is not None:
                yield last
            open_bars[row] = (row, label, start, end)
    yield from open_bars.values()


_GAP = 300.0
"""Shorter gaps in ns are not seen at the scale of a layer."""


def _in_program_order(timeline: Timeline, core: int) -> Iterable[Event]:
    return (e for e in timeline.events if e.instruction.core == core)


def _label(event: Event, loaded: dict[int, str]) -> str:
    """The name of what is worked on; `loaded` tells which HBM tensor each tile was filled from."""
    instruction = event.instruction
    for access in instruction.reads:
        if access.space == "hbm" and kind_of(access.name) in LASTING:
            label = access.name.split("[")[0]
            for written in instruction.writes:
                loaded[written.storage] = label
            return label
    for access in instruction.writes:
        if access.space == "hbm" and kind_of(access.name) == "cache":
            return f"{access.name.split('[')[0]} update"
        loaded.pop(access.storage, None)
    if event.resource == "tensor":
        for access in instruction.reads:
            if access.storage in loaded:
                return loaded[access.storage]
    if event.resource == "collective":
        return instruction.opcode
    return pathlib.PurePath(instruction.file).stem


def layer_span(timeline: Timeline) -> tuple[float, float]:
    """From the first product with W_qkv of one layer to that of the next, or to the end, in ns.

    The layer is the last but one, whose end overlaps the next as in a deep model.
    """
    starts: dict[str, float] = {}
    loaded: dict[int, str] = {}
    for event in _in_program_order(timeline, 0):
        reads = event.instruction.reads
        for access in reads:
            if access.space == "hbm":
                for written in event.instruction.writes:
                    loaded[written.storage] = access.name
        if event.resource == "tensor":
            for access in reads:
                name = loaded.get(access.storage, "")
                if name.startswith("W_qkvs"):
                    starts.setdefault(name, event.start)
    found = sorted(starts.values())
    if len(found) < 2:
        return 0.0, timeline.latency
    return found[-2], found[-1]


def write_plot(figures: LayerFigures, title: str, path: str | pathlib.Path) -> None:
    """Writes a PNG; needs matplotlib."""
    axis = "modelled time in us, from a layer's first product to the next layer's"
    timeline = figures.timeline
    draw(bars(timeline), layer_span(timeline), title, axis, path)
