"""Times that are easy to work out by hand, of the instructions of `tests.simulator.streams`."""

from __future__ import annotations

# Easy numbers: a Vector or Scalar Engine copy of `streams` takes 500 ns, its result is seen after
# 100 cycles (104.17 or 83.33 ns), another engine hears of it 50 ns later.
VECTOR, SCALAR, SIGNAL = 100 / 0.96, 100 / 1.2, 50.0

# A DMA's data moves 1300 ns after its trigger, which takes 80 ns of the Sync or Scalar Engine and,
# with the descriptors, 600 ns of the GpSimd Engine.
DMA_START, TRIGGER, SOFTWARE, GENERATOR = 1300.0, 80.0, 600.0, 600.0


def moving(row: int, rows: int = 8, rate: float = 362.5 / 16) -> float:
    """Time of a DMA engine for rows that are one run in HBM."""
    return rows * row / rate + 20
