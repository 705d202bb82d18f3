"""Dependencies between the instructions of one core, through memory and through registers.

Finds read after write, write after read and write after write between the bytes that the recorded
accesses touch. Accesses are compared by partition, by byte extent and by period. Two interleaved
strided accesses are independent if their strides show it; otherwise they count as dependent.

Each memory is divided into buckets of bytes, so the cost grows with the number of bytes touched,
not with the number of earlier instructions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from jax_tkg.simulator.machine.record import Access, Instruction

Key = tuple[str, int, int | None, int | None]

READ_AFTER_WRITE = "data"
WRITE_AFTER_READ = "reuse"
WRITE_AFTER_WRITE = "overwrite"
EXPLICIT = "explicit"

# Strongest first: the kind that is reported if two instructions depend in several ways.
_STRENGTH = {READ_AFTER_WRITE: 0, WRITE_AFTER_WRITE: 1, WRITE_AFTER_READ: 2, EXPLICIT: 3}

UNORDERED = "dma"
"""A queue whose instructions do not run in order."""

_ON_CHIP_BUCKET = 1024
_HBM_BUCKETS = 128


@dataclasses.dataclass(slots=True, frozen=True)
class Region:
    """The bytes that an access touches, in every partition.

    Attributes:
      partitions: the first partition, and one past the last.
      start, end: byte extent in each partition.
      period: bytes after which the pattern repeats; 0 for one contiguous run.
      run: contiguous bytes at the start of each period.
      dense: whether every byte of the extent is touched, in every partition.
    """

    partitions: tuple[int, int]
    start: int
    end: int
    period: int
    run: int
    dense: bool

    def overlaps(self, other: Region) -> bool:
        """Whether the two regions may share a byte."""
        if self.start >= other.end or other.start >= self.end:
            return False
        if self.partitions[0] >= other.partitions[1] or other.partitions[0] >= self.partitions[1]:
            return False
        period = math.gcd(self.period, other.period)
        if not period:
            return True
        distance = (other.start - self.start) % period
        return not (distance >= self.run and distance + other.run <= period)

    def covers(self, other: Region, low: int, high: int) -> bool:
        """Whether this region contains the part of `other` from byte `low` to `high`."""
        if self == other:
            return True
        return (
            self.dense
            and self.start <= max(low, other.start)
            and min(high, other.end) <= self.end
            and self.partitions[0] <= other.partitions[0]
            and other.partitions[1] <= self.partitions[1]
        )


_ALL = Region((0, 1 << 30), 0, 1 << 62, 0, 1 << 62, True)


def region_of(access: Access, address: int = 0) -> Region:
    """The bytes of an access in its physical memory.

    Args:
      access: of an instruction.
      address: of its tensor, where the tensor itself has none.
    """
    low, high = (address + byte for byte in access.byte_range)
    sizes, strides = list(access.shape), [abs(s) for s in access.strides]
    partitions = (access.partition_start, access.partition_start + access.partitions)
    complete = True
    if access.space != "hbm":
        sizes, strides = sizes[1:], strides[1:]
        if access.entries is not None and len(access.entries):
            first, last = int(access.entries[0]), int(access.entries[-1])
            partitions = (access.partition_start + first, access.partition_start + last + 1)
            complete = len(access.entries) == last - first + 1
    offsets = access.row_offsets
    if offsets is not None and len(offsets):
        offsets = np.asarray(offsets, np.int64)
        low, high = low + int(offsets.min()), high + int(offsets.max())
        if access.space == "hbm":
            high -= (sizes[0] - 1) * strides[0]
            sizes, strides = sizes[1:], strides[1:]
    else:
        offsets = None
    run, period = access.itemsize, 0
    outer = [(n, s) for n, s in zip(sizes, strides, strict=True) if n > 1 and s > 0]
    for size, stride in sorted(outer, key=lambda pair: pair[1]):
        if stride <= run and not period:
            run += stride * (size - 1)
        else:
            period = math.gcd(period, stride)
    if offsets is not None:
        period = math.gcd(period, *(offsets - offsets[0]).ravel().tolist())
    dense = complete and not period and high - low <= run
    if period <= run:
        # Runs may touch each other: nothing can be told from the period.
        period, run = 0, high - low
    return Region(partitions, low, high, period, run, dense)


@dataclasses.dataclass(slots=True)
class _Bucket:
    """Earlier uses of some bytes: all writes, and the last read of each queue."""

    writes: list[tuple[Region, int]] = dataclasses.field(default_factory=list)
    reads: dict[tuple[Region, str | int], int] = dataclasses.field(default_factory=dict)


class _Memory:
    """The uses of one memory so far."""

    def __init__(self, width: int):
        self._width = width
        self._buckets: dict[int, _Bucket] = {}
        self._whole: int | None = None

    def _span(self, region: Region) -> range:
        return range(region.start // self._width, (region.end - 1) // self._width + 1)

    def find(self, region: Region, is_write: bool, found: dict[int, str]) -> None:
        """Adds to `found` the instructions that an access depends on."""
        if self._whole is not None:
            _note(found, self._whole, WRITE_AFTER_WRITE if is_write else READ_AFTER_WRITE)
        for number in self._span(region):
            bucket = self._buckets.get(number)
            if bucket is None:
                continue
            kind = WRITE_AFTER_WRITE if is_write else READ_AFTER_WRITE
            for other, index in bucket.writes:
                if other.overlaps(region):
                    _note(found, index, kind)
            if is_write:
                for (other, _), index in bucket.reads.items():
                    if other.overlaps(region):
                        _note(found, index, WRITE_AFTER_READ)

    def add(self, region: Region, is_write: bool, index: int, queue: str) -> None:
        """Remembers an access. A write replaces the earlier accesses that it covers: later ones
        depend on them through it."""
        for number in self._span(region):
            bucket = self._buckets.setdefault(number, _Bucket())
            if not is_write:
                # A queue runs in order, so its last read represents the earlier ones.
                bucket.reads[(region, index if queue == UNORDERED else queue)] = index
                continue
            low, high = number * self._width, (number + 1) * self._width
            bucket.writes = [u for u in bucket.writes if not region.covers(u[0], low, high)]
            bucket.reads = {
                key: i for key, i in bucket.reads.items() if not region.covers(key[0], low, high)
            }
            bucket.writes.append((region, index))

    def meet(self, index: int, found: dict[int, str]) -> None:
        """Adds a barrier, which runs after all earlier uses and before all later ones."""
        if self._whole is not None:
            _note(found, self._whole, WRITE_AFTER_WRITE)
        for bucket in self._buckets.values():
            for _, other in bucket.writes:
                _note(found, other, WRITE_AFTER_WRITE)
            for other in bucket.reads.values():
                _note(found, other, WRITE_AFTER_READ)
        self._buckets.clear()
        self._whole = index


def _note(found: dict[int, str], index: int, kind: str) -> None:
    known = found.get(index)
    if known is None or _STRENGTH[kind] < _STRENGTH[known]:
        found[index] = kind


class Hazards:
    """The dependencies of one core's instructions, found in program order."""

    def __init__(self, stream: Iterable[Instruction], addresses: Mapping[int, int] | None = None):
        """Reads the stream once.

        Args:
          stream: of the core.
          addresses: byte addresses of tensors on chip that have none of their own, by the number of
            their storage. Without one a tensor shares no bytes with others.
        """
        self._addresses = addresses or {}
        # Reads of memory that nothing writes are never ordered.
        self._changing: set[Key] = set()
        for instruction in stream:
            self._changing.update(self._key(a) for a in instruction.accesses if a.is_write)
            self._changing.update(_met(instruction))
        self._memories: dict[Key, _Memory] = {}

    def add(self, instruction: Instruction, queue: str) -> dict[int, str]:
        """The earlier instructions that the next one of the stream waits for.

        Args:
          instruction: the next one in program order.
          queue: one whose instructions end in program order, as an engine's do, or `UNORDERED`.

        Returns:
          The kind of dependency by `Instruction.index`.
        """
        found: dict[int, str] = {}
        uses = [
            (self._memory(access), self._region(access), access.is_write)
            for access in instruction.accesses
            if self._key(access) in self._changing
        ]
        for memory, region, is_write in uses:
            memory.find(region, is_write, found)
        for memory, region, is_write in uses:
            memory.add(region, is_write, instruction.index, queue)
        for key in _met(instruction):
            memory = self._memories.setdefault(key, _Memory(_ON_CHIP_BUCKET))
            memory.meet(instruction.index, found)
        for index in instruction.attributes.get("register_writers", ()):
            _note(found, index, READ_AFTER_WRITE)
        for index in instruction.attributes.get("depends_on", ()):
            _note(found, index, EXPLICIT)
        found.pop(instruction.index, None)
        return found

    def _key(self, access: Access) -> Key:
        if access.storage in self._addresses:
            return access.space, access.rank, access.core, None
        return access.memory

    def _region(self, access: Access) -> Region:
        return region_of(access, self._addresses.get(access.storage, 0))

    def _memory(self, access: Access) -> _Memory:
        key = self._key(access)
        memory = self._memories.get(key)
        if memory is None:
            width = _ON_CHIP_BUCKET
            if access.space == "hbm":
                width = max(width, -(-access.row_bytes // _HBM_BUCKETS))
            memory = self._memories[key] = _Memory(width)
        return memory


def _met(instruction: Instruction) -> list[Key]:
    return [
        ("hbm", instruction.rank, None, storage)
        for storage in instruction.attributes.get("meeting", ())
    ]
