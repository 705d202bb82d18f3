"""Modeled speed of a layer with flat caches, caches in blocks, masks, lengths and float8 caches.

    python -m benchmarks.caches_model [--context 36864] [--batches 1,4] [--block_lens 1024,512,256]

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded, with all-reduces of the table of constants (17.5 us). "chain" is the same layer
where the bytes of transfers take no time: what is left are the steps that wait for each other.
"busiest" is the engine of core 0 that works longest, and for how long; "dma" is the average of the
DMA engines.
"""

from __future__ import annotations

from typing import Any

from absl import app, flags

from benchmarks import report, stress_model
from jax_tkg.profile.layer import bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, layer_case

_MODEL = flags.DEFINE_enum("model", "llama3_70b", list(MODELS), "Which model.")
_RANKS = flags.DEFINE_integer("tensor_parallel", 8, "Ranks.")
_CONTEXT = flags.DEFINE_integer("context", 36864, "Cache slots, new tokens included.")
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Sequences per rank.")
_BLOCK_LENS = flags.DEFINE_list("block_lens", ["1024", "512", "256"], "Slots of a block.")
_ON_CHIP = flags.DEFINE_bool("residual_on_chip", True, "All-reduces go from SBUF to SBUF.")

_FLOAT8 = {"cache_dtype": "float8_e4m3"}


def _forms() -> dict[str, dict[str, Any]]:
    """The forms of caches, by what the table calls them, as fields of a case."""
    forms: dict[str, dict[str, Any]] = {
        "flat, masks from HBM": {},
        "flat, lengths": {"lengths": True},
    }
    for block_len in map(int, _BLOCK_LENS.value):
        forms[f"blocks of {block_len}"] = {"block_len": block_len}
    largest = max(map(int, _BLOCK_LENS.value))
    forms["float8, flat, masks from HBM"] = _FLOAT8
    forms["float8, flat, lengths"] = {"lengths": True, **_FLOAT8}
    forms[f"float8, blocks of {largest}"] = {"block_len": largest, **_FLOAT8}
    return forms


def _row(batch: int, form: str, fields: dict[str, Any]) -> dict[str, Any]:
    model = MODELS[_MODEL.value]
    case = layer_case(
        *(model, model.kinds()[0]),
        tensor_parallel=_RANKS.value,
        context=_CONTEXT.value,
        B=batch,
        S=1,
        residual_on_chip=_ON_CHIP.value,
        **fields,
    )
    launches = record_launches(case)
    figures = layer_figures(launches)
    engine, time = max(figures.busy.items(), key=lambda item: item[1])
    row = {
        "B": batch,
        "caches": form,
        "layer, us": round(figures.latency / 1e3, 1),
        "bound, us": round(bound(case) / 1e3, 1),
        "x bound": round(figures.latency / bound(case), 2),
        "chain, us": round(stress_model.chain_latency(launches) / 1e3, 1),
        "busiest": f"{engine} {time / 1e3:.1f}",
        "caches, MB": round(case.cache_bytes() / 1e6, 1),
    }
    print(row, flush=True)
    return row


def main(arguments: list[str]) -> None:
    """Prints a line for each batch and form of caches as it is made, and then a table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected flags only, got {arguments[1:]}")
    batches = map(int, _BATCHES.value)
    rows = [_row(B, form, fields) for B in batches for form, fields in _forms().items()]
    report.print_table(rows)
    heading = f"{_MODEL.value}, tp={_RANKS.value}, {_CONTEXT.value} slots, modeled"
    print(report.write_markdown("caches_model", heading, rows))


if __name__ == "__main__":
    app.run(main)
