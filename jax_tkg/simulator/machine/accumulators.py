"""The reduction registers of an engine."""

import numpy as np

from jax_tkg.hardware import PARTITIONS


class Accumulators:
    """The reduction registers of one engine, one per partition.

    Attributes:
      values: float32, [partitions]; NaN before an instruction sets them.
      is_set: whether they hold what an instruction put there, [partitions].
    """

    def __init__(self) -> None:
        self.values = np.full(PARTITIONS, np.nan, np.float32)
        self.is_set = np.zeros(PARTITIONS, bool)

    def put(self, lanes: slice, values: np.ndarray | float) -> None:
        """Sets the registers of some partitions."""
        self.values[lanes] = values
        self.is_set[lanes] = True

    def forget(self, lanes: slice) -> None:
        """Leaves the registers of some partitions undefined."""
        self.is_set[lanes] = False
