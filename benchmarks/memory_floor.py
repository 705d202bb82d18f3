"""How fast this machine reads memory: no step can take less than its bytes over this rate.

The rate of a virtual machine drifts with what else its host does, by a factor of two within
minutes. So a step is compared with a reader that took its turn with it, like any other peer; the
reader's fastest turn of a whole run is reported as well.
"""

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


def floor(reader: Timing, step_bytes: int) -> Timing:
    """What reading the bytes of a step would have taken in each of the reader's turns."""
    scale = step_bytes / BUFFER_BYTES
    return Timing(tuple(turn * scale for turn in reader.turns), reader.shortest * scale)


def bandwidths(readers: Sequence[Timing]) -> list[float]:
    """Bytes per second of every turn."""
    return [BUFFER_BYTES / turn for reader in readers for turn in reader.turns]
