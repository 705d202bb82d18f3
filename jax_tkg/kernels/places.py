"""Bytes of SBUF that small tensors which DMAs load or store have to themselves."""

import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS, STORED_TURNS, ceiling_divide
from .sizes import bytes_of


class Places(NKIObject):
    """`row_bytes` per partition for the tensors of a layer, of `turns` layers in turn.

    The compiler places other tensors, perhaps where bytes have just become free. A vector would
    then wait for what used them last, and so would the weights behind it, for one engine triggers
    all loads, in order. What is stored waits in the DMA engines behind the weights of the next
    layer, and whatever would lie there next waits for that. Here a tensor waits for that of `turns`
    layers before. Where `row_bytes` do not suffice, the compiler chooses.
    """

    def __init__(self, row_bytes, turns):
        self.row_bytes = row_bytes
        self.turns = turns
        self.turn = 0
        self.taken = 0
        self.tile = None
        if row_bytes > 0:
            self.tile = nl.ndarray((PARTITIONS, turns * row_bytes), dtype=nl.uint8, buffer=nl.sbuf)

    def restart(self):
        """The next tensor is the first of a layer."""
        self.turn = (self.turn + 1) % self.turns
        self.taken = 0

    def take(self, rows, elements, dtype, partition=0):
        """A tile [rows, elements] from a partition on, which holds anything until it is written."""
        item = bytes_of(dtype)
        first = ceiling_divide(self.taken, 4) * 4
        if first + elements * item > self.row_bytes:
            whole = nl.ndarray((partition + rows, elements), dtype=dtype, buffer=nl.sbuf)
            return whole[partition : partition + rows, :]
        self.taken = first + elements * item
        start = (self.turn * self.row_bytes + first) // item
        whole = self.tile.view(dtype)
        return whole[partition : partition + rows, start : start + elements]


def launch_places(row_bytes):
    """`Places` of `row_bytes` per partition together: of what a layer loads, and what it stores."""
    stored = row_bytes // 20 * 4
    loaded = row_bytes - STORED_TURNS * stored
    return (Places(loaded, 1), Places(stored, STORED_TURNS))
