"""A strided view of an allocation: its shape, and the place of its elements."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.addressing import Indirection
from jax_tkg.simulator.memory.layout import Layout, element_count, trivial_strides
from jax_tkg.simulator.memory.objects import NKIObject
from jax_tkg.simulator.memory.storage import ON_CHIP, MemoryRegion, Storage


class View(NKIObject):
    """A strided view of an allocation.

    Attributes:
      shape: sizes; dimension 0 is the partition on chip.
      strides: elements from one entry to the next, per dimension.
      offset: elements from the start of the storage to the first one.
      dtype: NKI dtype string.
      storage: the allocation.
      buffer: the memory region.
      name: debug name.
    """

    __slots__ = (
        "_layout",
        "buffer",
        "dtype",
        "indirection",
        "name",
        "offset",
        "shape",
        "storage",
        "strides",
    )

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        storage: Storage | None,
        buffer: MemoryRegion = MemoryRegion.sbuf,
        name: str = "",
    ):
        self.shape = tuple(int(size) for size in shape)
        self.strides = trivial_strides(self.shape)
        self.offset = 0
        self.dtype = dtypes.info(dtype).name
        self.storage = storage
        self.buffer = buffer
        self.name = name
        self.indirection: Indirection | None = None
        self._layout: Layout | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return element_count(self.shape)

    @property
    def on_chip(self) -> bool:
        """Whether the tensor is in SBUF or PSUM."""
        return self.buffer in ON_CHIP

    @property
    def label(self) -> str:
        """The tensor in one line, without its values: memory, name, shape and dtype."""
        name = f" {self.name!r}" if self.name else ""
        return f"<{self.buffer.name} tensor{name} {list(self.shape)} {self.dtype}>"

    def __repr__(self) -> str:
        """The label and the values, shortened as NumPy does. No checks: a debugger may ask."""
        if self.storage is None:
            return self.label
        if self.indirection is not None:
            return f"{self.label[:-1]}, at a run-time address>"
        unwritten = self.unwritten()
        missing = f", {unwritten} of {self.size} elements never written" if unwritten else ""
        values = self.numpy()
        if dtypes.info(self.dtype).kind == "float":
            values = dtypes.to_float32(values)
        return f"{self.label[:-1]}{missing}\n {np.array2string(values, prefix=' ')}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """`numpy()`, for np.asarray in a kernel that is debugged."""
        if copy is False:
            raise ValueError(f"{self.label}: its elements can be copied only")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    # Arithmetic of NumPy on a tensor is an error: no instruction would do it on the device.
    __array_ufunc__ = None

    def is_contiguous(self) -> bool:
        """Whether the view covers its storage densely; on chip, within each partition."""
        expected = 1
        first = 1 if self.on_chip else 0
        for size, stride in zip(
            reversed(self.shape[first:]), reversed(self.strides[first:]), strict=True
        ):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def get_pattern(self) -> list[list[int]]:
        """The access pattern, ``[[stride, count], ...]``."""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]

    def is_indirect(self) -> bool:
        """Whether an address of the view is known only at run time."""
        return self.indirection is not None

    def layout(self) -> Layout:
        """Returns the place of the view in its allocation.

        Raises:
          NkiValidationError: the pattern leaves the tensor, or steps over partitions.
        """
        if self._layout is None:
            self._layout = _place_on_chip(self) if self.on_chip else _place_in_hbm(self)
        return self._layout

    @property
    def partition_start(self) -> int:
        """First physical partition on chip; relative to the tensor if it has no address."""
        assert self.storage is not None
        return self.storage.partition_start + self.layout().partition

    def unwritten(self) -> int:
        """How many elements have bytes that no instruction has written."""
        storage = self.storage
        if storage is None or storage.shadow is None or self.indirection is not None:
            return 0
        place, bits = self.layout(), dtypes.info(self.dtype).bits
        written = storage.shadow_view(
            storage.shadow, bits, self.shape, place.partition, place.start, place.strides
        )
        return int((written != np.iinfo(bits).max).sum())

    def numpy(self) -> np.ndarray:
        """Returns a copy of the elements as a NumPy array, for debugging, without any checks."""
        assert self.storage is not None
        if self.indirection is not None:
            raise ValueError(f"{self.label} has a run-time address; copy it with dma_copy first")
        place = self.layout()
        return self.storage.view(
            dtypes.info(self.dtype).storage, self.shape, place.partition, place.start, place.strides
        ).copy()


def described(value: Any) -> str:
    """A value in a message: a tensor's label, or what `repr` says of anything else."""
    return value.label if isinstance(value, View) else repr(value)


def _place_in_hbm(tensor: View) -> Layout:
    """The place of a view of an HBM tensor.

    Raises:
      NkiValidationError: the pattern leaves the tensor.
    """
    assert tensor.storage is not None
    size = dtypes.info(tensor.dtype).itemsize
    span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) + 1
    start = tensor.offset * size
    if tensor.indirection is None and (start < 0 or start + span * size > tensor.storage.row_bytes):
        raise errors.NkiValidationError(
            f"{tensor.label}: pattern {tensor.get_pattern()} at offset {tensor.offset} reaches "
            f"byte {start + span * size} of the {tensor.storage.row_bytes} of the "
            f"{tensor.storage.describe()}"
        )
    return Layout(0, start, tuple(s * size for s in tensor.strides), span * size)


def _place_on_chip(tensor: View) -> Layout:
    """The place of a view of an SBUF or PSUM tensor.

    Raises:
      NkiValidationError: the pattern leaves the tensor, or steps over partitions.
    """
    storage = tensor.storage
    assert storage is not None
    size = dtypes.info(tensor.dtype).itemsize
    pitch, rest = divmod(storage.row_bytes, size)
    if rest:
        raise errors.NkiValidationError(
            f"{tensor.label}: {storage.row_bytes} bytes per partition of the {storage.describe()} "
            f"are not a whole number of {tensor.dtype} elements"
        )
    partition, free = divmod(tensor.offset, pitch)
    step = tensor.strides[0]
    if tensor.shape[0] > 1 and step != pitch:
        raise errors.NkiValidationError(
            f"{tensor.label}: the partition stride must be {pitch}, the elements of one partition "
            f"of the {storage.describe()}, got {step}"
        )
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape[1:], tensor.strides[1:], strict=True))
    limit = pitch if tensor.indirection is None else pitch + free
    if partition + tensor.shape[0] > storage.partitions or free + span > limit:
        raise errors.NkiValidationError(
            f"{tensor.label}: pattern {tensor.get_pattern()} at offset {tensor.offset} reaches "
            f"partition {partition + tensor.shape[0]} of {storage.partitions} and element "
            f"{free + span} of {pitch} of the {storage.describe()}"
        )
    strides = (1, *(s * size for s in tensor.strides[1:]))
    return Layout(partition, free * size, strides, span * size)
