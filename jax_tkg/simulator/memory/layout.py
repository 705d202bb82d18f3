"""Shapes and strides, and where the elements of a view lie in its allocation."""

import dataclasses
from typing import TYPE_CHECKING

from jax_tkg.simulator import errors
from jax_tkg.simulator.memory import dtypes

if TYPE_CHECKING:
    from jax_tkg.simulator.memory.tensor import NkiTensor

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Where a view lies in its allocation: byte strides, and partition steps for dimension 0."""

    partition: int
    start: int
    strides: tuple[int, ...]
    extent: int


def trivial_strides(shape: Shape) -> Shape:
    """Row-major strides, in elements."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return tuple(strides)


def merge_contiguous(shape: Shape, strides: Shape) -> list[tuple[int, int]]:
    """Merges neighbouring dimensions that are contiguous: [(size, stride), ...]."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged or [(1, strides[-1] if strides else 1)]


def reshaped_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides of the shape `new` over the elements of (shape, strides), as NumPy's reshape without
    a copy; None if there are none."""
    runs = [[n, s] for n, s in merge_contiguous(shape, strides) if n != 1]
    result: list[int] = []
    for size in reversed(new):
        if size == 1:
            result.append(runs[-1][1] if runs else 1)
            continue
        if not runs or runs[-1][0] % size:
            return None
        result.append(runs[-1][1])
        runs[-1][0] //= size
        runs[-1][1] *= size
        if runs[-1][0] == 1:
            runs.pop()
    return tuple(reversed(result))


def place_in_hbm(tensor: "NkiTensor") -> Layout:
    """Where a view of an HBM tensor lies.

    Raises:
      NkiValidationError: the pattern leaves the tensor.
    """
    assert tensor.storage is not None
    size = dtypes.info(tensor.dtype).itemsize
    span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) + 1
    start = tensor.offset * size
    if tensor.indirection is None and (start < 0 or start + span * size > tensor.storage.row_bytes):
        raise errors.NkiValidationError(
            f"{tensor!r}: pattern {tensor.get_pattern()} at offset {tensor.offset} reaches byte "
            f"{start + span * size} of the {tensor.storage.row_bytes} of the "
            f"{tensor.storage.describe()}"
        )
    return Layout(0, start, tuple(s * size for s in tensor.strides), span * size)


def place_on_chip(tensor: "NkiTensor") -> Layout:
    """Where a view of an SBUF or PSUM tensor lies.

    Raises:
      NkiValidationError: the pattern leaves the tensor, or steps over partitions.
    """
    storage = tensor.storage
    assert storage is not None
    size = dtypes.info(tensor.dtype).itemsize
    pitch, rest = divmod(storage.row_bytes, size)
    if rest:
        raise errors.NkiValidationError(
            f"{tensor!r}: {storage.row_bytes} bytes per partition of the {storage.describe()} "
            f"are no whole number of {tensor.dtype}"
        )
    partition, free = divmod(tensor.offset, pitch)
    step = tensor.strides[0]
    if tensor.shape[0] > 1 and step != pitch:
        raise errors.NkiValidationError(
            f"{tensor!r}: the partition stride must be {pitch}, the elements of one partition "
            f"of the {storage.describe()}, got {step}"
        )
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape[1:], tensor.strides[1:], strict=True))
    limit = pitch if tensor.indirection is None else pitch + free
    if partition + tensor.shape[0] > storage.partitions or free + span > limit:
        raise errors.NkiValidationError(
            f"{tensor!r}: pattern {tensor.get_pattern()} at offset {tensor.offset} reaches "
            f"partition {partition + tensor.shape[0]} of {storage.partitions} and element "
            f"{free + span} of {pitch} of the {storage.describe()}"
        )
    strides = (1, *(s * size for s in tensor.strides[1:]))
    return Layout(partition, free * size, strides, span * size)
