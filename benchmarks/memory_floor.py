"""How fast this machine reads memory: no step can take less than its bytes over this rate."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np

from benchmarks.measuring import Candidate, Timing

READER = "memory"
"""Name of the candidate that reads memory."""

BUFFER_BYTES = 1 << 30
"""Read per run: far more than the caches of a processor hold."""


class MemoryReader:
    """Reads a large buffer with every core, doing next to nothing with what it reads.

    The buffer is OR-ed together as 64-bit integers, which NumPy does in vector registers and
    without the interpreter's lock; sums of floats and matrix-vector products came out slower.
    """

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._pool = concurrent.futures.ThreadPoolExecutor(self._cores)
        # Ones, because untouched zero pages would all be the same page of memory.
        self._parts = np.array_split(np.ones(BUFFER_BYTES // 8, np.int64), self._cores)

    def candidate(self) -> Candidate:
        """Reads the buffer once."""
        return Candidate(READER, lambda: list(self._pool.map(np.bitwise_or.reduce, self._parts)))


def bandwidth(timings: Sequence[Timing]) -> float:
    """Bytes per second of the fastest turn: interference only ever makes a reader slower."""
    return BUFFER_BYTES / min(min(timing.turns) for timing in timings)
