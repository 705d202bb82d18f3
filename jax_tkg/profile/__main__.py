"""Command line: modelled speed of one layer of a model on Trainium2 or 3.

python -m jax_tkg.profile --model llama3_70b --tensor_parallel 8 --batch 1 --context 1024
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from typing import Any

from absl import app, flags, logging

from jax_tkg.profile import compare, plot, report
from jax_tkg.profile.layer import layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, Case, ModelShape, rank_sizes
from jax_tkg.simulator.timing.costs import TARGETS, Costs
from jax_tkg.simulator.timing.timeline_report import write_trace

_MODEL = flags.DEFINE_enum("model", "llama3_70b", list(MODELS), "Which model's sizes.")
_DIMENSIONS = flags.DEFINE_list(
    "dims",
    None,
    "In place of --model: layers, hidden, intermediate, query heads, KV heads and head size.",
)
_TENSOR_PARALLEL = flags.DEFINE_integer("tensor_parallel", 8, "Ranks that a layer is split over.")
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences per rank.")
_S_TKG = flags.DEFINE_integer("s_tkg", 1, "New tokens per sequence.")
_CONTEXT = flags.DEFINE_integer("context", 1024, "Cache slots per sequence, new tokens included.")
_LAYERS = flags.DEFINE_integer("layers", 3, "Layers of the launch whose last layer is the figure.")
_LNC = flags.DEFINE_integer("lnc", 2, "Physical cores per logical core, 1 or 2.", 1, 2)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Compute dtype."
)
_QUANTIZED = flags.DEFINE_enum(
    "quantized_mlp", None, ["float8_e4m3", "float8_e4m3fn", "float8_e5m2"], "MLP weights' dtype."
)
_TARGET = flags.DEFINE_enum("target", "trn2", list(TARGETS), "Generation of the machine.")
_RESIDUAL = flags.DEFINE_enum(
    "residual", "hbm", ["hbm", "sbuf"], "Where the all-reduce takes its summands from."
)
_STACKED = flags.DEFINE_bool(
    "stacked", False, "The layers' arguments are stacked, so that the layers loop on the device."
)
_TURN = flags.DEFINE_float("loop_turn_us", 9.0, "Assumed time of a turn of such a loop in us.")
_ALL_REDUCE = flags.DEFINE_float("all_reduce_us", 10.0, "Assumed latency of an all-reduce in us.")
_RATE = flags.DEFINE_bool(
    "full_rate", False, "The Tensor Engine runs at its full rate, and not throttled to half of it."
)
_TRACE = flags.DEFINE_string("trace", None, "Write a trace for Perfetto to this file.")
_PLOT = flags.DEFINE_string("plot", None, "Write a picture of a layer to this PNG file.")
_COMPARE = flags.DEFINE_enum(
    "compare", None, ["nkilib"], "Also model AWS's kernel, from the checkout that NKILIB names."
)


def _model() -> ModelShape:
    if _DIMENSIONS.value is None:
        return MODELS[_MODEL.value]
    fields = dataclasses.fields(ModelShape)
    if len(_DIMENSIONS.value) != len(fields):
        raise ValueError(f"--dims: expected {len(fields)} numbers, got {len(_DIMENSIONS.value)}")
    return ModelShape(*(int(value) for value in _DIMENSIONS.value))


def _case(model: ModelShape) -> Case:
    sizes: dict[str, Any] = rank_sizes(model, _TENSOR_PARALLEL.value)
    return Case(
        B=_BATCH.value,
        S=_S_TKG.value,
        S_ctx=_CONTEXT.value,
        dtype=_DTYPE.value,
        quantized_mlp=_QUANTIZED.value,
        tensor_parallel=_TENSOR_PARALLEL.value,
        lnc=_LNC.value,
        target=_TARGET.value,
        residual_on_chip=_RESIDUAL.value == "sbuf",
        looped=_STACKED.value,
        **sizes,
    )


def _costs() -> Costs:
    return dataclasses.replace(
        TARGETS[_TARGET.value],
        all_reduce_latency=_ALL_REDUCE.value * 1e3,
        loop_turn=_TURN.value * 1e3,
    )


def _profile() -> None:
    if _PLOT.value is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--plot: expected matplotlib to be installed: pip install jax_tkg[profile]"
        )
    model = _model()
    case = _case(model)
    rate = "full" if _RATE.value else "half"
    figures = layer_figures(record_launches(case, layers=_LAYERS.value), _costs(), rate)
    print(report.describe(case, figures, "jax_tkg", model.layers))
    if _COMPARE.value is not None:
        launches = record_launches(case, _COMPARE.value, _LAYERS.value)
        theirs = layer_figures(launches, _costs(), rate)
        print()
        print(report.describe(case, theirs, "AWS's transformer_tkg", model.layers))
        print()
        print(compare.side_by_side(case, figures, theirs))
    if _TRACE.value is not None:
        write_trace(figures.timeline, _TRACE.value)
        print(f"trace of the modelled launch, for https://ui.perfetto.dev: {_TRACE.value}")
    if _PLOT.value is not None:
        plot.write_plot(figures, _title(case), _PLOT.value)
        print(f"picture of a modelled layer: {_PLOT.value}")


def _title(case: Case) -> str:
    name = "custom sizes" if _DIMENSIONS.value else _MODEL.value
    mlp = f", MLP weights {case.quantized_mlp}" if case.quantized_mlp else ""
    return (
        f"One layer of {name} on {case.target}, modelled: tp={case.tensor_parallel}, B={case.B}, "
        f"S_tkg={case.S}, S_ctx={case.S_ctx}, {case.dtype}{mlp} (core 0)"
    )


def main(arguments: list[str]) -> int:
    """Prints the profile; 1 with one line where it cannot be made."""
    if not flags.FLAGS["verbosity"].present:
        # JAX reports the backends that it does not find through absl's log.
        logging.set_verbosity(logging.WARNING)
    if len(arguments) > 1:
        print(f"jax_tkg.profile: expected flags only, got {arguments[1:]}", file=sys.stderr)
        return 1
    try:
        _profile()
    except (ValueError, OSError) as error:
        print(f"jax_tkg.profile: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
