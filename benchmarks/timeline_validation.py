"""The timeline's predictions against latencies that AWS has published.

    python -m benchmarks.timeline_validation [--quick] [--markdown table.md]

The kernels are those of `benchmarks.published_kernels` and `benchmarks.accelopt_kernels`. What a
published figure leaves open is the compiler's part: where it puts tiles, what it moves out of loops
or spills. The tiled matrix product bounds `dma_run` and `software_descriptor`; no other constant
was fitted to these figures. The prediction is that of a Tensor Engine whose throttle ramps up under
load; the throttled and the unthrottled one stand beside it.
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

from benchmarks import accelopt_kernels as accelopt
from benchmarks import published_kernels as kernels
from jax_tkg import simulator
from jax_tkg.simulator.timing.costs import TRN1, TRN2, Costs
from jax_tkg.simulator.timing.timeline import Timeline, memory_dependencies, schedule

_QUICK = flags.DEFINE_bool("quick", False, "Only kernels that are simulated in seconds.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")

MAMBA = "fused-mamba tutorial"
MATMUL = "kernel-optimization tutorial"
DMA = "DMA overview"
ACCELOPT = "AccelOpt, NKIBench"
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
      run: gives the kernel and its arguments, for a number of blocks of its outermost loop where
        `blocks` is more than 0.
      figure: takes what was published from a timeline, in us.
      work: elements that the simulator processes; tells which kernels are quick.
      blocks: of the published kernel. Only `modeled` of them and half as many are simulated; the
        difference between the two is the time of the blocks that are left out.
      modeled: an even number of blocks.
    """

    name: str
    source: str
    published: float
    costs: Costs
    run: Callable[[int], tuple[Any, tuple[np.ndarray, ...]]]
    figure: Callable[[Timeline], float]
    work: int
    blocks: int = 0
    modeled: int = 0


def _latency(timeline: Timeline) -> float:
    return timeline.latency / 1e3


def _first_load(timeline: Timeline) -> float:
    """How long the first DMA engine is busy with the first transfer."""
    first = next(event for event in timeline.events if event.resource == "dma")
    _, start, end = first.engines[0]
    return (end - start) / 1e3


def _mamba(version: int, channels: int, time: int, published: float) -> Published:
    def run(_: int) -> tuple[Any, tuple[np.ndarray, ...]]:
        steps = min(time, 512) if version == 3 else time
        kernel = functools.partial(kernels.mamba, reload=version == 1, steps=steps)
        wide, narrow = (channels, time), (STATES, time)
        shapes = (wide, wide, (channels, STATES), narrow, narrow)
        return kernel, tuple(np.zeros(shape, np.float32) for shape in shapes)

    name = f"mamba v{version}, {channels} channels, {time} steps"
    return Published(name, MAMBA, published, TRN1, run, _latency, channels * time)


def _matmul(name: str, kernel: Any, published: float, **blocks: int) -> Published:
    def run(_: int) -> tuple[Any, tuple[np.ndarray, ...]]:
        shapes = ((8192, 4096), (8192, 8192))
        return functools.partial(kernel, **blocks), tuple(np.zeros(s, np.float32) for s in shapes)

    return Published(name, MATMUL, published, TRN2, run, _latency, 8192 * 8192)


def _exponential(
    name: str, shape: tuple[int, int], published: float, figure: Callable[[Timeline], float]
) -> Published:
    def run(_: int) -> tuple[Any, tuple[np.ndarray, ...]]:
        return kernels.exponential, (np.zeros(shape, ml_dtypes.bfloat16),)

    return Published(name, DMA, published, TRN2, run, figure, shape[0] * shape[1])


def _accelopt(
    name: str,
    kernel: Any,
    published: float,
    blocks: int,
    modeled: int,
    shapes: Callable[[int], tuple[tuple[int, ...], ...]],
) -> Published:
    def run(count: int) -> tuple[Any, tuple[np.ndarray, ...]]:
        return kernel, tuple(np.ones(shape, np.float32) for shape in shapes(count))

    work = sum(int(np.prod(shape)) for shape in shapes(modeled))
    return Published(name, ACCELOPT, published, TRN1, run, _latency, work, blocks, modeled)


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
    _accelopt("SiLU", accelopt.silu, 1333, 32, 4, lambda n: ((128, n, 7168),)),
    _accelopt(
        "RoPE", accelopt.rope, 4333, 512, 16, lambda n: ((128, 512 * n), *[(64, 512 * n)] * 2)
    ),
    _accelopt(
        "RMSNorm, matmul",
        accelopt.rmsnorm_matmul,
        1056,
        32,
        4,
        lambda n: ((128 * n, 1024), (1024, 2048)),
    ),
    _accelopt(
        "add, RMSNorm, matmul",
        accelopt.add_rmsnorm_matmul,
        1222,
        32,
        4,
        lambda n: ((128 * n, 1024), (1024, 2048), (128 * n, 1024), (1, 1024)),
    ),
    _accelopt(
        "matmul, add, RMSNorm",
        accelopt.matmul_add_rmsnorm,
        2667,
        32,
        4,
        lambda n: ((128 * n, 2048), (2048, 2048), (128 * n, 2048), (1, 2048)),
    ),
    _accelopt("AdamW", accelopt.adamw, 2000, 86, 4, lambda n: ((128 * n, 2048),) * 4),
    _accelopt(
        "transposed matmul",
        accelopt.transpose_matmul,
        9610,
        4,
        2,
        lambda n: ((2048, 1024 * n), (2048, 10944)),
    ),
    _accelopt(
        "matmul 4096 x 5120 x 12288",
        accelopt.matmul,
        35200,
        32 * 12,
        4,
        lambda n: ((128 * n, 5120), (5120, 1024)),
    ),
    _accelopt(
        "batched matmul",
        accelopt.batched_matmul,
        4611,
        16,
        2,
        lambda n: ((n, 4096, 64), (n, 64, 4096)),
    ),
)
"""All published kernels. The tutorial's matrix products are of f32 [4096, 8192] and [8192, 8192],
with the times in its pictures."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Modeled us by rate of the Tensor Engine."""

    published: Published
    modeled: dict[str, float]

    @property
    def ratio(self) -> float:
        """Prediction over publication."""
        return self.modeled["ramp"] / self.published.published


def predict(published: Published) -> Prediction:
    """Runs and schedules one kernel."""
    if not published.blocks:
        return Prediction(published, _figures(published, 0))
    few, more = (_figures(published, n) for n in (published.modeled // 2, published.modeled))
    rest = published.blocks - published.modeled
    modeled = {
        rate: more[rate] + rest * (more[rate] - few[rate]) / (published.modeled // 2)
        for rate in more
    }
    return Prediction(published, modeled)


def _figures(published: Published, blocks: int) -> dict[str, float]:
    kernel, arguments = published.run(blocks)
    options = simulator.Options(uninitialized="ignore", races="ignore", capacity="ignore")
    target = published.costs.target
    record = simulator.run(kernel, [arguments], target=target, options=options).record
    dependencies = memory_dependencies(record)
    return {
        rate: published.figure(
            schedule(record, published.costs, 0, rate, dependencies=dependencies)
        )
        for rate in ("ramp", "half", "full")
    }


def markdown(predictions: list[Prediction]) -> str:
    """The table and the errors."""
    lines = [
        "| kernel | source | published us | modeled us | ratio | half rate | full rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in predictions:
        half, full = each.modeled["half"], each.modeled["full"]
        lines.append(
            f"| {each.published.name} ({each.published.costs.target}) | {each.published.source} | "
            f"{each.published.published:.6g} | {each.modeled['ramp']:.6g} | {each.ratio:.2f} | "
            f"{half:.6g} | {full:.6g} |"
        )
    errors = [abs(each.ratio - 1) for each in predictions]
    lines += [
        "",
        f"Median error of {len(errors)} predictions {statistics.median(errors):.0%}, largest "
        f"{max(errors):.0%}; all modeled.",
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
        print(f"{published.name}: modeled over published {prediction.ratio:.2f}", flush=True)
        if _MARKDOWN.value:
            pathlib.Path(_MARKDOWN.value).write_text(markdown(predictions))
    print(markdown(predictions))
    return 0


if __name__ == "__main__":
    app.run(main)
