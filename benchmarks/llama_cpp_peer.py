"""llama.cpp on the same GGUF file, as a peer: it computes on the quantized weights themselves."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.measuring import Candidate

NAME = "llama.cpp"

CACHE_MULTIPLE = 256
"""Tokens, of which a sequence's cache has a multiple."""


def missing() -> str | None:
    """What is not installed, or None."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed"
    return None


def candidate(path: str | os.PathLike[str], length: int) -> Candidate:
    """One token of one sequence with `length` tokens in its cache, again and again."""
    import llama_cpp

    threads = len(os.sched_getaffinity(0))
    model = llama_cpp.Llama(
        str(path), n_ctx=length + 1, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    model.eval([1] * length)

    def run() -> None:
        # What stands in the cache past this count is dropped by the next call.
        model.n_tokens = length
        model.eval([1])

    return Candidate(NAME, run)


def weight_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of the weights, all of which are read for one token: nearly the whole file."""
    return os.path.getsize(path)


@dataclasses.dataclass
class _Served:
    """A request that has a slot.

    Attributes:
      tokens: of the prompt, and of the answer so far.
      end: how many tokens there are when the answer is complete.
      read: how many are in the cache.
    """

    tokens: list[int]
    end: int
    read: int = 0


class ParallelSlots:
    """Requests in parallel slots, answered greedily: one `llama_decode` a step, for all slots.

    A step has the last token of each slot and, in the order of arrival, tokens of prompts that are
    being read, as llama.cpp's own server makes its steps.

    Args:
      path: GGUF file.
      slots: sequences at once.
      capacity: tokens of the longest sequence.
      prompt_tokens: most tokens of prompts in a step.
      unified: whether the sequences share one cache, all of which each of them looks at, masked;
        else each has its own, and tokens of a step that differ in number are computed apart.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        slots: int,
        capacity: int,
        prompt_tokens: int,
        unified: bool,
    ):
        import llama_cpp

        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self._api = llama_cpp
        self._slots, self._prompt_tokens = slots, prompt_tokens
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        # llama.cpp rounds each sequence's part.
        options.n_ctx = slots * -(-capacity // CACHE_MULTIPLE) * CACHE_MULTIPLE
        options.n_batch = options.n_ubatch = slots + prompt_tokens
        options.n_seq_max = slots
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        options.kv_unified = unified
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"{NAME}: expected a context of {slots} x {capacity} tokens")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocabulary_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(slots + prompt_tokens, 0, 1)

    def serve(self, requests: Sequence[tuple[Sequence[int], int]]) -> list[list[int]]:
        """The answers to (prompt, tokens of its answer), which no stop token ends."""
        waiting = collections.deque(
            _Served(list(prompt), len(prompt) + most) for prompt, most in requests
        )
        every, served = list(waiting), dict[int, _Served]()
        memory = self._api.llama_get_memory(self._context)
        while waiting or served:
            for slot in range(self._slots):
                if slot not in served and waiting:
                    self._api.llama_memory_seq_rm(memory, slot, -1, -1)
                    served[slot] = waiting.popleft()
            for slot, token in self._step(served).items():
                served[slot].tokens.append(token)
                if len(served[slot].tokens) == served[slot].end:
                    del served[slot]
        return [one.tokens[len(prompt) :] for one, (prompt, _) in zip(every, requests, strict=True)]

    def _step(self, served: dict[int, _Served]) -> dict[int, int]:
        """Reads tokens of all slots, and returns the next one of each that has read all of its."""
        batch, row, left = self._batch, 0, self._prompt_tokens
        rows: dict[int, int] = {}
        for slot, one in served.items():
            unread = len(one.tokens) - one.read
            count = unread if unread == 1 else min(unread, left)
            left -= count if unread > 1 else 0
            for position in range(one.read, one.read + count):
                batch.token[row], batch.pos[row] = one.tokens[position], position
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot
                batch.logits[row] = position + 1 == len(one.tokens)
                if batch.logits[row]:
                    rows[slot] = row
                row += 1
            one.read += count
        batch.n_tokens = row
        failed = self._api.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"{NAME}: expected llama_decode to return 0, got {failed}")
        return {slot: self._likeliest(row) for slot, row in rows.items()}

    def _likeliest(self, row: int) -> int:
        logits: Any = self._api.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary_size,)).argmax())
