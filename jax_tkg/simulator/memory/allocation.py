"""Allocates tensors in the memories of a core, and in the HBM that the cores of a rank share."""

import threading
import weakref
from typing import Any

import numpy as np

from jax_tkg.hardware import PARTITIONS, PSUM_PARTITION_BYTES, Target
from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.layout import element_count
from jax_tkg.simulator.memory.storage import POISON, Lifetime, MemoryRegion, Storage

# nl.tile_size.psum_min_align: PSUM is accessed in words of 4 bytes.
PSUM_MIN_ALIGN = 4
SBUF_MIN_ALIGN = 1


class RunMemory:
    """The state that the memories of all cores of one run share.

    Attributes:
      lnc: cores per rank.
      track: whether to track which bytes are written.
      lock: held during the lookup or creation of a shared tensor.
      shared: the tensors that the cores of a rank share, with shape and dtype. The key is (rank,
        name or source line, number of earlier tensors of that name).
    """

    def __init__(self, lnc: int, track: bool):
        self.lnc = lnc
        self.track = track
        self.lock = threading.RLock()
        self.shared: dict[Any, tuple[Storage, tuple[int, ...], str]] = {}
        self._count = 0

    def next_number(self) -> int:
        """Returns a number that no other allocation of the run has."""
        with self.lock:
            self._count += 1
            return self._count


class CoreMemory:
    """The memories of one core.

    Attributes:
      run: the state shared with the other cores.
      target: the hardware generation.
      rank, core: the core that this memory belongs to.
      lifetimes: the lifetimes of all allocations on chip, in allocation order.
    """

    def __init__(self, run: RunMemory, target: Target, rank: int, core: int):
        self.run = run
        self.target = target
        self.rank = rank
        self.core = core
        self.lifetimes: list[Lifetime] = []
        self._placed: dict[str, weakref.WeakSet[Storage]] = {
            "sbuf": weakref.WeakSet(),
            "psum": weakref.WeakSet(),
        }
        self._bytes: dict[str, np.ndarray] = {}
        self._shared_counts: dict[Any, int] = {}

    def partition_bytes(self, space: str) -> int:
        """Capacity of one partition of "sbuf" or "psum", in bytes."""
        if space == "psum":
            return PSUM_PARTITION_BYTES
        return self.target.sbuf_partition_bytes

    def allocate_on_chip(
        self,
        buffer: MemoryRegion,
        shape: tuple[int, ...],
        dtype: dtypes.DTypeInfo,
        name: str,
        address: tuple[int, int] | None,
    ) -> Storage:
        """Allocates an SBUF or PSUM tensor; dimension 0 of `shape` is the partition.

        Args:
          buffer: sbuf or psum.
          shape: elements per dimension.
          dtype: dtype of an element.
          name: name for messages; may be empty.
          address: (partition, byte in the partition); None: the compiler chooses the place.

        Raises:
          NkiValidationError: shape or address outside the memory, or misaligned.
        """
        shape = _checked_shape(shape)
        if len(shape) < 2:
            shape = (*shape, 1)
        space = buffer.value
        capacity = self.partition_bytes(space)
        row_bytes = element_count(shape[1:]) * dtype.itemsize
        if shape[0] > PARTITIONS:
            raise errors.NkiValidationError(
                f"ndarray {name!r} in {space}: partition dimension {shape[0]} exceeds {PARTITIONS}"
            )
        if row_bytes > capacity:
            raise errors.NkiValidationError(
                f"ndarray {name!r} in {space}: shape {shape} of {dtype.name} needs {row_bytes} "
                f"bytes per partition, but {self.target.name} has {capacity}"
            )
        storage = self._new(buffer, name, shape[0], row_bytes, caller())
        if address is None:
            storage.bytes = np.full(storage.nbytes, POISON, np.uint8)
        else:
            self._place(storage, address)
        if storage.track:
            storage.shadow = storage.blank_shadow()
        if buffer is MemoryRegion.psum:
            storage.matmul_shadow = storage.blank_shadow()
        storage.lifetime = Lifetime(storage)
        self.lifetimes.append(storage.lifetime)
        return storage

    def allocate_hbm(
        self, buffer: MemoryRegion, shape: tuple[int, ...], dtype: dtypes.DTypeInfo, name: str
    ) -> Storage:
        """Allocates an HBM tensor.

        The cores of a rank share one allocation for each tensor in shared HBM. They identify it by
        its name (or, without a name, by the source line) and by how many tensors of that name they
        allocated before: all cores run the same program.

        Raises:
          NkiValidationError: the cores allocate a shared tensor with different shapes or dtypes.
        """
        shape = _checked_shape(shape)
        where = caller()
        nbytes = element_count(shape) * dtype.itemsize
        if buffer is not MemoryRegion.shared_hbm or self.run.lnc == 1:
            return self._new_hbm(buffer, name, nbytes, where)
        label: Any = name or where
        count = self._shared_counts[label] = self._shared_counts.get(label, -1) + 1
        key = (self.rank, label, count)
        with self.run.lock:
            found = self.run.shared.get(key)
            if found is None:
                storage = self._new_hbm(buffer, name, nbytes, where)
                self.run.shared[key] = (storage, shape, dtype.name)
                return storage
        storage, its_shape, its_dtype = found
        if (its_shape, its_dtype) != (shape, dtype.name):
            raise errors.NkiValidationError(
                f"the cores of rank {self.rank} disagree about the {storage.describe()}: "
                f"{its_shape} {its_dtype} against {shape} {dtype.name} in rank {self.rank} core "
                f"{self.core}; the cores of an LNC pair must specialize identically"
            )
        return storage

    def adopt_input(self, name: str, array: np.ndarray) -> Storage:
        """Makes an allocation in shared HBM over a caller's contiguous array.

        The first write copies the array, so the caller's is never changed.
        """
        storage = self._new(MemoryRegion.shared_hbm, name, 1, array.nbytes, ("kernel argument", 0))
        storage.bytes = array.reshape(-1).view(np.uint8)
        storage.is_input = True
        return storage

    def _new(
        self,
        buffer: MemoryRegion,
        name: str,
        partitions: int,
        row_bytes: int,
        where: tuple[str, int],
    ) -> Storage:
        core = None if buffer is MemoryRegion.shared_hbm else self.core
        number, track = self.run.next_number(), self.run.track
        return Storage(number, self.rank, core, buffer, name, partitions, row_bytes, where, track)

    def _new_hbm(
        self, buffer: MemoryRegion, name: str, nbytes: int, where: tuple[str, int]
    ) -> Storage:
        storage = self._new(buffer, name, 1, nbytes, where)
        storage.bytes = np.full(nbytes, POISON, np.uint8)
        if storage.track:
            storage.shadow = storage.blank_shadow()
        return storage

    def _place(self, storage: Storage, address: tuple[int, int]) -> None:
        partition, byte = (int(part) for part in address)
        capacity = self.partition_bytes(storage.space)
        label = f"ndarray {storage.name!r} in {storage.space}: address ({partition}, {byte})"
        if partition < 0 or partition + storage.partitions > PARTITIONS:
            raise errors.NkiValidationError(
                f"{label} plus {storage.partitions} partitions exceeds the {PARTITIONS} partitions"
            )
        if byte < 0 or byte + storage.row_bytes > capacity:
            raise errors.NkiValidationError(
                f"{label} plus {storage.row_bytes} bytes per partition exceeds the {capacity} "
                f"bytes of {self.target.name}"
            )
        align = PSUM_MIN_ALIGN if storage.space == "psum" else SBUF_MIN_ALIGN
        if byte % align:
            raise errors.NkiValidationError(
                f"{label}: the byte address must be a multiple of {align}"
            )
        storage.partition_start = partition
        storage.address = byte
        storage.bytes = self._bytes_of(storage.space)
        storage.pitch = capacity
        storage.base = partition * capacity + byte
        for other in self._placed[storage.space]:
            assert other.address is not None
            if (
                other.partition_start < partition + storage.partitions
                and partition < other.partition_start + other.partitions
                and other.address < byte + storage.row_bytes
                and byte < other.address + other.row_bytes
            ):
                storage.overlaps.append(weakref.ref(other))
                other.overlaps.append(weakref.ref(storage))
        self._placed[storage.space].add(storage)

    def _bytes_of(self, space: str) -> np.ndarray:
        """The bytes of SBUF or PSUM, [128 * bytes per partition], allocated on first use."""
        array = self._bytes.get(space)
        if array is None:
            array = np.full(PARTITIONS * self.partition_bytes(space), POISON, np.uint8)
            self._bytes[space] = array
        return array


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if not sizes or any(size <= 0 for size in sizes):
        raise errors.NkiValidationError(
            f"ndarray: shape {sizes} must have one or more dimensions, each of 1 or more"
        )
    return sizes
