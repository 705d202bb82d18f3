"""Modelled speed of the Neuron kernel on layers of named models, each kind of layer apart.

    python -m benchmarks.families_model [--models qwen3_8b,gemma3_27b]

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded. Figures are latencies over the HBM bound: of a layer of each kind, with
all-reduces that take no time and with those of the table of constants, 17.5 us; and of the layers
of a token, with the latter, down to that line. Of experts the bound counts those that tokens choose
at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from absl import app, flags

from benchmarks import report
from jax_tkg.profile.layer import bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, ModelShape, layer_case

_MODELS = flags.DEFINE_list("models", list(MODELS), "Which models.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Sequences per rank.")
_TENSOR_PARALLEL = flags.DEFINE_list("tensor_parallel", ["1", "8"], "Ranks.")
_CONTEXT = flags.DEFINE_integer("context", 8192, "Cache slots, new tokens included.")


def _rows(name: str, model: ModelShape, ranks: int, batch: int) -> Iterator[dict[str, Any]]:
    token = least = 0.0
    for kind in model.kinds():
        row: dict[str, Any] = {"model": name, "tp": ranks, "B": batch, "layers": kind.layers}
        row["window"] = kind.window
        try:
            case = layer_case(
                model,
                kind,
                tensor_parallel=ranks,
                context=_CONTEXT.value,
                B=batch,
                S=1,
                residual_on_chip=True,
            )
            launches = record_launches(case, layers=3)
        except ValueError as error:
            print(f"{name}, tp={ranks}, B={batch}: {error}", flush=True)
            return
        free = layer_figures(launches, collectives=False).latency
        slow = layer_figures(launches).latency
        least += kind.layers * bound(case)
        token += kind.layers * slow
        row["experts read"] = case.experts_read() if case.experts else None
        row["bound, us"] = round(bound(case) / 1e3, 1)
        row["layer, us"] = round(slow / 1e3, 1)
        row["layer / bound"] = round(free / bound(case), 2)
        row["with all-reduces"] = round(slow / bound(case), 2)
        row["token / bound"] = round(token / least, 2)
        print(row, flush=True)
        yield row


def main(arguments: list[str]) -> None:
    """Prints a line per kind of layer, as it is made and then as a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, got {arguments[1:]}")
    cells = itertools.product(
        _MODELS.value, map(int, _TENSOR_PARALLEL.value), map(int, _BATCHES.value)
    )
    rows = [row for name, tp, B in cells for row in _rows(name, MODELS[name], tp, B)]
    report.print_table(rows)


if __name__ == "__main__":
    app.run(main)
