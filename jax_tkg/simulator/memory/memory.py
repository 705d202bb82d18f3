"""Allocations in SBUF, PSUM and HBM: their bytes, and which of them have been written.

Every allocation keeps a shadow of its bytes (0xFF written, 0x00 not), laid out like the data, so
that a view of the data is also a view of the shadow. Tensors placed at explicit addresses share
the bytes of the core's memory; writing one clears the shadow of those that overlap it, so reading
an overwritten tensor is found just like reading one that was never written. Tensors without an
address each have bytes of their own, since the compiler is free to place them; whether they fit is
checked by `capacity`.
"""

import enum
import math
import threading
import weakref
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.machine import PARTITIONS, Core, caller
from jax_tkg.simulator.memory import dtypes


class MemoryRegion(enum.Enum):
    """Memory region constants for NKI tensors."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"


ON_CHIP = (MemoryRegion.sbuf, MemoryRegion.psum)

# nl.tile_size.psum_min_align: PSUM is accessed in words of 4 bytes.
PSUM_MIN_ALIGN = 4
SBUF_MIN_ALIGN = 1

WRITTEN = 0xFF

_copying = threading.Lock()


class Lifetime:
    """When an on-chip allocation is in use; outlives it.

    Attributes:
      number: the allocation's.
      space: "sbuf" or "psum".
      row_bytes: bytes per partition.
      address: byte address in the partition, or None.
      first_use, last_use: indices of the first and last instruction that touch it, or None.
      label: the allocation in words.
    """

    __slots__ = ("address", "first_use", "label", "last_use", "number", "row_bytes", "space")

    def __init__(self, storage: "Storage"):
        self.number = storage.number
        self.space = storage.space
        self.row_bytes = storage.row_bytes
        self.address = storage.address
        self.label = storage.describe()
        self.first_use: int | None = None
        self.last_use: int | None = None


class Storage:
    """One allocation.

    Attributes:
      number: unique in the run.
      buffer: the memory region.
      space: "sbuf", "psum" or "hbm".
      name: the tensor's name, may be empty.
      where: file and line of the allocation.
      rank, core: whose memory; core is None for HBM that the cores of a rank share.
      partitions: partitions allocated (1 in HBM).
      partition_start: first physical partition.
      row_bytes: bytes per partition (in HBM: of the whole tensor).
      address: byte address in the partition, or None if placed by the compiler.
      bytes: the flat byte array that holds the data.
      pitch: bytes from one partition to the next in `bytes`.
      base: position of the first byte in `bytes`.
      shadow: which bytes are written, [partitions * row_bytes], or None if all are.
      matmul_shadow: for PSUM, which bytes were last written by a matmul.
      lifetime: for on-chip tensors, when it is used.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "base",
        "buffer",
        "bytes",
        "copied",
        "core",
        "is_input",
        "lifetime",
        "matmul_shadow",
        "name",
        "number",
        "overlaps",
        "partition_start",
        "partitions",
        "pitch",
        "rank",
        "row_bytes",
        "shadow",
        "space",
        "track",
        "where",
        "written",
    )

    def __init__(
        self,
        core: Core,
        buffer: MemoryRegion,
        name: str,
        partitions: int,
        row_bytes: int,
        where: tuple[str, int],
    ):
        self.number = core.machine.next_storage()
        self.buffer = buffer
        self.space = buffer.value if buffer in ON_CHIP else "hbm"
        self.name = name
        self.where = where
        self.rank = core.rank
        self.core = None if buffer is MemoryRegion.shared_hbm else core.index
        self.partitions = partitions
        self.partition_start = 0
        self.row_bytes = row_bytes
        self.address: int | None = None
        self.pitch = row_bytes
        self.base = 0
        self.bytes: np.ndarray = _NO_BYTES
        self.track = core.machine.options.uninitialized != "ignore"
        self.shadow: np.ndarray | None = None
        self.matmul_shadow: np.ndarray | None = None
        self.overlaps: list[weakref.ref[Storage]] = []
        self.is_input = False
        self.copied = False
        self.written = False
        self.lifetime: Lifetime | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the allocation."""
        return self.partitions * self.row_bytes

    def describe(self) -> str:
        """The allocation in words: memory, name, size and where it was made."""
        name = f" {self.name!r}" if self.name else ""
        place = (
            f" at address ({self.partition_start}, {self.address})"
            if self.address is not None
            else ""
        )
        return (
            f"{self.buffer.name} tensor{name}{place} allocated at {self.where[0]}:{self.where[1]}"
        )

    def view(
        self, dtype: np.dtype, shape: tuple[int, ...], partition: int, start: int, strides: tuple
    ) -> np.ndarray:
        """The data as a strided NumPy view.

        Args:
          dtype: NumPy dtype of an element.
          shape: elements per dimension.
          partition: first partition, relative to the allocation.
          start: first byte in the partition.
          strides: bytes per dimension; on chip, that of dimension 0 counts partitions.
        """
        offset = self.base + partition * self.pitch + start
        if self.space != "hbm":
            strides = (strides[0] * self.pitch, *strides[1:])
        return np.ndarray(shape, dtype, self.bytes, offset, strides)

    def shadow_view(
        self,
        shadow: np.ndarray,
        dtype: np.dtype,
        shape: tuple[int, ...],
        partition: int,
        start: int,
        strides: tuple,
    ) -> np.ndarray:
        """The same elements as `view`, of a shadow."""
        if self.space != "hbm":
            strides = (strides[0] * self.row_bytes, *strides[1:])
        return np.ndarray(shape, dtype, shadow, partition * self.row_bytes + start, strides)

    def blank_shadow(self) -> np.ndarray:
        """A shadow with nothing written."""
        return np.zeros(self.nbytes, np.uint8)

    def prepare_write(self) -> None:
        """Copies the caller's array before the first write, so that the caller's stays as it is."""
        if self.is_input and not self.copied:
            # Both cores of a rank may be the first.
            with _copying:
                if not self.copied:
                    self.bytes = self.bytes.copy()
                    self.copied = True
        self.written = True

    def live_overlaps(self) -> list["Storage"]:
        """The live allocations that share bytes with this one."""
        if not self.overlaps:
            return []
        alive = [storage for ref in self.overlaps if (storage := ref()) is not None]
        if len(alive) < len(self.overlaps):
            self.overlaps = [weakref.ref(storage) for storage in alive]
        return alive

    def overwrite_overlaps(self, written: np.ndarray) -> None:
        """Marks the bytes just written through this allocation as lost to those that overlap it.

        Args:
          written: [partitions, row_bytes], non-zero where bytes were written.
        """
        for other in self.live_overlaps():
            first = max(self.partition_start, other.partition_start)
            last = min(
                self.partition_start + self.partitions, other.partition_start + other.partitions
            )
            assert self.address is not None
            assert other.address is not None
            low = max(self.address, other.address)
            high = min(self.address + self.row_bytes, other.address + other.row_bytes)
            mine = written[
                first - self.partition_start : last - self.partition_start,
                low - self.address : high - self.address,
            ]
            for shadow in (other.shadow_or_full(), other.matmul_shadow):
                if shadow is None:
                    continue
                theirs = shadow.reshape(other.partitions, other.row_bytes)[
                    first - other.partition_start : last - other.partition_start,
                    low - other.address : high - other.address,
                ]
                theirs[mine != 0] = 0

    def shadow_or_full(self) -> np.ndarray:
        """The shadow, made if everything counted as written."""
        if self.shadow is None:
            self.shadow = np.full(self.nbytes, WRITTEN, np.uint8)
        return self.shadow


_NO_BYTES = np.zeros(0, np.uint8)


def element_count(shape: tuple[int, ...]) -> int:
    """Product of the sizes."""
    return math.prod(shape)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if not sizes or any(size <= 0 for size in sizes):
        raise errors.NkiValidationError(
            f"ndarray: shape {sizes} must have one or more dimensions, each of 1 or more"
        )
    return sizes


def allocate_on_chip(
    core: Core,
    buffer: MemoryRegion,
    shape: tuple[int, ...],
    dtype: dtypes.DTypeInfo,
    name: str,
    address: tuple[int, int] | None,
) -> Storage:
    """Allocates an SBUF or PSUM tensor; dimension 0 of `shape` is the partition.

    Raises:
      NkiValidationError: shape or address outside the memory, or misaligned.
    """
    shape = _checked_shape(shape)
    if len(shape) < 2:
        shape = (*shape, 1)
    space = buffer.value
    capacity = core.partition_bytes(space)
    row_bytes = element_count(shape[1:]) * dtype.itemsize
    if shape[0] > PARTITIONS:
        raise errors.NkiValidationError(
            f"ndarray {name!r} in {space}: partition dimension {shape[0]} exceeds {PARTITIONS}"
        )
    if row_bytes > capacity:
        raise errors.NkiValidationError(
            f"ndarray {name!r} in {space}: shape {shape} of {dtype.name} needs {row_bytes} bytes "
            f"per partition, but {core.target.name} has {capacity}"
        )
    storage = Storage(core, buffer, name, shape[0], row_bytes, caller())
    if address is None:
        storage.bytes = np.full(storage.nbytes, WRITTEN, np.uint8)
    else:
        _place(core, storage, address)
    if storage.track:
        storage.shadow = storage.blank_shadow()
    if buffer is MemoryRegion.psum:
        storage.matmul_shadow = storage.blank_shadow()
    storage.lifetime = Lifetime(storage)
    core.lifetimes.append(storage.lifetime)
    return storage


def _place(core: Core, storage: Storage, address: tuple[int, int]) -> None:
    partition, byte = (int(part) for part in address)
    capacity = core.partition_bytes(storage.space)
    label = f"ndarray {storage.name!r} in {storage.space}: address ({partition}, {byte})"
    if partition < 0 or partition + storage.partitions > PARTITIONS:
        raise errors.NkiValidationError(
            f"{label} plus {storage.partitions} partitions exceeds the {PARTITIONS} partitions"
        )
    if byte < 0 or byte + storage.row_bytes > capacity:
        raise errors.NkiValidationError(
            f"{label} plus {storage.row_bytes} bytes per partition exceeds the {capacity} bytes "
            f"of {core.target.name}"
        )
    align = PSUM_MIN_ALIGN if storage.space == "psum" else SBUF_MIN_ALIGN
    if byte % align:
        raise errors.NkiValidationError(f"{label}: the byte address must be a multiple of {align}")
    storage.partition_start = partition
    storage.address = byte
    storage.bytes = core.memory(storage.space)
    storage.pitch = capacity
    storage.base = partition * capacity + byte
    for other in core.placed[storage.space]:
        assert other.address is not None
        if (
            other.partition_start < partition + storage.partitions
            and partition < other.partition_start + other.partitions
            and other.address < byte + storage.row_bytes
            and byte < other.address + other.row_bytes
        ):
            storage.overlaps.append(weakref.ref(other))
            other.overlaps.append(weakref.ref(storage))
    core.placed[storage.space].add(storage)


def allocate_hbm(
    core: Core,
    buffer: MemoryRegion,
    shape: tuple[int, ...],
    dtype: dtypes.DTypeInfo,
    name: str,
) -> Storage:
    """Allocates an HBM tensor. Shared tensors are one allocation for the cores of a rank: the
    cores find it by its name, or by the source line where it has none, and by how often they
    allocated that before, for all cores run the same program.

    Raises:
      NkiValidationError: the cores allocate a shared tensor with different shapes or dtypes.
    """
    shape = _checked_shape(shape)
    where = caller()
    nbytes = element_count(shape) * dtype.itemsize
    if buffer is not MemoryRegion.shared_hbm or core.machine.lnc == 1:
        return _new_hbm(core, buffer, name, nbytes, where)
    label: Any = name or where
    key = (core.rank, label, core.occurrence(("shared", label)))
    with core.machine.lock:
        found = core.machine.shared.get(key)
        if found is None:
            storage = _new_hbm(core, buffer, name, nbytes, where)
            core.machine.shared[key] = (storage, shape, dtype.name)
            return storage
    storage, its_shape, its_dtype = found
    if (its_shape, its_dtype) != (shape, dtype.name):
        raise errors.NkiValidationError(
            f"the cores of rank {core.rank} disagree about the {storage.describe()}: "
            f"{its_shape} {its_dtype} against {shape} {dtype.name} in {core}; the cores of an LNC "
            "pair must specialise identically"
        )
    return storage


def _new_hbm(
    core: Core, buffer: MemoryRegion, name: str, nbytes: int, where: tuple[str, int]
) -> Storage:
    storage = Storage(core, buffer, name, 1, nbytes, where)
    storage.bytes = np.full(nbytes, WRITTEN, np.uint8)
    if storage.track:
        storage.shadow = storage.blank_shadow()
    return storage


def adopt_input(core: Core, buffer: MemoryRegion, name: str, array: np.ndarray) -> Storage:
    """An HBM allocation over a caller's contiguous array, copied when first written."""
    storage = Storage(core, buffer, name, 1, array.nbytes, ("kernel argument", 0))
    storage.bytes = array.reshape(-1).view(np.uint8)
    storage.is_input = True
    storage.core = None
    return storage
