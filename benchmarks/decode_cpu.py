"""Milliseconds per decode step on this machine's CPU, beside its memory floor and its peers.

python -m benchmarks.decode_cpu [--models smollm2] [--dtypes bf16] [--batches 1] [--peers plain]

Each flag may be given several times; without it all of its values are measured.

A decode step reads every weight and the attended part of the caches once, so it takes at least
those bytes over the machine's memory bandwidth: the floor. The bandwidth is measured in turn with
the steps, and "x floor" is the median over turns of a step's time over the floor of the same turn,
with the least and the most of them beside it; "x best floor" is the median step over the floor at
the fastest turn of the whole run. The Llama-3.2-1B shape has random weights and stands for the
model's layers; SmolLM2 is the whole model, from token to token.
"""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks import llama_cpp_peer, memory_floor, report, shapes, steps, torch_peer
from benchmarks.measuring import Candidate, Timing, measure_in_turns
from jax_tkg.models import default_model as find
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.forward import ModelForward
from jax_tkg.weights import stack_layers, unstack_layers

SMOLLM2 = "smollm2"
LLAMA = "llama-3.2-1b"
PLAIN, TRANSFORMERS, LLAMA_CPP = "plain", "transformers", "llama.cpp"

_MODELS = flags.DEFINE_multi_enum("models", [SMOLLM2, LLAMA], [SMOLLM2, LLAMA], "Models.")
_DTYPES = flags.DEFINE_multi_enum(
    "dtypes",
    ["f32", "bf16", "fp8"],
    ["f32", "bf16", "fp8"],
    "Dtypes of the weights; fp8: float8_e4m3fn MLP weights, bfloat16 everything else.",
)
_BATCHES = flags.DEFINE_multi_integer("batches", [1, 4, 8], "Sequences per step.")
_PEERS = flags.DEFINE_multi_enum(
    "peers",
    [PLAIN, TRANSFORMERS, LLAMA_CPP],
    [PLAIN, TRANSFORMERS, LLAMA_CPP, "none"],
    "What to compare with.",
)
_CONTEXT = flags.DEFINE_integer("context", 512, "S_ctx: cache slots attended.", lower_bound=2)
_CAPACITY = flags.DEFINE_integer(
    "capacity", None, "S_max of the Llama shape; default: the context."
)
_TURNS = flags.DEFINE_integer("turns", 7, "Turns of each candidate.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 3, "Steps per turn.", lower_bound=1)


@dataclasses.dataclass
class Cell:
    """One row of the table, to be measured."""

    model: str
    dtype: str
    batch: int
    step_bytes: int
    temporary_bytes: int
    candidates: list[Candidate]


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    peers = _peers_at_hand()
    reader = memory_floor.MemoryReader()
    rows, memory = [], []
    for model in dict.fromkeys(_MODELS.value):
        for dtype in dict.fromkeys(_DTYPES.value):
            cells = _smollm2_cells if model == SMOLLM2 else _llama_cells
            for cell in cells(dtype, peers):
                print(f"measuring {model} {dtype} B={cell.batch} ...", flush=True)
                timings = measure_in_turns(
                    [reader.candidate(), *cell.candidates], _TURNS.value, _RUNS.value
                )
                memory.append(timings[memory_floor.READER])
                rows.append((cell, timings))
                cell.candidates.clear()
                # After each cell, so that a run that is cut short leaves what it has measured.
                paths, heading, table = _write(rows, memory_floor.bandwidths(memory), peers)
            gc.collect()
    print(f"\n{heading}\n")
    report.print_table(table)
    print("", *paths, sep="\n")


def _write(
    rows: Sequence[tuple[Cell, dict[str, Timing]]], rates: list[float], peers: Sequence[str]
) -> tuple[list[pathlib.Path], str, list[dict[str, Any]]]:
    """Writes what has been measured; the paths, and the table with its heading."""
    table = [_row(cell, timings, max(rates), peers) for cell, timings in rows]
    low, middle, high = (f"{f(rates) / 1e9:.0f}" for f in (min, statistics.median, max))
    heading = f"Milliseconds per decode step, medians; memory reads {middle} GB/s ({low} to {high})"
    content = {
        "bandwidths": rates,
        "context": _CONTEXT.value,
        "capacity": _CAPACITY.value or _CONTEXT.value,
        "rows": table,
        "timings": [
            {
                "model": cell.model,
                "dtype": cell.dtype,
                "B": cell.batch,
                "seconds": {name: dataclasses.asdict(t) for name, t in timings.items()},
            }
            for cell, timings in rows
        ],
    }
    paths = [
        report.write_markdown("decode_cpu", heading, table),
        report.write_json("decode_cpu", content),
    ]
    return paths, heading, table


def _peers_at_hand() -> list[str]:
    """The peers asked for that are installed; says which are not."""
    peers = [peer for peer in dict.fromkeys(_PEERS.value) if peer != "none"]
    for peer, module in ((TRANSFORMERS, torch_peer), (LLAMA_CPP, llama_cpp_peer)):
        absent = module.missing()
        if peer in peers and absent:
            print(f"{peer}: left out, {absent}")
            peers.remove(peer)
    return peers


def _llama_cells(dtype: str, peers: Sequence[str]) -> Iterator[Cell]:
    shape = shapes.LLAMA_3_2_1B
    context, capacity = _CONTEXT.value, _CAPACITY.value or _CONTEXT.value
    weights = shapes.random_weights(shape, steps.COMPUTE_DTYPES[dtype])
    if dtype == "fp8":
        weights = steps.quantized(weights)
    torch_model = None
    if TRANSFORMERS in peers and dtype != "fp8":
        torch_model = torch_peer.random_model(shape, dtype)
    for batch in _BATCHES.value:
        sizes = (shape, batch, context, capacity, dtype)
        mine = steps.ours(weights, *sizes)
        candidates = [mine.candidate]
        if PLAIN in peers:
            candidates.append(steps.plain(weights, *sizes).candidate)
        if torch_model is not None:
            candidates.append(torch_peer.candidate(torch_model, batch, context - 1))
        itemsize = jax.numpy.dtype(steps.COMPUTE_DTYPES[dtype]).itemsize
        cache_bytes = 2 * shape.L * batch * shape.k * shape.d * context * itemsize
        yield Cell(
            LLAMA,
            dtype,
            batch,
            shapes.nbytes(weights) + cache_bytes,
            mine.temporary_bytes,
            candidates,
        )


def _smollm2_cells(dtype: str, peers: Sequence[str]) -> Iterator[Cell]:
    path = find.default_model()
    context = _CONTEXT.value
    model = steps.loaded(open_checkpoint(path), dtype)
    layers = unstack_layers(model.parameters.layers)
    if dtype == "fp8":
        layers = steps.quantized(layers)
        quantized = dataclasses.replace(model.parameters, layers=stack_layers(layers))
        model = dataclasses.replace(model, parameters=quantized)
    forward = ModelForward(model, capacity=context)
    parameters = forward.parameters
    head = jax.numpy.asarray(model.parameters.head.T) if PLAIN in peers else None
    torch_model = None
    if TRANSFORMERS in peers and dtype != "fp8":
        torch_model = torch_peer.pretrained_model(path, dtype)
    for batch in _BATCHES.value:
        mine = steps.whole_model(forward, batch, context)
        candidates = [mine.candidate]
        if PLAIN in peers:
            shape = shapes.shape_of(model)
            peer = steps.plain(layers, shape, batch, context, context, dtype, head)
            candidates.append(peer.candidate)
        if torch_model is not None:
            candidates.append(torch_peer.candidate(torch_model, batch, context - 1))
        if LLAMA_CPP in peers and batch == 1:
            candidates.append(llama_cpp_peer.candidate(path, context - 1))
        read = [parameters.layers, parameters.vocabulary.head]
        config = model.config
        cache_elements = 2 * config.num_layers * batch * config.num_kv_heads * config.head_size
        itemsize = parameters.vocabulary.head.dtype.itemsize
        yield Cell(
            SMOLLM2,
            dtype,
            batch,
            shapes.nbytes(read) + cache_elements * context * itemsize,
            mine.temporary_bytes,
            candidates,
        )


def _row(
    cell: Cell, timings: dict[str, Timing], best_rate: float, peers: Sequence[str]
) -> dict[str, Any]:
    mine = timings[steps.OURS]
    floor = memory_floor.floor(timings[memory_floor.READER], cell.step_bytes)
    ratios = mine.ratios_to(floor)
    row: dict[str, Any] = {
        "model": cell.model,
        "dtype": cell.dtype,
        "B": cell.batch,
        "MB read": round(cell.step_bytes / 1e6),
        "floor": floor.median * 1e3,
        "jax_tkg": mine.median * 1e3,
        "best": mine.shortest * 1e3,
        "x floor": mine.ratio_to(floor),
        "least-most": f"{min(ratios):.2f}-{max(ratios):.2f}",
        "x best floor": mine.median / (cell.step_bytes / best_rate),
        "temp MB": round(cell.temporary_bytes / 1e6, 1),
    }
    names = {PLAIN: steps.PLAIN, TRANSFORMERS: torch_peer.NAME, LLAMA_CPP: llama_cpp_peer.NAME}
    for peer in peers:
        timing = timings.get(names[peer])
        row[names[peer]] = timing and timing.median * 1e3
        if peer == LLAMA_CPP:
            # Its weights are smaller; what compares is the time per byte read.
            size = llama_cpp_peer.weight_bytes(find.default_model()) if timing else 0
            row["GB/s of llama.cpp"] = timing and size / timing.median / 1e9
            row["GB/s of jax_tkg"] = timing and cell.step_bytes / mine.median / 1e9
        else:
            row[f"{names[peer]} / ours"] = timing and timing.ratio_to(mine)
    return row


if __name__ == "__main__":
    app.run(main)
