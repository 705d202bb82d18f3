"""What depth costs: tracing, lowering, compiling and calling a step of many layers.

python -m benchmarks.depth_cpu [--layers 8,80] [--dtypes f32,bf16]

Layers have the proportions of Llama-3-70B at H = 512, so that 80 of them fit. Per-layer arguments
are lists of arrays ("lists") or arrays with a layer axis ("stacked").

Calls are timed until they return, which is before the step has run: that is the time in which
Python and JAX look at every argument and make every result. Beside it stands the same for jitted
functions that do nothing: one that takes the same arguments, and one that also returns the caches,
as a decode step has to. A step leaves nothing but its weights in the processor's caches, from which
the next call suffers several times its time; so memory is read before each call, the peers' too
("cold"). "Warm" is the same for layers so small that they stay in the caches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import report, shapes, steps
from benchmarks.measuring import Candidate, Timing, measure_in_turns
from jax_tkg.bits import as_bits, weights_as_bits
from jax_tkg.masks import active_mask, cache_mask
from jax_tkg.rope import rope_tables
from jax_tkg.transformer_tkg import transformer_tkg
from jax_tkg.weights import stack_layers

_LAYERS = flags.DEFINE_multi_integer("layers", [8, 80], "Numbers of layers.")
_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32", "bf16"], ["f32", "bf16"], "Dtypes.")
_FORMS = flags.DEFINE_multi_enum(
    "forms", ["lists", "stacked"], ["lists", "stacked"], "Forms of the per-layer arguments."
)
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", 128, "S_ctx and S_max.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each candidate.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 20, "Calls per turn.", lower_bound=1)


def scaled_llama_70b(layers: int) -> shapes.Shape:
    """Llama-3-70B has H 8192, I 28672, 64 query heads and 8 KV heads of 128: a 16th of that."""
    return shapes.Shape(L=layers, H=512, I=1792, q=4, k=1, d=128)


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    rows = []
    for dtype in dict.fromkeys(_DTYPES.value):
        for form in dict.fromkeys(_FORMS.value):
            for layers in dict.fromkeys(_LAYERS.value):
                print(f"measuring {dtype} {form} {layers} layers ...", flush=True)
                rows.append(_measure(scaled_llama_70b(layers), dtype, form == "stacked"))
    print("\nseconds to trace, lower and compile; milliseconds per call and per step, medians\n")
    report.print_table(rows)
    print(f"\n{report.write_markdown('depth_cpu', 'Depth: seconds and milliseconds', rows)}")
    content = {"batch": _BATCH.value, "context": _CONTEXT.value, "rows": rows}
    print(report.write_json("depth_cpu", content))


def _measure(shape: shapes.Shape, dtype: str, stacked: bool) -> dict[str, Any]:
    step = functools.partial(_step, shape=shape)
    kind = steps.COMPUTE_DTYPES[dtype]
    x, caches, weights, lengths = _arguments(shape, kind, stacked)
    arguments = (x, caches(), weights, lengths)
    started = time.perf_counter()
    traced = jax.jit(step, donate_argnums=1).trace(*arguments)
    after_trace = time.perf_counter()
    lowered = traced.lower()
    after_lower = time.perf_counter()
    lowered.compile()
    after_compile = time.perf_counter()
    timings = _call_timings(step, x, caches, weights, lengths, cold=True)
    warm_timings = _warm_timings(shape.L, kind, stacked)
    call, warm = timings["call"], warm_timings["call"]
    return {
        "dtype": dtype,
        "form": "stacked" if stacked else "lists",
        "layers": shape.L,
        "arrays": len(jax.tree.leaves(arguments)),
        "trace s": after_trace - started,
        "lower s": after_lower - after_trace,
        "compile s": after_compile - after_lower,
        "sum s": after_compile - started,
        "cold call ms": call.median * 1e3,
        "/ takes": call.ratio_to(timings["takes"]),
        "/ returns": call.ratio_to(timings["returns"]),
        "warm call ms": warm.median * 1e3,
        "/ takes (warm)": warm.ratio_to(warm_timings["takes"]),
        "/ returns (warm)": warm.ratio_to(warm_timings["returns"]),
        "step ms": timings["step"].median * 1e3,
    }


def _warm_timings(layers: int, kind: str, stacked: bool) -> dict[str, Timing]:
    shape = shapes.Shape(L=layers, H=128, I=128, q=1, k=1, d=16)
    x, caches, weights, lengths = _arguments(shape, kind, stacked)
    step = functools.partial(_step, shape=shape)
    return _call_timings(step, x, caches, weights, lengths, cold=False)


def _call_timings(
    step: Callable[..., Any],
    x: jax.Array,
    caches: Callable[[], Any],
    weights: Any,
    lengths: jax.Array,
    cold: bool,
) -> dict[str, Timing]:
    """Calls of the step and of its peers in turns; and whole steps, where `cold`."""
    # Without `keep_unused` the empty functions would not be given the arrays at all.
    returns = jax.jit(_take_and_return, donate_argnums=1, keep_unused=True)
    functions = {
        "call": jax.jit(step, donate_argnums=1),
        "takes": jax.jit(_take, keep_unused=True),
        "returns": returns,
    }
    candidates = [
        _calls(name, function, x, caches(), weights, lengths, cold)
        for name, function in functions.items()
    ]
    if cold:
        candidates.append(_steps(functions["call"], x, caches(), weights, lengths))
    return measure_in_turns(candidates, _TURNS.value, _RUNS.value)


def _arguments(
    shape: shapes.Shape, kind: str, stacked: bool
) -> tuple[jax.Array, Callable[[], Any], Any, jax.Array]:
    """The first token, what makes caches, weights and lengths of a step."""
    weights = shapes.random_weights(shape, kind)
    weights = weights_as_bits(stack_layers(weights) if stacked else weights)
    x = jnp.ones((_BATCH.value, 1, shape.H), kind)

    def caches() -> Any:
        made = shapes.random_caches(shape, _BATCH.value, _CONTEXT.value, kind, stacked)
        return jax.tree.map(as_bits, made)

    return x, caches, weights, jnp.full((_BATCH.value,), _CONTEXT.value - 1)


def _step(
    x: jax.Array, caches: Any, weights: Any, lengths: jax.Array, shape: shapes.Shape
) -> tuple[Any, Any]:
    cos, sin = rope_tables(lengths[:, None], shape.d, 500000.0)
    out = transformer_tkg(
        X=x,
        **weights.arguments(),
        K_caches=caches[0],
        V_caches=caches[1],
        RoPE_cos=cos,
        RoPE_sin=sin,
        mask_cache=cache_mask(lengths, _CONTEXT.value, shape.q, 1),
        mask_active=active_mask(1, _BATCH.value, shape.q),
        position_ids=lengths[:, None],
        num_layers=shape.L,
    )
    return out.hidden, (out.K_caches, out.V_caches)


def _take(x: jax.Array, caches: Any, weights: Any, lengths: jax.Array) -> tuple[Any, None]:
    return x, None


def _take_and_return(
    x: jax.Array, caches: Any, weights: Any, lengths: jax.Array
) -> tuple[Any, Any]:
    return x, caches


def _calls(
    name: str,
    function: Callable[..., Any],
    x: jax.Array,
    caches: Any,
    weights: Any,
    lengths: jax.Array,
    cold: bool,
) -> Candidate:
    """Calls the function on its own last results."""
    held = [x, caches]

    def run() -> None:
        result, updated = function(held[0], held[1], weights, lengths)
        held[:] = result, held[1] if updated is None else updated

    def finish() -> None:
        jax.block_until_ready(held)
        if cold:
            np.bitwise_or.reduce(_evicting())

    return Candidate(name, run, finish)


def _steps(
    function: Callable[..., Any], x: jax.Array, caches: Any, weights: Any, lengths: jax.Array
) -> Candidate:
    """Calls the function on its own last caches until its results are there."""
    held = [x, caches]

    def run() -> None:
        held[:] = function(x, held[1], weights, lengths)
        jax.block_until_ready(held)

    return Candidate("step", run)


@functools.cache
def _evicting() -> np.ndarray:
    """256 MiB, more than the caches of a processor hold."""
    return np.ones(1 << 25, np.int64)


if __name__ == "__main__":
    app.run(main)
