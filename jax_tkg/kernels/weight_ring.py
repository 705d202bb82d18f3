"""The SBUF buffers through which weights and caches stream.

They are allocated once and taken in turn, so that the next weights load while these are multiplied,
across stages and layers. So SBUF use does not depend on the model's size.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS


class WeightRing(NKIObject):
    """`count` buffers of `slot_bytes` per partition each."""

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
