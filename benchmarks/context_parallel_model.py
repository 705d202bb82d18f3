"""Modeled speed of ranks that have copies of a KV head's context, and that share it out.

    python -m benchmarks.context_parallel_model [--context 32768] [--batches 1,4,16]

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded, with collectives of the table of constants (17.5 us).
"""

from __future__ import annotations

from typing import Any

from absl import app, flags

from benchmarks import report
from jax_tkg.profile.layer import bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, layer_case

_MODEL = flags.DEFINE_enum("model", "llama3_70b", list(MODELS), "Which model.")
_RANKS = flags.DEFINE_integer("tensor_parallel", 32, "Ranks.")
_CONTEXT = flags.DEFINE_integer("context", 32768, "Cache slots, new tokens included.")
_BATCHES = flags.DEFINE_list("batches", ["1", "4", "16"], "Sequences per rank.")
_ON_CHIP = flags.DEFINE_bool("residual_on_chip", True, "All-reduces go from SBUF to SBUF.")


def _row(batch: int, count: int) -> dict[str, Any]:
    """The row of a batch, on `count` ranks that share out a context; 1 for copies."""
    model = MODELS[_MODEL.value]
    (kind,) = model.kinds()
    case = layer_case(
        *(model, kind),
        tensor_parallel=_RANKS.value,
        context=_CONTEXT.value,
        B=batch,
        S=1,
        lengths=True,
        residual_on_chip=_ON_CHIP.value,
        context_parallel=count,
    )
    figures = layer_figures(record_launches(case))
    row = {
        "model": _MODEL.value,
        "tp": _RANKS.value,
        "B": batch,
        "context": _CONTEXT.value,
        "context_parallel": count,
        "layer, us": round(figures.latency / 1e3, 1),
        "bound, us": round(bound(case) / 1e3, 1),
        "caches of all layers, GiB a rank": round(model.layers * case.cache_bytes() / 2**30, 2),
    }
    print(row, flush=True)
    return row


def main(arguments: list[str]) -> None:
    """Prints a line per batch and way as it is made, and then a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, got {arguments[1:]}")
    model = MODELS[_MODEL.value]
    counts = (1, max(1, _RANKS.value // model.kv_heads))
    rows = [_row(batch, count) for batch in map(int, _BATCHES.value) for count in counts]
    report.print_table(rows)


if __name__ == "__main__":
    app.run(main)
