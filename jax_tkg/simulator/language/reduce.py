"""Reductions, normalizations and matrix functions of ``nki.language``."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.simulator import isa
from jax_tkg.simulator.language.create import ndarray, psum
from jax_tkg.simulator.memory.tensor import NkiTensor


def _axes(x: NkiTensor, axis: int | Sequence[int]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(a % x.ndim for a in axes)


def _reduce(name: str, x: NkiTensor, axis: Any, dtype: Any, keepdims: bool) -> NkiTensor:
    axes = _axes(x, axis)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    out = ndarray(kept, dtype or x.dtype)
    isa.tensor_reduce(out, name, x, axes)
    if keepdims:
        return out
    dropped = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    return out.reshape(dropped if len(dropped) > 1 else (*dropped, 1))


def sum(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Sum over free dimensions."""
    return _reduce("add", x, axis, dtype, keepdims)


def max(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Maximum over free dimensions."""
    return _reduce("maximum", x, axis, dtype, keepdims)


def min(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Minimum over free dimensions."""
    return _reduce("minimum", x, axis, dtype, keepdims)


def prod(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Product over free dimensions."""
    return _reduce("multiply", x, axis, dtype, keepdims)


def all(x: NkiTensor, axis: Any, dtype: Any = None) -> NkiTensor:
    """Logical AND over free dimensions."""
    return _reduce("logical_and", x, axis, dtype, False)


def _count(x: NkiTensor, axis: Any) -> int:
    return int(np.prod([x.shape[a] for a in _axes(x, axis)]))


def mean(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Mean over free dimensions, in float32."""
    total = _reduce("add", x, axis, "float32", keepdims)
    out = ndarray(total.shape, dtype or x.dtype)
    isa.tensor_scalar(out, total, "multiply", 1.0 / _count(x, axis))
    return out


def var(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Variance over free dimensions, which keep size 1, as in NKI."""
    axes = _axes(x, axis)
    average = mean(x, axis, "float32", keepdims=True)
    for a in axes:
        average = average.broadcast(a, x.shape[a])
    centred = ndarray(x.shape, "float32")
    isa.tensor_tensor(centred, x, average, "subtract")
    isa.tensor_tensor(centred, centred, centred, "multiply")
    return mean(centred, axis, dtype or x.dtype, keepdims=True)


def softmax(x: NkiTensor, axis: Any = -1, dtype: Any = None) -> NkiTensor:
    """Softmax over free dimensions."""
    axes = _axes(x, axis)
    largest = max(x, axes, "float32", keepdims=True)
    for a in axes:
        largest = largest.broadcast(a, x.shape[a])
    powers = ndarray(x.shape, "float32")
    isa.tensor_tensor(powers, x, largest, "subtract")
    isa.activation(powers, "exp", powers)
    total = sum(powers, axes, "float32", keepdims=True)
    isa.reciprocal(total, total)
    for a in axes:
        total = total.broadcast(a, x.shape[a])
    out = ndarray(x.shape, dtype or x.dtype)
    isa.tensor_tensor(out, powers, total, "multiply")
    return out


def rms_norm(
    x: NkiTensor,
    w: NkiTensor,
    axis: Any,
    n: int,
    epsilon: float = 1e-06,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """``x / sqrt(sum(x^2) / n + epsilon) * w``."""
    kind = compute_dtype or "float32"
    squares = ndarray(x.shape, kind)
    isa.tensor_tensor(squares, x, x, "multiply")
    total = sum(squares, axis, "float32", keepdims=True)
    isa.tensor_scalar(total, total, "multiply", 1.0 / n, op1="add", operand1=epsilon)
    isa.activation(total, "rsqrt", total)
    for a in _axes(x, axis):
        total = total.broadcast(a, x.shape[a])
    scaled = ndarray(x.shape, kind)
    isa.tensor_tensor(scaled, x, total, "multiply")
    out = ndarray(x.shape, dtype or x.dtype)
    isa.tensor_tensor(out, scaled, w, "multiply")
    return out


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    """Inserts a dimension of size 1."""
    return x.expand_dim(axis % (x.ndim + 1))


def broadcast_to(x: NkiTensor, shape: Sequence[int], dtype: Any = None) -> NkiTensor:
    """Broadcasts dimensions of size 1. Partitions are copied."""
    target = tuple(shape)
    if len(target) != x.ndim or any(a not in (1, b) for a, b in zip(x.shape, target, strict=True)):
        raise ValueError(f"broadcast_to: shape {target} is no broadcast of {x.shape}")
    if target == x.shape and dtype in (None, x.dtype):
        return x
    view = x
    for dim in range(1, x.ndim):
        if x.shape[dim] != target[dim]:
            view = view.broadcast(dim, target[dim])
    out = ndarray(target, dtype or x.dtype)
    if x.shape[0] == target[0]:
        isa.tensor_copy(out, view)
        return out
    for p in range(target[0]):
        isa.dma_copy(out[p : p + 1], view)
    return out


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The transpose of a 2D tile, in PSUM."""
    out = ndarray((x.shape[1], x.shape[0]), dtype or x.dtype, psum)
    isa.nc_transpose(out, x)
    return out


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """``x @ y`` in PSUM; ``x.T @ y`` if `transpose_x`."""
    stationary = x
    if not transpose_x:
        flipped = transpose(x)
        stationary = ndarray(flipped.shape, x.dtype)
        isa.tensor_copy(stationary, flipped)
    out = ndarray((stationary.shape[1], y.shape[1]), "float32", psum)
    isa.nc_matmul(out, stationary, y)
    return out


def gather_flattened(
    data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None
) -> NkiTensor:
    """``data[p, indices[p, i]]`` over flattened free dimensions."""
    out = ndarray(indices.shape, data.dtype)
    isa.nc_n_gather(out, data, indices)
    if dtype is None or dtype == data.dtype:
        return out
    cast = ndarray(out.shape, dtype)
    isa.tensor_copy(cast, out)
    return cast
