"""When the processing elements of a core's Tensor Engine are free.

The array of 128 x 128 elements can be cut into tiles of 32, 64 or 128 rows and columns. Matrix
products on different tiles run in parallel (NKI API reference, nisa.nc_matmul: tiling mode). How
they are issued is not documented: here stationary tiles load in program order, one at a time, and a
product waits for those before it on its own tile only.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from jax_tkg.simulator.timing.waits import Free

_BLOCK = 32
"""Rows and columns of the smallest tile."""


class Tile(NamedTuple):
    """A part of the array: first row and column, and how many of each."""

    row: int
    column: int
    rows: int
    columns: int


WHOLE = Tile(0, 0, 128, 128)


class TensorArray:
    """The array of one core while its instructions are scheduled, in program order.

    Attributes:
      loads: when the next stationary tile may load.
    """

    def __init__(self) -> None:
        self.loads: Free = (0.0, None)
        self._free: dict[tuple[int, int], Free] = {}
        # Times in which any element was busy, apart from each other and in order.
        self._busy: list[tuple[float, float]] = []

    def free(self, tile: Tile) -> Free:
        """When all elements of a tile are free."""
        blocks = (self._free.get(block, (0.0, None)) for block in _blocks(tile))
        return max(blocks, key=lambda found: found[0])

    def occupy(self, tile: Tile, start: float, end: float, wait: int) -> None:
        """Has an event use a tile until its `Wait` of that number."""
        for block in _blocks(tile):
            self._free[block] = (end, wait)
        if self._busy:
            # A pause of one tile that another one uses is too short to count: it is no longer than
            # a result needs to be seen.
            start = max(start, self._busy[-1][1])
        if end > start:
            self._busy.append((start, end))

    def busy_between(self, first: float, last: float) -> float:
        """For how long any element is busy between two times."""
        total = 0.0
        for start, end in reversed(self._busy):
            if end <= first:
                break
            total += max(0.0, min(end, last) - max(start, first))
        return total


def _blocks(tile: Tile) -> itertools.product[tuple[int, int]]:
    rows = range(tile.row, tile.row + tile.rows, _BLOCK)
    columns = range(tile.column, tile.column + tile.columns, _BLOCK)
    return itertools.product(rows, columns)
