"""Processor time of the experts of one layer on the CPU, in several forms for XLA.

python -m benchmarks.expert_forms_cpu [--tokens 256]

128 experts with weights [256, 96] and [96, 256], of which each token chooses 8 at random: as
`jax.lax.ragged_dot` of the sorted pairs of a token and an expert, and as
`jax_tkg.cpu.expert_groups.run_in_groups` with blocks of several sizes. All take turns; the clock is
processor time of all threads.
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

from benchmarks import report
from benchmarks.measuring import Candidate, measure_in_turns
from jax_tkg.cpu import expert_groups

EXPERTS, CHOSEN, HIDDEN, INNER = 128, 8, 256, 96
RAGGED = "ragged_dot"

_TOKENS = flags.DEFINE_multi_integer("tokens", [16, 256], "Tokens.", lower_bound=1)
_SIZES = flags.DEFINE_multi_integer("sizes", [1, 2, 4, 8, 16, 32], "Tokens of a block.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the weights and activations.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each candidate.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    rows = []
    for tokens in dict.fromkeys(_TOKENS.value):
        arguments = _arguments(tokens)
        forms: dict[str, Callable[..., Any]] = {RAGGED: _ragged}
        for size in _SIZES.value:
            forms[f"blocks of {size}"] = functools.partial(_grouped, size)
        timings = measure_in_turns(
            [_candidate(name, form, arguments) for name, form in forms.items()], _TURNS.value, 3
        )
        rows.append({"tokens": tokens, **{n: t.median * 1e3 for n, t in timings.items()}})
    report.print_table(rows)
    heading = "Experts of one layer: milliseconds of processor time, medians"
    print("", report.write_markdown("expert_forms_cpu", heading, rows), sep="\n")


def _arguments(tokens: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((EXPERTS, HIDDEN, INNER),) * 2 + ((EXPERTS, INNER, HIDDEN), (tokens, HIDDEN))
    arrays = [jnp.asarray(rng.normal(size=s, scale=s[-1] ** -0.5), _DTYPE.value) for s in shapes]
    chosen = np.stack([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(tokens)])
    shares = rng.uniform(0.1, 1, chosen.shape).astype(np.float32)
    return (*arrays, jnp.asarray(chosen, jnp.int32), jnp.asarray(shares))


def _candidate(name: str, form: Callable[..., Any], arguments: tuple[jax.Array, ...]) -> Candidate:
    run = jax.jit(form)
    return Candidate(name, lambda: run(*arguments).block_until_ready(), clock=time.process_time)


def _ragged(
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
) -> jax.Array:
    expert = chosen.reshape(-1)
    order = jnp.argsort(expert, stable=True)
    counts = jnp.zeros((EXPERTS,), jnp.int32).at[expert].add(1)
    token = order // CHOSEN
    taken = rows[token]
    hidden = jax.nn.silu(jax.lax.ragged_dot(taken, gate, counts))
    hidden = hidden * jax.lax.ragged_dot(taken, up, counts)
    results = jax.lax.ragged_dot(hidden, down, counts) * shares.reshape(-1)[order][:, None]
    return jnp.zeros(rows.shape, jnp.float32).at[token].add(results.astype(jnp.float32))


def _grouped(
    size: int,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
) -> jax.Array:
    def run(tokens: jax.Array, number: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(tokens @ gate[number]) * (tokens @ up[number])
        return (hidden @ down[number]).astype(jnp.float32)

    return expert_groups.run_in_groups(size, run, rows, chosen, shares, EXPERTS, ())


if __name__ == "__main__":
    app.run(main)
