"""Arithmetic on shapes and strides."""

import dataclasses
import math

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """The place of a view in its allocation.

    Attributes:
      partition: first partition, relative to the allocation (0 in HBM).
      start: first byte in the partition (in HBM: in the tensor).
      strides: bytes per dimension; on chip, dimension 0 counts partitions.
      extent: bytes from the first to behind the last element in a partition (in HBM: in the
        tensor).
    """

    partition: int
    start: int
    strides: tuple[int, ...]
    extent: int


def element_count(shape: Shape) -> int:
    """Product of the sizes."""
    return math.prod(shape)


def trivial_strides(shape: Shape) -> Shape:
    """Row-major strides, in elements."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return tuple(strides)


def are_distinct(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Whether no two elements share a byte, for strides in bytes.

    False for some patterns whose elements interleave without touching.
    """
    end = itemsize
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n > 1):
        if stride < end:
            return False
        end = (size - 1) * stride + end
    return True


def merge_contiguous(shape: Shape, strides: Shape) -> list[tuple[int, int]]:
    """Merges neighboring dimensions that are contiguous: [(size, stride), ...]."""
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
    """Strides of the shape `new` over the elements of (shape, strides).

    As NumPy's reshape without a copy; None if a copy would be needed.
    """
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
