"""Modeled speed of the Neuron kernel on named models, layers with windows and without apart.

    python -m benchmarks.families_model [--models qwen3_8b,gemma3_27b]

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded. "x bound" is a latency over the least time in which HBM delivers the bytes that
must be read. All-reduces are free, as on the machine "documented" of the grid and of the stress
set; "17.5 us" is the same with all-reduces of the table of constants, and "chain" that with an HBM
and DMA engines that take no time: what is left are the steps that wait for each other. The last
column has the machines "favorable" and "unfavorable" of the stress set, the second with all-reduces
of 25 us. A token is all layers of the model, without embedding and head; "no windows" is a token if
all layers attended the whole context. With experts, the bound counts those that tokens choose at
random.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from absl import app, flags

from benchmarks import report, stress_model
from jax_tkg.profile.layer import bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, Case, LayerKind, ModelShape, layer_case
from jax_tkg.simulator.timing.stress import DOCUMENTED, FAVORABLE, UNFAVORABLE

_MODELS = flags.DEFINE_list("models", list(MODELS), "Which models.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Sequences per rank.")
_TENSOR_PARALLEL = flags.DEFINE_list("tensor_parallel", ["1", "8"], "Ranks.")
_CONTEXT = flags.DEFINE_integer("context", 8192, "Cache slots, new tokens included.")

HBM_GIB = 24.0
"""HBM of two physical cores (Trainium2 architecture guide: 96 GiB a chip, which has eight)."""

EMBEDDING_GIB = 3.0
"""Room for embedding, head and buffers: the largest vocabulary here takes 2.5."""


@dataclasses.dataclass(frozen=True)
class KindFigures:
    """Modeled figures of one layer of a kind, in ns.

    Attributes:
      kind: of the layer.
      bound: least time in which HBM delivers what it reads.
      free: on the machine "documented", whose all-reduces are free.
      reduced: the same with all-reduces of the table of constants.
      chain: `reduced` where the bytes of transfers take no time.
      favorable, unfavorable: on the machines of these names.
    """

    kind: LayerKind
    bound: float
    free: float
    reduced: float
    chain: float
    favorable: float
    unfavorable: float


def resident_gib(cases: Iterable[tuple[LayerKind, Case]]) -> float:
    """GiB that the layers' weights and caches take on one rank.

    Args:
      cases: each kind of layer, and one of its layers.
    """
    total = 0
    for kind, case in cases:
        if case.experts:
            # All of them are there, whichever are read.
            options = {**dict(case.options), "experts_per_token": case.experts}
            case = dataclasses.replace(case, options=tuple(options.items()))
        ring = dataclasses.replace(case, attended=None)
        total += kind.layers * (case.weight_bytes() + ring.cache_bytes())
    return total / 2**30


def _figures(kind: LayerKind, case: Case) -> KindFigures:
    launches = record_launches(case)
    return KindFigures(
        kind,
        bound(case),
        stress_model.latency_on(launches, DOCUMENTED),
        layer_figures(launches).latency,
        stress_model.chain_latency(launches),
        stress_model.latency_on(launches, FAVORABLE),
        stress_model.latency_on(launches, UNFAVORABLE),
    )


def table_row(name: str, ranks: int, batch: int, kinds: list[KindFigures]) -> dict[str, Any]:
    """The row of a model: one layer of each kind, and a whole token."""

    def of_token(field: str) -> float:
        return sum(each.kind.layers * getattr(each, field) for each in kinds)

    def times_bound(field: str) -> float:
        return round(of_token(field) / of_token("bound"), 2)

    row: dict[str, Any] = {"model": name, "tp": ranks, "B": batch}
    layers = sum(each.kind.layers for each in kinds)
    whole = None
    for words, has_window in (("full layer", False), ("window layer", True)):
        found = [each for each in kinds if (each.kind.window is not None) == has_window]
        one = found[0] if found else None
        row[f"{words}s"] = one and one.kind.layers
        row[f"{words}, us"] = one and round(one.free / 1e3, 1)
        row[f"{words}, x bound"] = one and round(one.free / one.bound, 2)
        if one and not has_window and one.kind.layers < layers:
            whole = round(layers * one.free / 1e6, 2)
    row["token, ms"] = round(of_token("free") / 1e6, 2)
    row["no windows, ms"] = whole
    row["token, x bound"] = times_bound("free")
    row["17.5 us, x bound"] = times_bound("reduced")
    row["chain, x bound"] = times_bound("chain")
    row["stress set"] = f"{times_bound('favorable'):.2f} to {times_bound('unfavorable'):.2f}"
    return row


def _row(name: str, model: ModelShape, ranks: int, batch: int) -> dict[str, Any] | None:
    """The row of one cell; None, with a printed reason, if it does not fit or is refused."""
    sizes = {"tensor_parallel": ranks, "context": _CONTEXT.value, "B": batch, "S": 1}
    try:
        cases = [
            (kind, layer_case(model, kind, residual_on_chip=True, **sizes))
            for kind in model.kinds()
        ]
        resident = resident_gib(cases)
        if resident > HBM_GIB - EMBEDDING_GIB:
            raise ValueError(f"layers and caches take {resident:.1f} of a rank's {HBM_GIB} GiB")
        row = table_row(name, ranks, batch, [_figures(*each) for each in cases])
    except ValueError as error:
        print(f"{name}, tp={ranks}, B={batch}: {error}", flush=True)
        return None
    print(row, flush=True)
    return row


def main(arguments: list[str]) -> None:
    """Prints a line per model, ranks and batch as it is made, and then a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, got {arguments[1:]}")
    cells = itertools.product(
        _MODELS.value, map(int, _TENSOR_PARALLEL.value), map(int, _BATCHES.value)
    )
    made = [_row(name, MODELS[name], tp, B) for name, tp, B in cells]
    rows = [row for row in made if row is not None]
    report.print_table(rows)
    if rows:
        print(report.write_markdown("families_model", "Named models, modeled", rows))


if __name__ == "__main__":
    app.run(main)
