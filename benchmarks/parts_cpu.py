"""What a decode step of SmolLM2 consists of on this machine's CPU.

python -m benchmarks.parts_cpu [--dtypes bf16] [--batches 1]

The whole model, its layers and its head, each beside the memory floor of its own bytes; and layers
with next to no weights, whose time is that of their small operations, and of attention where the
context is long. All take turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from benchmarks import memory_floor, report, shapes, steps
from benchmarks.measuring import measure_in_turns
from jax_tkg.models import default_model as find
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.forward import ModelForward
from jax_tkg.weights import stack_layers

_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32", "bf16"], ["f32", "bf16"], "Dtypes.")
_BATCHES = flags.DEFINE_multi_integer("batches", [1, 8], "Sequences per step.")
_CONTEXT = flags.DEFINE_integer("context", 512, "S_ctx: cache slots attended.", lower_bound=2)
_TURNS = flags.DEFINE_integer("turns", 7, "Turns of each candidate.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 5, "Steps per turn.", lower_bound=1)

_SHORT_CONTEXT = 16


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    reader = memory_floor.MemoryReader()
    rows = []
    for dtype in dict.fromkeys(_DTYPES.value):
        model = steps.loaded(open_checkpoint(find.default_model()), dtype)
        forward = ModelForward(model, capacity=_CONTEXT.value)
        for batch in dict.fromkeys(_BATCHES.value):
            print(f"measuring {dtype} B={batch} ...", flush=True)
            rows.append(_measure(forward, dtype, batch, reader))
            print(report.write_markdown("parts_cpu", "Parts of a step of SmolLM2", rows))
    report.print_table(rows)


def _measure(
    forward: ModelForward, dtype: str, batch: int, reader: memory_floor.MemoryReader
) -> dict[str, Any]:
    context, parameters = _CONTEXT.value, forward.parameters
    bare = dataclasses.replace(shapes.shape_of(forward.model), H=128, I=128)
    bare_weights = stack_layers(shapes.random_weights(bare, steps.COMPUTE_DTYPES[dtype]))
    parts = {
        "whole": steps.whole_model(forward, batch, context),
        "layers": steps.layers_of_model(forward, batch, context),
        "head": steps.head_of_model(forward, batch),
        **{
            _bare(slots): steps.ours(bare_weights, bare, batch, slots, slots, dtype)
            for slots in (_SHORT_CONTEXT, context)
        },
    }
    candidates = [reader.candidate()]
    candidates += [dataclasses.replace(part.candidate, name=name) for name, part in parts.items()]
    timings = measure_in_turns(candidates, _TURNS.value, _RUNS.value)
    read = {
        "layers": shapes.nbytes(parameters.layers) + shapes.nbytes(forward.caches(batch)),
        "head": shapes.nbytes(parameters.vocabulary.head),
    }
    read["whole"] = read["layers"] + read["head"]
    row: dict[str, Any] = {"dtype": dtype, "B": batch}
    for name in parts:
        row[f"{name} ms"] = timings[name].median * 1e3
        if name in read:
            floor = memory_floor.floor(timings[memory_floor.READER], read[name])
            row[f"{name} x floor"] = timings[name].ratio_to(floor)
    return row


def _bare(slots: int) -> str:
    return f"H = I = 128, {slots} slots"


if __name__ == "__main__":
    app.run(main)
