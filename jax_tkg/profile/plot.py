"""A picture of one layer: what each engine does when, colored by the stage of the layer."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from jax_tkg.profile import stages
from jax_tkg.profile.layer import LayerFigures
from jax_tkg.simulator.timing.timeline import Event, Timeline
from jax_tkg.simulator.timing.timeline_plot import Bar, busy_spans, draw

COLORS = {
    stages.NORM: "#e8b520",
    stages.QKV: "#2f6fab",
    stages.ROPE: "#a667a6",
    stages.ATTENTION: "#4f9d4d",
    stages.OUTPUT: "#2aa5a0",
    stages.ALL_REDUCE: "#d64541",
    stages.MLP: "#8fb9dd",
    stages.HEAD: "#f0883a",
    stages.WAITS: "#8c8c8c",
    stages.OTHER: "#d0d0d0",
}
"""Of each stage; greys where nothing is computed."""


def bars(timeline: Timeline, core: int = 0) -> Iterator[Bar]:
    """What each engine of a core works on, as bars labeled by stage.

    What touches and belongs to one stage is merged.
    """
    open_bars: dict[str, Bar] = {}
    for event in _in_program_order(timeline, core):
        label = stages.stage_of(event.instruction)
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
    axis = "modeled time in us, from a layer's first product to the next layer's"
    timeline = figures.timeline
    draw(bars(timeline), layer_span(timeline), title, axis, path, COLORS)
