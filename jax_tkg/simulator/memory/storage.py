"""One allocation in SBUF, PSUM or HBM: its bytes, and which of them have been written.

Every allocation keeps a shadow of its bytes (0xFF written, 0x00 not), laid out like the data, so
that a view of the data is also a view of the shadow. Tensors placed at explicit addresses share
the bytes of the core's memory. A write to one of them clears the shadow of the others that it
overlaps, so the simulator finds a read of an overwritten tensor in the same way as a read of a
tensor that was never written. A tensor without an address has bytes of its own, because the
compiler is free to place it; `machine.capacity` checks that all of them fit.
"""

import enum
import threading
import weakref

import numpy as np


class MemoryRegion(enum.Enum):
    """Memory region constants for NKI tensors."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"


ON_CHIP = (MemoryRegion.sbuf, MemoryRegion.psum)

WRITTEN = 0xFF
"""The value of a shadow byte that marks a written byte."""

POISON = 0xFF
"""The value of every byte of fresh memory: NaN in every floating-point dtype."""

_copying = threading.Lock()


class Lifetime:
    """The time during which an on-chip allocation is in use. It outlives the allocation.

    Attributes:
      number: the number of the allocation.
      space: "sbuf" or "psum".
      row_bytes: bytes per partition.
      address: byte address in the partition, or None.
      first_use, last_use: indices of the first and last instruction that touch it, or None.
      label: a description of the allocation, for messages.
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
      name: the tensor's name; may be empty.
      where: file and line of the allocation.
      rank, core: the owner; core is None for HBM that the cores of a rank share.
      partitions: partitions allocated (1 in HBM).
      partition_start: first physical partition.
      row_bytes: bytes per partition (in HBM: of the whole tensor).
      address: byte address in the partition; None: the compiler chooses it.
      bytes: the flat byte array that holds the data.
      pitch: bytes from one partition to the next in `bytes`.
      base: position of the first byte in `bytes`.
      track: whether to track which bytes are written.
      shadow: which bytes are written, [partitions * row_bytes]; None: all of them.
      matmul_shadow: for PSUM, which bytes were last written by a matmul.
      lifetime: for on-chip tensors, the time during which they are in use.
      scope: the turns of device loops, outermost first, in which it was allocated.
      reading_loop: for PSUM, the device loop that read it without allocating it, or None.
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
        "reading_loop",
        "row_bytes",
        "scope",
        "shadow",
        "space",
        "track",
        "where",
        "written",
    )

    def __init__(
        self,
        number: int,
        rank: int,
        core: int | None,
        buffer: MemoryRegion,
        name: str,
        partitions: int,
        row_bytes: int,
        where: tuple[str, int],
        track: bool,
    ):
        self.number = number
        self.buffer = buffer
        self.space = buffer.value if buffer in ON_CHIP else "hbm"
        self.name = name
        self.where = where
        self.rank = rank
        self.core = core
        self.partitions = partitions
        self.partition_start = 0
        self.row_bytes = row_bytes
        self.address: int | None = None
        self.pitch = row_bytes
        self.base = 0
        self.bytes: np.ndarray = _NO_BYTES
        self.track = track
        self.shadow: np.ndarray | None = None
        self.matmul_shadow: np.ndarray | None = None
        self.overlaps: list[weakref.ref[Storage]] = []
        self.is_input = False
        self.copied = False
        self.written = False
        self.lifetime: Lifetime | None = None
        self.scope: tuple[tuple[int, int], ...] = ()
        self.reading_loop: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the allocation."""
        return self.partitions * self.row_bytes

    def describe(self) -> str:
        """Describes the allocation for messages: memory, name, address and source line."""
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
        """Returns the data as a strided NumPy view.

        Args:
          dtype: NumPy dtype of an element.
          shape: elements per dimension.
          partition: first partition, relative to the allocation.
          start: first byte in the partition.
          strides: bytes per dimension; on chip, dimension 0 counts partitions.
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
        """Returns the entries of a shadow for the elements that `view` returns."""
        if self.space != "hbm":
            strides = (strides[0] * self.row_bytes, *strides[1:])
        return np.ndarray(shape, dtype, shadow, partition * self.row_bytes + start, strides)

    def blank_shadow(self) -> np.ndarray:
        """Returns a shadow with no byte marked as written."""
        return np.zeros(self.nbytes, np.uint8)

    def prepare_write(self) -> None:
        """Copies the caller's array before the first write, so that the original never changes."""
        if self.is_input and not self.copied:
            # Both cores of a rank may write first.
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
        """Marks the bytes just written as never written in the allocations that overlap this one.

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
        """Returns the shadow, creating it if all bytes counted as written."""
        if self.shadow is None:
            self.shadow = np.full(self.nbytes, WRITTEN, np.uint8)
        return self.shadow


_NO_BYTES = np.zeros(0, np.uint8)
