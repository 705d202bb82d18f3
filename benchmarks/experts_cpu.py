"""Milliseconds per decode step of a small model with experts, beside its floor and transformers.

python -m benchmarks.experts_cpu [--dtypes bf16] [--batches 1]

The model has the proportions of Qwen3-30B-A3B: an eighth of its layers, hidden size, heads, expert
features and vocabulary, with 128 experts of which a token chooses 8. Weights are transformers'
random ones, and both libraries run the same. Every step has other tokens, so that it chooses other
experts; what it must read are the experts that it chooses (of several tokens as many as random
choices differ), all other weights and the caches, and the floor is the time that memory takes to
deliver them. All candidates take turns.
"""

from __future__ import annotations

import itertools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import memory_floor, report, shapes, steps, torch_peer
from benchmarks.measuring import Candidate, Timing, measure_in_turns
from jax_tkg.models import safetensors
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.sampling import likeliest_token

OURS = "jax_tkg"
EXPERT_OPERANDS = ("W_gates", "W_ups", "W_downs")

_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32", "bf16"], ["f32", "bf16"], "Dtypes.")
_BATCHES = flags.DEFINE_multi_integer("batches", [1, 8], "Sequences.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", 128, "S_ctx and S_max.", lower_bound=2)
_TURNS = flags.DEFINE_integer("turns", 7, "Turns of each candidate.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 30, "Steps per turn.", lower_bound=1)

_SIZES = {
    "num_hidden_layers": 48 // 8,
    "hidden_size": 2048 // 8,
    "intermediate_size": 6144 // 8,
    "moe_intermediate_size": 768 // 8,
    "num_attention_heads": 32 // 8,
    # Of the four there is one at least.
    "num_key_value_heads": 1,
    "head_dim": 128,
    "vocab_size": 151936 // 8,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    if absent := torch_peer.missing():
        raise app.UsageError(f"the model is made by transformers: {absent}")
    rows = []
    reader = memory_floor.MemoryReader()
    for dtype in dict.fromkeys(_DTYPES.value):
        model = torch_peer.random_experts(_SIZES, dtype)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            packed = safetensors.load(pathlib.Path(folder), steps.COMPUTE_DTYPES[dtype])
        forward = ModelForward(packed, capacity=_CONTEXT.value)
        for batch in dict.fromkeys(_BATCHES.value):
            print(f"measuring {dtype}, {batch} sequences ...", flush=True)
            tokens = np.random.default_rng(0).integers(0, _SIZES["vocab_size"], (64, batch))
            candidates = [
                reader.candidate(),
                _ours(forward, tokens),
                *torch_peer.experts_candidates(model, tokens, _CONTEXT.value - 1),
            ]
            timings = measure_in_turns(candidates, _TURNS.value, _RUNS.value)
            rows.append(_row(dtype, batch, step_bytes(forward, batch), timings))
            heading = "A small model with experts: milliseconds per step, medians"
            paths = [
                report.write_markdown("experts_cpu", heading, rows),
                report.write_json("experts_cpu", {"rows": rows}),
            ]
    report.print_table(rows)
    print("", *paths, sep="\n")


def step_bytes(forward: ModelForward, batch: int) -> int:
    """What a step must read."""
    weights = forward.parameters.layers.arguments()
    experts, other = (
        sum(shapes.nbytes(w) for name, w in weights.items() if (name in EXPERT_OPERANDS) is of)
        for of in (True, False)
    )
    config = forward.model.config.experts
    assert config is not None
    missed = (1 - config.per_token / config.count) ** batch
    head = shapes.nbytes(forward.parameters.vocabulary.head)
    return round(experts * (1 - missed)) + other + head + shapes.nbytes(forward.caches(batch))


def _ours(forward: ModelForward, tokens: np.ndarray) -> Candidate:
    batch, context = tokens.shape[1], _CONTEXT.value
    lengths = jnp.full((batch,), context - 1)

    def step(parameters: Any, caches: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        hidden, *caches = forward.hidden(
            parameters, tokens[:, None], lengths, jnp.ones_like(lengths), *caches, context
        )
        return likeliest_token(forward.logits(parameters, hidden)), tuple(caches)

    caches = forward.caches(batch)
    compiled = jax.jit(step, donate_argnums=1)
    held = [caches]
    given = itertools.cycle([jnp.asarray(row, jnp.int32) for row in tokens])

    def run() -> None:
        result, held[0] = compiled(forward.parameters, held[0], next(given))
        result.block_until_ready()

    return Candidate(OURS, run)


def _row(dtype: str, batch: int, size: int, timings: dict[str, Timing]) -> dict[str, Any]:
    mine = timings[OURS]
    floor = memory_floor.floor(timings[memory_floor.READER], size)
    row: dict[str, Any] = {
        "weights": dtype,
        "B": batch,
        "MB": size / 1e6,
        "ms": mine.median * 1e3,
        "floor": floor.median * 1e3,
        "x floor": mine.ratio_to(floor),
        "least": min(mine.ratios_to(floor)),
        "most": max(mine.ratios_to(floor)),
    }
    for name, timing in timings.items():
        if name not in (OURS, memory_floor.READER):
            row[f"{name} / ours"] = timing.ratio_to(mine)
    return row


if __name__ == "__main__":
    app.run(main)
