"""A picture of a timeline: what each engine does when. Needs matplotlib."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping

from jax_tkg.simulator.timing.timeline import Event, Timeline

ROWS = {
    "dma": "DMA",
    "tensor": "Tensor",
    "vector": "Vector",
    "scalar": "Scalar",
    "gpsimd": "GpSimd",
    "sync": "Sync",
    "collective": "collectives",
}
"""The resources of a timeline, from the top of the picture, and their names in it."""

Bar = tuple[str, str, float, float]
"""Row, label, start and end in ns."""


def busy_spans(event: Event) -> list[tuple[str, float, float]]:
    """Row, start and end; a DMA's time on its busiest DMA engine stands for all of them."""
    if event.resource != "dma":
        return [(event.resource, event.start, event.end)]
    if not event.engines:
        return []
    _, start, end = max(event.engines, key=lambda used: used[2] - used[1])
    return [("dma", start, end)]


def instruction_bars(timeline: Timeline, core: int = 0) -> Iterator[Bar]:
    """A bar for each instruction of a core, labeled by its opcode."""
    for event in timeline.events:
        if event.instruction.core == core:
            for row, start, end in busy_spans(event):
                yield row, event.instruction.opcode, start, end


def write_plot(timeline: Timeline, title: str, path: str | pathlib.Path) -> None:
    """Writes a PNG of a whole launch, colored by instruction."""
    draw(instruction_bars(timeline), (0.0, timeline.latency), title, "modeled time in us", path)


def draw(
    bars: Iterable[Bar],
    span: tuple[float, float],
    title: str,
    axis: str,
    path: str | pathlib.Path,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Writes a PNG of what lies between two times.

    Args:
      bars: what to draw.
      span: first and last time in ns; the first is the picture's 0.
      title: above the picture.
      axis: what the horizontal axis shows.
      path: of the file.
      colors: of all labels, in the order of the legend. None: some color for each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot
    from matplotlib.colors import to_hex

    first, last = span
    shown = [bar for bar in bars if bar[3] > first and bar[2] < last]
    if colors is None:
        palette = pyplot.get_cmap("tab20")
        labels = dict.fromkeys(label for _, label, _, _ in shown)
        colors = {label: to_hex(palette(i % palette.N)) for i, label in enumerate(labels)}
    figure, axes = pyplot.subplots(figsize=(14, 4.6), layout="constrained")
    rows = [row for row in ROWS if any(bar[0] == row for bar in shown)]
    for row, label, start, end in shown:
        left, right = max(start, first), min(end, last)
        place = len(rows) - 1 - rows.index(row)
        axes.barh(
            place,
            (right - left) / 1e3,
            left=(left - first) / 1e3,
            height=0.72,
            color=colors[label],
            linewidth=0,
        )
    axes.set_yticks(range(len(rows)), [ROWS[row] for row in rows[::-1]])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, (last - first) / 1e3)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    drawn = {label for _, label, _, _ in shown}
    handles = [
        patches.Patch(color=color, label=label) for label, color in colors.items() if label in drawn
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize="small",
        frameon=False,
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
