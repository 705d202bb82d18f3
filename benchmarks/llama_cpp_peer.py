"""llama.cpp on the same GGUF file, as a peer: it computes on the quantized weights themselves."""

from __future__ import annotations

import importlib.util
import os

from benchmarks.measuring import Candidate

NAME = "llama.cpp"


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
