"""Prompt tokens per second on this machine's CPU, beside transformers.

python -m benchmarks.prefill_cpu [--dtypes bf16] [--lengths 512] [--operation]

Reading a prompt of SmolLM2, from token ids to the first token of the answer, with everything
compiled. All candidates take turns. `--operation` adds what `transformer_tkg` takes for the same
prompt, 8 tokens a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import report, steps, torch_peer
from benchmarks.measuring import Candidate, Timing, measure_in_turns
from jax_tkg.models import default_model as find
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.decode import Decoder
from jax_tkg.models.packing import PackedModel

OURS, OPERATION = "ours", "operation"

_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32", "bf16"], ["f32", "bf16"], "Dtypes.")
_LENGTHS = flags.DEFINE_multi_integer("lengths", [512, 2048], "Prompt tokens.", lower_bound=2)
_OPERATION = flags.DEFINE_bool("operation", False, "Whether transformer_tkg reads prompts too.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each candidate.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    absent = torch_peer.missing()
    if absent:
        print(f"{torch_peer.NAME}: left out, {absent}")
    path = find.default_model()
    rows = []
    for dtype in dict.fromkeys(_DTYPES.value):
        model = steps.loaded(open_checkpoint(path), dtype)
        peer = None if absent else torch_peer.pretrained_model(path, dtype)
        for length in dict.fromkeys(_LENGTHS.value):
            print(f"measuring {dtype}, {length} tokens ...", flush=True)
            timings = measure_in_turns(_candidates(model, peer, length), _TURNS.value, runs=1)
            rows.append(_row(dtype, length, timings))
            heading = "Prompt tokens per second of SmolLM2, medians"
            paths = [
                report.write_markdown("prefill_cpu", heading, rows),
                report.write_json("prefill_cpu", {"rows": rows}),
            ]
    report.print_table(rows)
    print("", *paths, sep="\n")


def _candidates(model: PackedModel, peer: Any, length: int) -> list[Candidate]:
    vocabulary = model.config.vocabulary_size
    prompt = np.random.default_rng(0).integers(0, vocabulary, length).tolist()
    candidates = [_ours(OURS, Decoder(model, length + 1), prompt)]
    if _OPERATION.value:
        decoder = Decoder(model, length + 1, prefill=False)
        candidates.append(_ours(OPERATION, decoder, prompt))
    if peer is not None:
        candidates.append(torch_peer.prompt_candidate(peer, prompt))
    return candidates


def _ours(name: str, decoder: Decoder, prompt: Sequence[int]) -> Candidate:
    return Candidate(name, lambda: jax.block_until_ready(decoder.start([prompt])))


def _row(dtype: str, length: int, timings: dict[str, Timing]) -> dict[str, Any]:
    mine = timings[OURS]
    row: dict[str, Any] = {"weights": dtype, "tokens": length, OURS: length / mine.median}
    for name in (OPERATION, torch_peer.NAME):
        timing = timings.get(name)
        row[name] = None if timing is None else length / timing.median
        row[f"{name} / ours"] = None if timing is None else timing.ratio_to(mine)
    return row


if __name__ == "__main__":
    app.run(main)
