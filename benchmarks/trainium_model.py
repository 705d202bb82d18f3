"""Modeled speed of the Neuron kernels on Trainium2: bound, ours, AWS's, over a grid of sizes.

    NKILIB=path python -m benchmarks.trainium_model --markdown table.md [--quick] [--cells 70b.tp8]
    python -m benchmarks.trainium_model --results folder --kernels ours     # the other's are read
    python -m benchmarks.trainium_model --stress                            # what assumptions do

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded. The Llama-3-70B cells are those of AWS's own test of `transformer_tkg`: tensor-
parallel degree 8, 16 and 32, global batches of 8 to 128 over 64 / tp data-parallel groups, contexts
of 1024, 10240 and 36864. Cells that a kernel cannot run say why. Without a checkout of aws-
neuron/nki-library (branch 2.29_release) in NKILIB, AWS's columns are empty.

"Compute" counts collectives as free; the columns after it add all-reduces of 5 to 100 us.
Finished figures are kept in a file for each kernel, so that either can be modeled alone and again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import resource
from collections.abc import Iterator

from absl import app, flags, logging

from benchmarks import stress_model
from jax_tkg.profile.layer import bound, layer_figures, record_launches, required_bytes
from jax_tkg.profile.model_shapes import MODELS, Case, rank_sizes
from jax_tkg.profile.recording import KERNELS
from jax_tkg.simulator.timing.costs import TARGETS

_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")
_RESULTS = flags.DEFINE_string(
    "results",
    None,
    "Folder of finished figures, a JSON file per kernel: read first, written after each cell.",
)
_KERNELS = flags.DEFINE_list(
    "kernels", ["ours", "nkilib"], "Which are modeled; of others only finished figures are shown."
)
_CELLS = flags.DEFINE_list("cells", [""], "Only cells whose name contains one of these.")
_MEMORY = flags.DEFINE_float(
    "memory_gib", 8.0, "A cell that needs more memory than this on the machine used is left out."
)
_QUICK = flags.DEFINE_bool("quick", False, "Only bfloat16 at the shortest context, S_tkg 1.")
_RATE = flags.DEFINE_enum(
    "tensor_rate", "half", ["half", "ramp", "full"], "How the Tensor Engine's throttle is modeled."
)

_STRESS = flags.DEFINE_bool(
    "stress", False, "A few cells, or those of --cells, on every machine of the stress set instead."
)

ALL_REDUCE_US = (5, 10, 25, 100)
CONTEXTS = (1024, 10240, 36864)
TENSOR_PARALLEL = (8, 16, 32)
GLOBAL_BATCHES = (8, 16, 32, 64, 128)
RANKS_OF_ALL_GROUPS = 64
LEFT_OUT = {(16, 32, 1024), (32, 32, 1024), (32, 64, 1024)}
"""(tp, batch, context) that AWS's test leaves out."""

GOAL_BOUND, GOAL_WORST, GOAL_AWS, GOAL_TRAFFIC = 1.06, 1.25, 0.65, 0.02


@dataclasses.dataclass(frozen=True)
class Modeled:
    """One kernel on one cell; times in us, for one layer.

    Attributes:
      compute: latency with free collectives.
      reduced: latency by the all-reduce's latency in us.
      traffic: HBM bytes beyond those required, as a share of them.
    """

    compute: float
    reduced: dict[str, float]
    traffic: float


NOT_RUN = "not run"

Figures = Modeled | str
"""A kernel's figures on a cell, or why there are none."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell: its HBM bound in us, and the figures of both kernels."""

    name: str
    bound: float
    ours: Figures
    aws: Figures


def cells() -> Iterator[tuple[str, Case]]:
    """Names and sizes of all cells."""
    for mlp, S in itertools.product((None, "float8_e4m3"), (1, 4)):
        for tp, batch, context in itertools.product(TENSOR_PARALLEL, GLOBAL_BATCHES, CONTEXTS):
            B = batch // (RANKS_OF_ALL_GROUPS // tp)
            if (tp, B, context) not in LEFT_OUT:
                yield _cell("llama3_70b", tp, B, S, context, mlp)
        for tp, B, context in itertools.product((1, 4), (1, 4, 16), CONTEXTS[:2]):
            yield _cell("llama3_8b", tp, B, S, context, mlp)


def _cell(model: str, tp: int, B: int, S: int, context: int, mlp: str | None) -> tuple[str, Case]:
    sizes = rank_sizes(MODELS[model], tp)
    case = Case(
        B=B,
        S=S,
        S_ctx=context,
        quantized_mlp=mlp,
        tensor_parallel=tp,
        residual_on_chip=True,
        **sizes,
    )
    kind = "fp8" if mlp else "bf16"
    return f"{model.removeprefix('llama3_')}.tp{tp}.B{B}.S{S}.ctx{context}.{kind}", case


def _chosen() -> list[tuple[str, Case]]:
    found = [(name, case) for name, case in cells() if any(part in name for part in _CELLS.value)]
    if _QUICK.value:
        short = [
            (name, case)
            for name, case in found
            if case.S == 1 and case.S_ctx == CONTEXTS[0] and case.quantized_mlp is None
        ]
        return short
    return found


def _stress_cells() -> list[tuple[str, Case]]:
    if _CELLS.present:
        return _chosen()
    return [(name, case) for name, case in cells() if name in stress_model.CELLS]


def _modeled_kernels() -> list[str]:
    return [name for name in _KERNELS.value if name == "ours" or os.environ.get("NKILIB")]


def _model(case: Case, kernel: str) -> Figures:
    if kernel == "nkilib" and not os.environ.get("NKILIB"):
        return "NKILIB is not set"
    try:
        launches = record_launches(case, kernel)
        costs = TARGETS[case.target]
        compute = layer_figures(launches, costs, _RATE.value, collectives=False)
        reduced = {}
        for latency in ALL_REDUCE_US if case.tensor_parallel > 1 else ():
            swept = dataclasses.replace(costs, all_reduce_latency=1e3 * latency)
            reduced[str(latency)] = layer_figures(launches, swept, _RATE.value).latency / 1e3
    except ValueError as error:
        return str(error)
    except MemoryError:
        return f"the model of it needs more than {_MEMORY.value:g} GiB of memory"
    traffic = sum(compute.hbm_bytes.values()) / required_bytes(case) - 1
    return Modeled(compute.latency / 1e3, reduced, traffic)


class Finished:
    """Figures by kernel and cell, kept in a folder: a file per kernel and throttle of the Tensor
    Engine, so that processes for different kernels may run at once."""

    def __init__(self, folder: str | None, rate: str):
        self._folder = None if folder is None else pathlib.Path(folder)
        self._rate = rate
        self._figures = {kernel: self._read(kernel) for kernel in KERNELS}

    def get(self, kernel: str, cell: str) -> Figures | None:
        """None where there are none yet."""
        return self._figures[kernel].get(cell)

    def add(self, kernel: str, cell: str, figures: Figures) -> None:
        """Adds them, to the file too."""
        self._figures[kernel][cell] = figures
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = {
                name: each if isinstance(each, str) else dataclasses.asdict(each)
                for name, each in self._figures[kernel].items()
            }
            self._path(kernel).write_text(json.dumps(kept, indent=1))

    def _path(self, kernel: str) -> pathlib.Path:
        assert self._folder is not None
        return self._folder / f"{kernel}.{self._rate}.json"

    def _read(self, kernel: str) -> dict[str, Figures]:
        if self._folder is None or not self._path(kernel).exists():
            return {}
        kept = json.loads(self._path(kernel).read_text())
        return {
            name: each if isinstance(each, str) else Modeled(**each) for name, each in kept.items()
        }


def _row(name: str, case: Case, finished: Finished) -> Row:
    for kernel in _KERNELS.value:
        if finished.get(kernel, name) is None:
            finished.add(kernel, name, _model(case, kernel))
    ours, aws = (finished.get(kernel, name) or NOT_RUN for kernel in ("ours", "nkilib"))
    return Row(name, bound(case) / 1e3, ours, aws)


_COLUMNS = (
    "cell",
    "bound us",
    "ours us",
    "/ bound",
    "extra traffic",
    "AWS us",
    "/ bound",
    "ours / AWS",
    *(f"ours, AR {latency} us" for latency in ALL_REDUCE_US),
    *(f"AWS, AR {latency} us" for latency in ALL_REDUCE_US),
)


def _columns(row: Row) -> list[str]:
    def of(figures: Figures) -> list[str]:
        if isinstance(figures, str):
            return ["-", "-"]
        return [f"{figures.compute:.1f}", f"{figures.compute / row.bound:.2f}"]

    def swept(figures: Figures) -> list[str]:
        reduced = {} if isinstance(figures, str) else figures.reduced
        return [f"{reduced[str(n)]:.1f}" if str(n) in reduced else "-" for n in ALL_REDUCE_US]

    both = isinstance(row.ours, Modeled) and isinstance(row.aws, Modeled)
    ratio = f"{row.ours.compute / row.aws.compute:.2f}" if both else "-"  # type: ignore[union-attr]
    traffic = f"{row.ours.traffic:.2%}" if isinstance(row.ours, Modeled) else "-"
    return [
        row.name,
        f"{row.bound:.1f}",
        *of(row.ours),
        traffic,
        *of(row.aws),
        ratio,
        *swept(row.ours),
        *swept(row.aws),
    ]


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def goals(rows: list[Row]) -> list[str]:
    """Each goal with the figure and whether it is met."""
    ours = {row.name: row.ours for row in rows if isinstance(row.ours, Modeled)}
    if not ours:
        return ["no cell could be modeled"]
    by_name = {row.name: row for row in rows}
    ratios = {name: figures.compute / by_name[name].bound for name, figures in ours.items()}
    worst = max(ratios, key=ratios.__getitem__)
    most = max(ours, key=lambda name: ours[name].traffic)
    mean = _geometric_mean(list(ratios.values()))
    lines = [
        _goal("ours over the HBM bound, geometric mean", mean, GOAL_BOUND),
        _goal(f"ours over the HBM bound, worst cell ({worst})", ratios[worst], GOAL_WORST),
        _goal(f"extra HBM traffic, most ({most})", ours[most].traffic, GOAL_TRAFFIC),
    ]
    against = {
        name: figures.compute / by_name[name].aws.compute  # type: ignore[union-attr]
        for name, figures in ours.items()
        if isinstance(by_name[name].aws, Modeled)
    }
    if against:
        lines.append(
            _goal(
                f"ours over AWS's, geometric mean of {len(against)} cells",
                _geometric_mean(list(against.values())),
                GOAL_AWS,
            )
        )
    return lines


def _goal(what: str, value: float, most: float) -> str:
    return f"modeled {what}: {value:.3f}; goal {most:g}: {'met' if value <= most else 'NOT met'}"


def summary(rows: list[Row]) -> list[str]:
    """A table by model, ranks, new tokens and weights: means and worst cells."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        model, tp, _, S, _, kind = row.name.split(".")
        groups.setdefault((model, tp, S, kind), []).append(row)
    lines = [
        "| cells | number | ours / bound, mean | worst | AWS / bound, mean | ours / AWS, mean |",
        "|---|---|---|---|---|---|",
    ]
    for group, members in groups.items():
        ours = [r.ours.compute / r.bound for r in members if isinstance(r.ours, Modeled)]
        aws = [r.aws.compute / r.bound for r in members if isinstance(r.aws, Modeled)]
        both = [
            r.ours.compute / r.aws.compute
            for r in members
            if isinstance(r.ours, Modeled) and isinstance(r.aws, Modeled)
        ]
        shown = [_mean_or_dash(ours), f"{max(ours):.2f}" if ours else "-"]
        shown += [_mean_or_dash(aws), _mean_or_dash(both)]
        lines.append(f"| {' '.join(group)} | {len(ours)} | " + " | ".join(shown) + " |")
    return lines


def _mean_or_dash(values: list[float]) -> str:
    return f"{_geometric_mean(values):.2f}" if values else "-"


def markdown(rows: list[Row]) -> str:
    """A summary, the goals, all cells, and why some have no figures."""
    lines = [
        f"One layer on trn2 with two physical cores, Tensor Engine {_RATE.value!r}, and the "
        'residual on chip. All times are modeled. "AR" columns have all-reduces of that latency; '
        "the others have free all-reduces.",
        "",
        *(f"- {line}" for line in goals(rows)),
        "",
        *summary(rows),
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *("| " + " | ".join(_columns(row)) + " |" for row in rows),
        "",
    ]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for who, figures in (("ours", row.ours), ("AWS's", row.aws)):
            if isinstance(figures, str):
                reasons.setdefault(f"{who}: {figures}", []).append(row.name)
    lines += [f"- {reason} ({', '.join(names)})" for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Models the chosen cells, prints a line for each, and the goals."""
    del arguments
    logging.set_verbosity(logging.WARNING)
    unknown = set(_KERNELS.value) - set(KERNELS)
    if unknown:
        raise app.UsageError(f"--kernels: expected some of {list(KERNELS)}, got {sorted(unknown)}")
    most = int(_MEMORY.value * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if _STRESS.value:
        stress_model.run(_stress_cells(), _modeled_kernels(), _MARKDOWN.value)
        return 0
    finished = Finished(_RESULTS.value, _RATE.value)
    rows = []
    for name, case in _chosen():
        row = _row(name, case, finished)
        rows.append(row)
        print("  ".join(text.rjust(9) for text in _columns(row)), flush=True)
        if _MARKDOWN.value:
            pathlib.Path(_MARKDOWN.value).write_text(markdown(rows))
    print("\n".join(goals(rows)))
    return 0


if __name__ == "__main__":
    app.run(main)
