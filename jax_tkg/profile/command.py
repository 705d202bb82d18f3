"""Command line: modeled speed of one layer of a model on Trainium2 or 3.

python -m jax_tkg.profile --model llama3_70b --tensor_parallel 8 --batch 1 --context 1024
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from absl import flags

from jax_tkg.command_line import CommandError, check_output_file, say
from jax_tkg.limits import MAX_HEAD_SIZE, MAX_NEW_TOKENS
from jax_tkg.profile import compare, loads, plot, report, stress_range, token
from jax_tkg.profile.layer import STEADY_LAYERS, Launches, layer_figures, record_launches
from jax_tkg.profile.model_shapes import (
    DIMENSIONS,
    MODELS,
    Case,
    LayerKind,
    ModelShape,
    layer_case,
)
from jax_tkg.simulator.timing.costs import TARGETS, Costs
from jax_tkg.simulator.timing.stress import (
    DOCUMENTED,
    FAVORABLE,
    MACHINES,
    UNFAVORABLE,
    Machine,
)
from jax_tkg.simulator.timing.timeline_report import write_trace

LONGEST_US = 1e6
"""The longest time that a flag may assume: a second."""


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_enum(
        "model", "llama3_70b", list(MODELS), "Which model's sizes.", flag_values=values
    )
    flags.DEFINE_string(
        "config",
        None,
        "In place of --model: a Hugging Face config.json, or its folder.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "dims",
        None,
        "In place of --model: layers, hidden, intermediate, query heads, KV heads and head size.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tensor_parallel",
        8,
        "Ranks that a layer is split over.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "batch", ["1"], "Sequences per rank; several numbers make a table.", flag_values=values
    )
    flags.DEFINE_bool(
        "head", True, "Also model final norm, head and greedy choice.", flag_values=values
    )
    _define_time(
        "host_gap_us",
        0.0,
        "Assumed time between two steps in which the device waits for the host, in us.",
        values,
    )
    flags.DEFINE_integer(
        "s_tkg", 1, "New tokens per sequence.", 1, MAX_NEW_TOKENS, flag_values=values
    )
    flags.DEFINE_integer(
        "context",
        1024,
        "Cache slots per sequence, new tokens included.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "lengths",
        False,
        "Lengths say what is attended, and the kernel makes its masks.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "block_len",
        0,
        "Slots of a block of caches in blocks, a divisor of --context; 0 for flat caches.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "context_parallel",
        1,
        "Ranks that share out the context of their KV head, in place of copies.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "layers",
        STEADY_LAYERS,
        "Layers of the launch whose last layer is the figure.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "lnc", 2, "Physical cores per logical core, 1 or 2.", 1, 2, flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        "bfloat16",
        ["bfloat16", "float16", "float32"],
        "Compute dtype.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "quantized_mlp",
        None,
        ["float8_e4m3", "float8_e4m3fn", "float8_e5m2"],
        "MLP weights' dtype.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "cache_dtype",
        None,
        ["float8_e4m3", "float8_e4m3fn"],
        "Caches' dtype, if it is not --dtype.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "target", "trn2", list(TARGETS), "Generation of the machine.", flag_values=values
    )
    flags.DEFINE_enum(
        "residual",
        "hbm",
        ["hbm", "sbuf"],
        "Where the all-reduce takes its summands from.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "stacked",
        False,
        "The layers' arguments are stacked, so that the layers loop on the device.",
        flag_values=values,
    )
    _define_time("loop_turn_us", 9.0, "Assumed time of a turn of such a loop in us.", values)
    _define_time("all_reduce_us", 17.5, "Assumed latency of an all-reduce in us.", values)
    flags.DEFINE_bool(
        "full_rate",
        False,
        "The Tensor Engine runs at its full rate, and not throttled to half of it.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "loads",
        False,
        "Also list the transfers of weights and caches: contiguous bytes, triggers.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "stress",
        False,
        "Also model a layer on every machine of the stress set.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "trace", None, "Write a trace for Perfetto to this file.", flag_values=values
    )
    flags.DEFINE_string(
        "plot", None, "Write a picture of a layer to this PNG file.", flag_values=values
    )
    flags.DEFINE_enum(
        "compare",
        None,
        ["nkilib"],
        "Also model AWS's kernel, from the checkout that NKILIB names.",
        flag_values=values,
    )


def _define_time(name: str, default: float, words: str, values: flags.FlagValues) -> None:
    flags.DEFINE_float(name, default, words, flag_values=values)
    # The bounds of absl's own flags let nan pass.
    flags.register_validator(
        name,
        lambda time: 0.0 <= time <= LONGEST_US,
        f"expected a time from 0 to {LONGEST_US:.0f} us",
        flag_values=values,
    )


def _model(values: flags.FlagValues) -> ModelShape:
    given = [f"--{name}" for name in ("model", "config", "dims") if values[name].present]
    if len(given) > 1:
        raise ValueError(
            f"{given[0]}: expected one of --model, --config and --dims, got {' and '.join(given)}"
        )
    if values.config is not None:
        return _model_of_config(values.config)
    if values.dims is None:
        return MODELS[values.model]
    return _model_of_sizes(values.dims)


def _model_of_sizes(texts: list[str]) -> ModelShape:
    numbers = _positive(texts)
    if len(numbers) != len(DIMENSIONS):
        raise ValueError(
            f"--dims: expected {len(DIMENSIONS)} positive integers, got {','.join(texts)!r}"
        )
    sizes: dict[str, Any] = dict(zip(DIMENSIONS, numbers, strict=True))
    model = ModelShape(**sizes)
    if model.query_heads % model.kv_heads:
        raise ValueError(
            f"--dims: expected query heads to be a multiple of the {model.kv_heads} KV heads, "
            f"got {model.query_heads}"
        )
    if model.head_size % 2 or model.head_size > MAX_HEAD_SIZE:
        raise ValueError(
            f"--dims: expected an even head size of at most {MAX_HEAD_SIZE}, got {model.head_size}"
        )
    return model


def _positive(texts: list[str]) -> list[int]:
    """The numbers that texts write; empty where not all of them are positive integers."""
    try:
        numbers = [int(text) for text in texts]
    except ValueError:
        return []
    return numbers if all(number > 0 for number in numbers) else []


def _model_of_config(path: str) -> ModelShape:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("--config: expected gguf to be installed: pip install jax_tkg[models]")
    from jax_tkg.profile import config_file

    return config_file.read_model(path)


def _case(values: flags.FlagValues, model: ModelShape, kind: LayerKind, batch: int) -> Case:
    return layer_case(
        model,
        kind,
        tensor_parallel=values.tensor_parallel,
        context=values.context,
        B=batch,
        S=values.s_tkg,
        lengths=values.lengths,
        block_len=values.block_len,
        context_parallel=values.context_parallel,
        dtype=values.dtype,
        quantized_mlp=values.quantized_mlp,
        cache_dtype=values.cache_dtype,
        lnc=values.lnc,
        target=values.target,
        residual_on_chip=values.residual == "sbuf",
        looped=values.stacked,
    )


def _costs(values: flags.FlagValues) -> Costs:
    return dataclasses.replace(
        TARGETS[values.target],
        all_reduce_latency=values.all_reduce_us * 1e3,
        loop_turn=values.loop_turn_us * 1e3,
    )


def _profile(values: flags.FlagValues) -> None:
    if values.plot is not None:
        check_output_file("--plot", values.plot, ".png")
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError(
                "--plot: expected matplotlib to be installed: pip install jax_tkg[profile]"
            )
    if values.trace is not None:
        check_output_file("--trace", values.trace)
    if values.context < values.s_tkg:
        raise ValueError(
            f"--context: expected at least the {values.s_tkg} new tokens (--s_tkg), "
            f"got {values.context}"
        )
    model = _model(values)
    batches = _batches(values)
    steps = [_profile_batch(values, model, batch) for batch in batches]
    say("")
    say(token.describe(steps, values.head and model.vocabulary > 0))


def _batches(values: flags.FlagValues) -> list[int]:
    batches = _positive(values.batch)
    if not batches:
        raise ValueError(f"--batch: expected positive integers, got {','.join(values.batch)!r}")
    return batches


def _machines(values: flags.FlagValues) -> tuple[Machine, ...]:
    """The machine that figures are of, and those of the range."""
    if values.full_rate:
        own = Machine("documented", "at full rate", {}, "full")
    else:
        own = DOCUMENTED
    return (own, *(MACHINES if values.stress else (FAVORABLE, UNFAVORABLE)))


def _profile_batch(
    values: flags.FlagValues, model: ModelShape, batch: int
) -> list[token.TokenTime]:
    """Prints the layers of a model at a batch, and returns its step on each machine."""
    rate = "full" if values.full_rate else "half"
    kinds = []
    recorded = []
    if len(values.batch) > 1:
        say(f"batch of {batch}")
    for kind in model.kinds():
        case = _case(values, model, kind, batch)
        launches = record_launches(case, layers=values.layers)
        recorded.append((kind, launches))
        figures = layer_figures(launches, _costs(values), rate)
        kinds.append((kind, case, figures))
        if len(model.kinds()) > 1:
            say(report.describe_kind(kind))
        say(report.describe(case, figures, "jax_tkg"))
        _say_more(values, launches, "jax_tkg")
        say("")
    say(report.describe_token(kinds))
    _, case, figures = kinds[0]
    if values.compare is not None:
        launches = record_launches(case, values.compare, values.layers)
        theirs = layer_figures(launches, _costs(values), rate)
        say("")
        say(report.describe(case, theirs, "AWS's transformer_tkg"))
        _say_more(values, launches, "AWS's transformer_tkg")
        say("")
        say(compare.side_by_side(case, figures, theirs))
    if values.trace is not None:
        write_trace(figures.timeline, values.trace)
        say(f"trace of the modeled launch, for https://ui.perfetto.dev: {values.trace}")
    if values.plot is not None:
        plot.write_plot(figures, _title(values, case), values.plot)
        say(f"picture of a modeled layer: {values.plot}")
    head = None
    if values.head and model.vocabulary:
        V = -(-model.vocabulary // values.tensor_parallel)
        head = token.record_head(kinds[0][1], V)
    costs, gap = _costs(values), values.host_gap_us * 1e3
    return [token.token_time(recorded, head, machine, costs, gap) for machine in _machines(values)]


def _say_more(values: flags.FlagValues, launches: Launches, name: str) -> None:
    """The range over the machines of the stress set, and the transfers if they are asked for."""
    chosen = MACHINES if values.stress else (FAVORABLE, UNFAVORABLE)
    say(stress_range.describe(stress_range.on_machines(launches, _costs(values), chosen)))
    if values.loads:
        say(loads.describe_loads(loads.layer_loads(launches), name))


def _title(values: flags.FlagValues, case: Case) -> str:
    name = values.config or ("custom sizes" if values.dims else values.model)
    mlp = f", MLP weights {case.quantized_mlp}" if case.quantized_mlp else ""
    held = f", caches {case.cache_dtype}" if case.cache_dtype else ""
    return (
        f"One layer of {name} on {case.target}, modeled: tp={case.tensor_parallel}, B={case.B}, "
        f"S_tkg={case.S}, S_ctx={case.S_ctx}, {case.dtype}{mlp}{held} "
        "(core 0)"
    )


def main(values: flags.FlagValues) -> None:
    """Prints the profile.

    Raises:
      CommandError: it cannot be made, or a file not be written.
    """
    try:
        _profile(values)
    except ValueError as error:
        raise CommandError(str(error)) from error
    except MemoryError as error:
        raise CommandError(
            f"--context, --batch: expected sizes whose arrays fit in memory, got {error}"
        ) from error
