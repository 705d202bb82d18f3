"""Modeled speed of the Neuron kernel on layers with experts, over the bound of the bytes read.

    python -m benchmarks.experts_model [--models qwen3_30b_a3b --tensor_parallel 8 --batches 1,4]

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded. "x bound" is a latency over the least time in which HBM delivers the bytes that
must be read: attention's, the router's, and those of the experts that tokens choose at random.
All-reduces are free, or take 17.5 us, as in the table of constants. The last column has the
machines "favorable" and "unfavorable" of the stress set, the second with all-reduces of 25 us.

"without experts" is the part of a layer with free all-reduces in which no core loads weights of
experts: from the last load of one layer to the first of the next, which the router chooses. The
layer takes at least that long and the time in which HBM delivers the experts' bytes: "at least" is
the sum over the bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks import report
from jax_tkg.profile import stress_range
from jax_tkg.profile.layer import LayerFigures, bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, Case, layer_case
from jax_tkg.profile.traffic import kind_of
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.timing.costs import TARGETS
from jax_tkg.simulator.timing.stress import FAVORABLE, UNFAVORABLE

CELLS = (
    ("qwen3_30b_a3b", 4, (1, 4, 16)),
    ("qwen3_30b_a3b", 8, (1, 4, 16)),
    ("gpt_oss_20b", 8, (1, 4)),
    ("gpt_oss_120b", 4, (1, 4, 16)),
    ("gpt_oss_120b", 8, (1, 4, 16)),
    ("mixtral_8x7b", 8, (1, 4, 16)),
)
"""Models, ranks and sequences per rank of the table."""


def define_flags() -> None:
    """Not when the module is imported: others have flags of the same names."""
    names = list(dict.fromkeys(name for name, _, _ in CELLS))
    flags.DEFINE_list("models", names, "Which models of the table.")
    flags.DEFINE_list("tensor_parallel", ["4", "8"], "Which numbers of ranks of the table.")
    flags.DEFINE_list("batches", ["1", "4", "16"], "Which numbers of sequences of the table.")
    flags.DEFINE_integer("context", 1024, "Cache slots, new tokens included.")


def cells(
    models: Sequence[str], tensor_parallel: Sequence[int], batches: Sequence[int]
) -> list[tuple[str, int, int]]:
    """Those of `CELLS` that are wanted: model, ranks, sequences per rank."""
    return [
        (name, ranks, batch)
        for name, ranks, of_cell in CELLS
        for batch in of_cell
        if name in models and ranks in tensor_parallel and batch in batches
    ]


def without_experts(figures: LayerFigures) -> float:
    """Time in ns of the last layer in which no core loads weights or biases of experts."""
    spans = sorted(
        (event.start, event.end)
        for event in figures.timeline.events
        if event.resource == "dma" and _loads_experts(event.instruction)
    )
    last = max(end for _, end in spans)
    reached = last - figures.latency
    idle = 0.0
    for start, end in spans:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle


def _loads_experts(instruction: Instruction) -> bool:
    return any(
        access.space == "hbm" and kind_of(access.name, experts=True) == "experts"
        for access in instruction.reads
    )


def table_row(case: Case) -> dict[str, Any]:
    """The figures of one layer of `case`, which has experts."""
    launches = record_launches(case)
    least = bound(case)
    free = layer_figures(launches, collectives=False)
    reduced = layer_figures(launches)
    experts = free.hbm_bytes["experts"] / (TARGETS["trn2"].hbm_bandwidth * case.lnc)
    idle = without_experts(free)
    megabytes = {kind: count / 1e6 for kind, count in free.hbm_bytes.items()}
    # "favorable" has free all-reduces, "unfavorable" its own.
    costs = dataclasses.replace(TARGETS["trn2"], all_reduce_latency=0)
    (*_, best), (*_, worst) = stress_range.on_machines(launches, costs, (FAVORABLE, UNFAVORABLE))
    return {
        "experts read": f"{case.experts_read()} of {case.experts}",
        "attention MB": round(megabytes["weights"] + megabytes["cache"], 1),
        "router MB": round(megabytes["router"], 1),
        "experts MB": round(megabytes["experts"], 1),
        "other MB": round(megabytes["activations"] + megabytes["other"], 2),
        "us": round(free.latency / 1e3, 1),
        "x bound": round(free.latency / least, 2),
        "us without experts": round(idle / 1e3, 1),
        "at least, x bound": round((idle + experts) / least, 2),
        "us, 17.5 us": round(reduced.latency / 1e3, 1),
        "x bound, 17.5 us": round(reduced.latency / least, 2),
        "stress set": f"{best:.2f} to {worst:.2f}",
    }


def main(arguments: list[str]) -> None:
    """Prints a line per cell as it is made, and then a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, got {arguments[1:]}")
    values = flags.FLAGS
    rows = []
    wanted = cells(values.models, [*map(int, values.tensor_parallel)], [*map(int, values.batches)])
    for name, ranks, batch in wanted:
        model = MODELS[name]
        (kind,) = model.kinds()[:1]
        case = layer_case(
            model, kind, tensor_parallel=ranks, context=values.context, B=batch, S=1,
            residual_on_chip=True,
        )  # fmt: skip
        row = {"model": name, "tp": ranks, "B": batch, **table_row(case)}
        rows.append(row)
        print(row, flush=True)
    report.print_table(rows)
    if rows:
        print(report.write_markdown("experts_model", "Layers with experts, modeled", rows))


if __name__ == "__main__":
    define_flags()
    app.run(main)
