"""What depth costs: tracing, lowering, compiling and calling a step of many layers.

python -m benchmarks.depth_cpu [--layers 80] [--dtypes bf16] [--forms stacked]

Each flag may be given several times; without it all of its values are measured.

Layers have the proportions of Llama-3-70B at H = 512, so that 80 of them fit. Per-layer arguments
are lists of arrays ("lists"), arrays with a layer axis ("stacked"), or weights in lists beside
caches with a layer axis ("lists, caches stacked").

A call returns before its step has run: what is timed is Python and JAX looking at every argument,
making every result and handing over the work. Beside it stands the same for jitted functions that
do nothing: one that takes the same arguments, and one that also returns the caches, as a decode
step has to. Two things are the same for all of them:

- Where: right after a decode step with the same arguments has ended, as in a loop of decode steps
  that waits for each token. A step leaves nothing but its weights in the processor's caches, and
  the calling thread has slept meanwhile; that makes every call several times as long as it is when
  calls follow each other. The latter is timed too: 8 calls without a wait between them ("in a
  row").
- The clock: processor time of the calling thread. By the clock on the wall a call also lasts while
  the threads that have begun to run the step keep the calling one from a core, which on two cores
  they do at random; the functions that do nothing have no such threads.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from benchmarks import report, shapes, steps
from benchmarks.measuring import Candidate, Timing, measure_in_turns
from jax_tkg.api import transformer_tkg
from jax_tkg.bits import as_bits, weights_as_bits
from jax_tkg.masks import active_mask, cache_mask
from jax_tkg.rope import rope_tables
from jax_tkg.weights import stack_layers

_LAYERS = flags.DEFINE_multi_integer("layers", [8, 80], "Numbers of layers.")
_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32", "bf16"], ["f32", "bf16"], "Dtypes.")
LISTS, MIXED, STACKED = "lists", "lists, caches stacked", "stacked"
_FORMS = flags.DEFINE_multi_enum(
    "forms", [LISTS, MIXED, STACKED], [LISTS, MIXED, STACKED], "Forms of the per-layer arguments."
)
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", 128, "S_ctx and S_max.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each candidate.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 6, "Calls per turn.", lower_bound=1)

_IN_A_ROW = 8


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
                rows.append(_measure(scaled_llama_70b(layers), dtype, form))
    print("\nseconds to trace, lower and compile; milliseconds per call and per step, medians\n")
    report.print_table(rows)
    print(f"\n{report.write_markdown('depth_cpu', 'Depth: seconds and milliseconds', rows)}")
    content = {"batch": _BATCH.value, "context": _CONTEXT.value, "rows": rows}
    print(report.write_json("depth_cpu", content))


def _measure(shape: shapes.Shape, dtype: str, form: str) -> dict[str, Any]:
    step = functools.partial(_step, shape=shape)
    kind = steps.COMPUTE_DTYPES[dtype]
    x, caches, weights, lengths = _arguments(shape, kind, form)
    arguments = (x, caches(), weights, lengths)
    started = time.perf_counter()
    traced = jax.jit(step, donate_argnums=1).trace(*arguments)
    after_trace = time.perf_counter()
    lowered = traced.lower()
    after_lower = time.perf_counter()
    lowered.compile()
    after_compile = time.perf_counter()
    timings = _call_timings(shape, kind, form)
    call, row = timings["call"], timings["call in a row"]
    return {
        "dtype": dtype,
        "form": form,
        "layers": shape.L,
        "arrays": len(jax.tree.leaves(arguments)),
        "trace s": after_trace - started,
        "lower s": after_lower - after_trace,
        "compile s": after_compile - after_lower,
        "sum s": after_compile - started,
        "call ms": call.median * 1e3,
        "/ takes": call.ratio_to(timings["takes"]),
        "/ returns": call.ratio_to(timings["returns"]),
        "wall ms": timings["wall"].median * 1e3,
        "in a row ms": row.median / _IN_A_ROW * 1e3,
        "/ takes (row)": row.ratio_to(timings["takes in a row"]),
        "/ returns (row)": row.ratio_to(timings["returns in a row"]),
        "step ms": timings["step"].median * 1e3,
    }


def _call_timings(shape: shapes.Shape, kind: str, form: str) -> dict[str, Timing]:
    """Calls of the step and of its peers in turns, and whole steps."""
    x, caches, weights, lengths = _arguments(shape, kind, form)
    step = jax.jit(functools.partial(_step, shape=shape), donate_argnums=1)
    # Without `keep_unused` the empty functions would not be given the arrays at all.
    takes = jax.jit(_take, keep_unused=True)
    returns = jax.jit(_take_and_return, donate_argnums=1, keep_unused=True)
    before = _Calls(step, x, caches(), weights, lengths)
    candidates = [Candidate("step", before.complete)]
    for name, function in (("call", step), ("takes", takes), ("returns", returns)):
        calls = _Calls(function, x, caches(), weights, lengths)
        in_a_row = functools.partial(calls.call, _IN_A_ROW)
        candidates += [
            _after_step(name, calls, calls.call, before, time.thread_time),
            _after_step(f"{name} in a row", calls, in_a_row, before, time.thread_time),
        ]
        if function is step:
            candidates.append(_after_step("wall", calls, calls.call, before, time.perf_counter))
    return measure_in_turns(candidates, _TURNS.value, _RUNS.value)


def _arguments(
    shape: shapes.Shape, kind: str, form: str
) -> tuple[jax.Array, Callable[[], Any], Any, jax.Array]:
    """The first token, what makes caches, weights and lengths of a step."""
    weights = shapes.random_weights(shape, kind)
    weights = weights_as_bits(stack_layers(weights) if form == STACKED else weights)
    x = jnp.ones((_BATCH.value, 1, shape.H), kind)

    def caches() -> Any:
        made = shapes.random_caches(
            shape, _BATCH.value, _CONTEXT.value, kind, stacked=form != LISTS
        )
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


@dataclasses.dataclass
class _Calls:
    """Calls of a function on its own last caches."""

    function: Callable[..., Any]
    x: jax.Array
    caches: Any
    weights: Any
    lengths: jax.Array

    def call(self, times: int = 1) -> None:
        """Calls it, and does not wait."""
        for _ in range(times):
            _, updated = self.function(self.x, self.caches, self.weights, self.lengths)
            self.caches = self.caches if updated is None else updated

    def wait(self) -> None:
        """Waits until the last call has run."""
        jax.block_until_ready(self.caches)

    def complete(self) -> None:
        """Calls it and waits."""
        self.call()
        self.wait()


def _after_step(
    name: str,
    calls: _Calls,
    run: Callable[[], None],
    before: _Calls,
    clock: Callable[[], float],
) -> Candidate:
    """`run` of `calls` by a clock, each time after a whole step of `before`."""

    def finish() -> None:
        calls.wait()
        before.complete()

    return Candidate(name, run, finish, clock)


if __name__ == "__main__":
    app.run(main)
