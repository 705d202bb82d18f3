"""The SBUF buffers through which weights and caches stream.

They are allocated once and taken in turn, so that the next weights load while these are multiplied,
across stages and layers. So SBUF use does not depend on the model's size.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS, ceiling_divide
from .sizes import bytes_of


class WeightRing(NKIObject):
    """`count` buffers of `slot_bytes` per partition each.

    What is left in them is finite as bfloat16 and as float32: that of these dtypes or of a float8
    is, and two of them together; whoever loads float32 beside bfloat16 clears it after use, for any
    16 bits of it may be the bits of a NaN. So a load that is skipped leaves numbers.
    """

    def __init__(self, count, slot_bytes):
        self.slot_bytes = slot_bytes
        self.following = 0
        slots = []
        for _ in range(count):
            slots.append(nl.ndarray((PARTITIONS, slot_bytes), dtype=nl.uint8, buffer=nl.sbuf))
        self.slots = slots

    def restart(self):
        """The next buffer is the first."""
        self.following = 0

    def clear(self):
        """Writes zeros, so that products of what a skipped load leaves read written memory."""
        for slot in self.slots:
            nisa.memset(dst=slot.view(nl.uint32), value=0)

    def take(self, dtype):
        """The next buffer, as [128, n] of `dtype`."""
        slot = self.slots[self.following]
        self.following = (self.following + 1) % len(self.slots)
        return slot.view(dtype)

    def take_numbers(self, dtype, count):
        """[128, count]: the next buffer's first elements, which are finite numbers."""
        size = ceiling_divide(count * bytes_of(dtype), 4)
        slot = self.slots[self.following]
        if not leaves_numbers(dtype):
            nisa.memset(dst=slot.view(nl.uint32)[:, 0:size], value=0, engine=nisa.engine.gpsimd)
        whole = self.take(dtype)
        return whole[:, 0:count]


def leaves_numbers(dtype):
    """Whether what the ring's buffers hold is finite as `dtype`."""
    return dtype == nl.bfloat16 or dtype == nl.float32
