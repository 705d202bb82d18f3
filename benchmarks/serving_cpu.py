"""Answer tokens per second of many requests on this machine's CPU, beside its peers.

python -m benchmarks.serving_cpu [--dtypes bf16] [--requests 32] [--slots 8]

Requests of mixed lengths to SmolLM2, all there at the start, greedy, each with an answer of its own
length that no stop token ends. All candidates take turns:

- ours: `jax_tkg.serving.RunningBatch`, everything compiled;
- ours, blocks: the same with caches in blocks of 256 tokens, as many as the flat caches hold;
- transformers: its continuous batching, with as many requests at once;
- transformers, padded: its `generate`, on batches of as many requests in order of arrival, padded
  on the left, each run until its longest answer ends;
- llama.cpp: as many parallel slots, one `llama_decode` for all of them a step, on the 4-bit weights
  of the file: with a cache for each slot, and with one that they share ("unified").

A step reads all weights once. As those of llama.cpp are smaller, what compares is the last column:
answer tokens per second, times the bytes of the weights.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks import llama_cpp_peer, report, shapes, steps, torch_peer
from benchmarks.measuring import Candidate, Timing, measure_in_turns
from jax_tkg.caches import context_bucket
from jax_tkg.models import default_model as find
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.packing import PackedModel
from jax_tkg.serving import Request, RunningBatch
from jax_tkg.serving.running_batch import PROMPT_TOKENS

OURS, BLOCKS, PADDED = "ours", "ours, blocks", f"{torch_peer.NAME}, padded"
LLAMA_CPP = {False: llama_cpp_peer.NAME, True: f"{llama_cpp_peer.NAME}, unified"}
"""By whether the slots share one cache."""

_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32", "bf16"], ["f32", "bf16"], "Dtypes.")
_REQUESTS = flags.DEFINE_integer("requests", 32, "How many requests.", lower_bound=1)
_SLOTS = flags.DEFINE_integer("slots", 8, "Requests answered at once.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 3, "Turns of each candidate.", lower_bound=1)
_LONGEST_PROMPT = flags.DEFINE_integer("longest_prompt", 512, "Tokens.", lower_bound=16)
_LONGEST_ANSWER = flags.DEFINE_integer("longest_answer", 128, "Tokens.", lower_bound=16)


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    absent = {peer.NAME: peer.missing() for peer in (torch_peer, llama_cpp_peer)}
    for name, reason in absent.items():
        if reason:
            print(f"{name}: left out, {reason}")
    path = find.default_model()
    rows = []
    for dtype in dict.fromkeys(_DTYPES.value):
        model = steps.loaded(open_checkpoint(path), dtype)
        requests = _requests(model.config.vocabulary_size)
        print(f"measuring {dtype} ...", flush=True)
        candidates = [_ours(OURS, model, requests), _ours(BLOCKS, model, requests)]
        weights = dict.fromkeys((OURS, BLOCKS), (dtype, _weight_bytes(model)))
        if not absent[torch_peer.NAME]:
            # Continuous batching changes how a model attends, so each has its own.
            for make in (_padded, _continuous):
                theirs = torch_peer.pretrained_model(path, dtype)
                candidates.append(make(theirs, requests))
                weights[candidates[-1].name] = (dtype, torch_peer.weight_bytes(theirs))
        if not absent[llama_cpp_peer.NAME]:
            for unified, name in LLAMA_CPP.items():
                candidates.append(_llama_cpp(path, unified, requests))
                weights[name] = ("the file's", llama_cpp_peer.weight_bytes(path))
        timings = measure_in_turns(candidates, _TURNS.value, runs=1)
        rows += [_row(name, *weights[name], timing, requests) for name, timing in timings.items()]
        heading = f"{_REQUESTS.value} requests on {_SLOTS.value} slots, SmolLM2, medians"
        paths = [
            report.write_markdown("serving_cpu", heading, rows),
            report.write_json("serving_cpu", {"rows": rows}),
        ]
    report.print_table(rows)
    print("", *paths, sep="\n")


def _requests(vocabulary: int) -> list[Request]:
    """Prompts of 16 tokens to the longest, and answers likewise, evenly in the logarithm."""
    rng = np.random.default_rng(0)

    def lengths(longest: int) -> list[int]:
        return (
            np.exp(rng.uniform(np.log(16), np.log(longest), _REQUESTS.value)).astype(int).tolist()
        )

    pairs = zip(lengths(_LONGEST_PROMPT.value), lengths(_LONGEST_ANSWER.value), strict=True)
    return [
        Request(rng.integers(0, vocabulary, prompt).tolist(), max_tokens=answer, stop_tokens=())
        for prompt, answer in pairs
    ]


def _longest(requests: Sequence[Request]) -> int:
    """Tokens of the longest prompt and answer together."""
    return max(len(request.prompt) + request.max_tokens for request in requests)


def _weight_bytes(model: PackedModel) -> int:
    """Bytes that a step reads: of the embedding, if that is not the head too, a few rows only."""
    return shapes.nbytes([model.parameters.layers, model.parameters.head])


def _ours(name: str, model: PackedModel, requests: Sequence[Request]) -> Candidate:
    capacity = context_bucket(_longest(requests), model.config.context_length)
    options: dict[str, Any] = {}
    if name == BLOCKS:
        block_len = min(256, capacity)
        options = {"blocks": _SLOTS.value * capacity // block_len, "block_len": block_len}
    batch = RunningBatch(model, _SLOTS.value, capacity, **options)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        for executable in batch.prepare(threads):
            executable.result()

    def run() -> None:
        for request in requests:
            batch.submit(request)
        tokens = 0
        while not batch.idle:
            tokens += len(batch.step())
        assert tokens == _answer_tokens(requests)

    return Candidate(name, run)


def _continuous(model: Any, requests: Sequence[Request]) -> Candidate:
    import transformers

    settings = transformers.ContinuousBatchingConfig(
        max_requests_per_batch=_SLOTS.value,
        # Room for as many of the longest, and prompts in pieces as ours are read.
        num_blocks=_SLOTS.value * -(-_longest(requests) // 256),
        max_batch_tokens=PROMPT_TOKENS + _SLOTS.value,
        allow_block_sharing=False,
    )
    greedy = transformers.GenerationConfig(do_sample=False, eos_token_id=-1)

    def run() -> None:
        with model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=dataclasses.replace(settings)
        ) as manager:
            for request in requests:
                manager.add_request(
                    list(request.prompt), max_new_tokens=request.max_tokens, eos_token_id=-1
                )
            tokens = finished = 0
            while finished < len(requests):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    assert result.error is None, result.error
                    finished += 1
                    tokens += len(result.generated_tokens)
                assert result is not None or manager.is_running()
        assert tokens == _answer_tokens(requests), tokens

    return Candidate(torch_peer.NAME, run)


def _padded(model: Any, requests: Sequence[Request]) -> Candidate:
    import torch
    import transformers

    slots = _SLOTS.value
    batches = [requests[start : start + slots] for start in range(0, len(requests), slots)]

    def run() -> None:
        for batch in batches:
            longest = max(len(request.prompt) for request in batch)
            pads = [longest - len(request.prompt) for request in batch]
            tokens = [[0] * pad + list(one.prompt) for pad, one in zip(pads, batch, strict=True)]
            mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
            answer = max(request.max_tokens for request in batch)
            settings = transformers.GenerationConfig(
                do_sample=False, max_new_tokens=answer, min_new_tokens=answer, pad_token_id=0
            )
            with torch.inference_mode():
                model.generate(
                    torch.tensor(tokens),
                    attention_mask=torch.tensor(mask),
                    generation_config=settings,
                )

    return Candidate(PADDED, run)


def _llama_cpp(path: pathlib.Path, unified: bool, requests: Sequence[Request]) -> Candidate:
    slots = llama_cpp_peer.ParallelSlots(
        path, _SLOTS.value, _longest(requests), PROMPT_TOKENS, unified
    )
    pairs = [(one.prompt, one.max_tokens) for one in requests]

    def run() -> None:
        assert sum(map(len, slots.serve(pairs))) == _answer_tokens(requests)

    return Candidate(LLAMA_CPP[unified], run)


def _answer_tokens(requests: Sequence[Request]) -> int:
    return sum(request.max_tokens for request in requests)


def _row(
    name: str, weights: str, weight_bytes: int, timing: Timing, requests: Sequence[Request]
) -> dict[str, Any]:
    rate = _answer_tokens(requests) / timing.median
    return {
        "weights": weights,
        "": name,
        "answer tokens/s": rate,
        "prompt tokens/s beside": sum(len(one.prompt) for one in requests) / timing.median,
        "requests/minute": 60 * len(requests) / timing.median,
        "MB of weights": round(weight_bytes / 1e6),
        "answer tokens/s x GB": rate * weight_bytes / 1e9,
    }


if __name__ == "__main__":
    app.run(main)
