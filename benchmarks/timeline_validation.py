"""The timeline's predictions against latencies that AWS has published.

    python -m benchmarks.timeline_validation [--quick] [--markdown table.md]

The kernels are those of `benchmarks.published_kernels`. What a published figure leaves open is the
compiler's part: where it puts tiles, what it moves out of loops or spills. No constant was fitted
to these figures. The prediction is that of a Tensor Engine whose throttle ramps up under load; the
throttled and the unthrottled one stand beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from absl import app, flags

from benchmarks import published_kernels as kernels
from jax_tkg import simulator
from jax_tkg.simulator.timing.costs import TRN1, TRN2, Costs
from jax_tkg.simulator.timing.timeline import Timeline, memory_dependencies, schedule

_QUICK = flags.DEFINE_bool("quick", False, "Only kernels that are simulated in seconds.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")

MAMBA = "fused-mamba tutorial"
MATMUL = "kernel-optimization tutorial"
DMA = "DMA overview"
STATES = 16
QUICK_ELEMENTS = 600_000


@dataclasses.dataclass(frozen=True)
class Published:
    """A published latency.

    Attributes:
      name: kernel and sizes.
      source: the document.
      published: in us.
      costs: of the machine.
      run: gives the kernel and its arguments.
      figure: what of the timeline was published, in us.
      work: elements that the simulator goes through, to tell quick ones.
    """

    name: str
    source: str
    published: float
    costs: Costs
    run: Callable[[], tuple[Any, tuple[np.ndarray, ...]]]
    figure: Callable[[Timeline], float]
    work: int


def _latency(timeline: Timeline) -> float:
    return timeline.latency / 1e3


def _first_load(timeline: Timeline) -> float:
    """How long the first DMA engine is busy with the first transfer."""
    first = next(event for event in timeline.events if event.resource == "dma")
    _, start, end = first.engines[0]
    return (end - start) / 1e3


def _mamba(version: int, channels: int, time: int, published: float) -> Published:
    def run() -> tuple[Any, tuple[np.ndarray, ...]]:
        steps = min(time, 512) if version == 3 else time
        kernel = functools.partial(kernels.mamba, reload=version == 1, steps=steps)
        wide, narrow = (channels, time), (STATES, time)
        shapes = (wide, wide, (channels, STATES), narrow, narrow)
        return kernel, tuple(np.zeros(shape, np.float32) for shape in shapes)

    name = f"mamba v{version}, {channels} channels, {time} steps"
    return Published(name, MAMBA, published, TRN1, run, _latency, channels * time)


def _matmul(name: str, kernel: Any, published: float, **blocks: int) -> Published:
    def run() -> tuple[Any, tuple[np.ndarray, ...]]:
        shapes = ((8192, 4096), (8192, 8192))
        return functools.partial(kernel, **blocks), tuple(np.zeros(s, np.float32) for s in shapes)

    return Published(name, MATMUL, published, TRN2, run, _latency, 8192 * 8192)


def _exponential(
    name: str, shape: tuple[int, int], published: float, figure: Callable[[Timeline], float]
) -> Published:
    def run() -> tuple[Any, tuple[np.ndarray, ...]]:
        return kernels.exponential, (np.zeros(shape, ml_dtypes.bfloat16),)

    return Published(name, DMA, published, TRN2, run, figure, shape[0] * shape[1])


PUBLISHED = (
    _exponential("one DMA engine loads 4 x 8 KiB", (4, 4096), 1.416, _first_load),
    _exponential("load, exp, store of [128, 128] (read off)", (128, 128), 4.98, _latency),
    _mamba(1, 256, 512, 172.93),
    _mamba(1, 4096, 512, 2340),
    _mamba(2, 4096, 512, 1610),
    _mamba(2, 4096, 2048, 8900),
    _mamba(3, 4096, 1024, 3300),
    _mamba(3, 4096, 2048, 6600),
    _mamba(3, 4096, 4096, 13300),
    _matmul("matmul, tiled", kernels.matmul_tiled, 39890),
    _matmul("matmul, loads hoisted", kernels.matmul_blocked, 28200, rows=1, columns=1),
    _matmul("matmul, free dimensions blocked", kernels.matmul_blocked, 28410, rows=2, columns=2),
    _matmul("matmul, all blocked", kernels.matmul_all_blocked, 28300, rows=16, columns=2, depth=8),
)
"""Matrix products of f32 [4096, 8192] and [8192, 8192]; their times are those of the pictures."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Modelled us by rate of the Tensor Engine."""

    published: Published
    modelled: dict[str, float]

    @property
    def ratio(self) -> float:
        """Prediction over publication."""
        return self.modelled["ramp"] / self.published.published


def predict(published: Published) -> Prediction:
    """Runs and schedules one kernel."""
    kernel, arguments = published.run()
    options = simulator.Options(uninitialized="ignore", races="ignore", capacity="ignore")
    target = published.costs.target
    record = simulator.run(kernel, [arguments], target=target, options=options).record
    dependencies = memory_dependencies(record)
    modelled = {
        rate: published.figure(
            schedule(record, published.costs, 0, rate, dependencies=dependencies)
        )
        for rate in ("ramp", "half", "full")
    }
    return Prediction(published, modelled)


def markdown(predictions: list[Prediction]) -> str:
    """The table and the errors."""
    lines = [
        "| kernel | source | published us | modelled us | ratio | half rate | full rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in predictions:
        half, full = each.modelled["half"], each.modelled["full"]
        lines.append(
            f"| {each.published.name} ({each.published.costs.target}) | {each.published.source} | "
            f"{each.published.published:.6g} | {each.modelled['ramp']:.6g} | {each.ratio:.2f} | "
            f"{half:.6g} | {full:.6g} |"
        )
    errors = [abs(each.ratio - 1) for each in predictions]
    lines += [
        "",
        f"Median error of {len(errors)} predictions {statistics.median(errors):.0%}, largest "
        f"{max(errors):.0%}; all modelled.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Predicts each and prints the table."""
    del arguments
    chosen = [p for p in PUBLISHED if not _QUICK.value or p.work <= QUICK_ELEMENTS]
    predictions = []
    for published in chosen:
        prediction = predict(published)
        predictions.append(prediction)
        print(f"{published.name}: modelled over published {prediction.ratio:.2f}", flush=True)
        if _MARKDOWN.value:
            pathlib.Path(_MARKDOWN.value).write_text(markdown(predictions))
    print(markdown(predictions))
    return 0


if __name__ == "__main__":
    app.run(main)
