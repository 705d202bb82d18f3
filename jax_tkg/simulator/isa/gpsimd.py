"""GpSimd Engine: generated patterns, selections, gathers and cross-partition reductions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.hardware import PARTITIONS
from jax_tkg.simulator.isa.arithmetic import check_integers, write_bits
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.isa.operators import operator
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor

_MAX_PATTERN_DIMS = 4
# One GpSimd core serves 16 partitions.
CORE_PARTITIONS = 16


def _pattern_values(
    step: Step, tensor: NkiTensor, pattern: Sequence[Sequence[int]], offset: int, multiplier: int
) -> np.ndarray:
    """The affine values of iota and affine_select, int64 [partitions, elements]."""
    if len(pattern) > _MAX_PATTERN_DIMS:
        step.fail(f"pattern must have at most {_MAX_PATTERN_DIMS} dimensions, got {len(pattern)}")
    values = np.zeros(1, np.int64)
    for stride, count in pattern:
        values = (values[:, None] + int(stride) * np.arange(int(count))).reshape(-1)
    elements = tensor.size // tensor.shape[0]
    if values.size != elements:
        step.fail(
            f"pattern must have as many elements as a partition of dst ({elements}), got "
            f"{values.size}"
        )
    lanes = np.arange(tensor.shape[0])[:, None] * int(multiplier)
    return int(offset) + lanes + values[None, :]


def iota(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    offset: int = 0,
    channel_multiplier: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """Writes ``offset + partition * channel_multiplier + pattern`` as 32-bit integers."""
    step = Step("iota", "gpsimd")
    step.check_spaces(("sbuf",), dst=dst)
    step.check_compute(dst=dst)
    values = _pattern_values(step, dst, pattern, offset, channel_multiplier)
    wrapped = values.astype(np.int32)
    if dtypes.info(dst.dtype).kind in ("int", "uint"):
        step.write_exact("dst", dst, wrapped.astype(dtypes.info(dst.dtype).storage))
    else:
        step.write("dst", dst, wrapped.astype(np.float32))
    return step.done()


_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


def affine_select(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Any = "equal",
    offset: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """Selects `on_true_tile` where the affine value compares true with 0, else `on_false_value`."""
    step = Step("affine_select", "gpsimd")
    step.check_spaces(("sbuf",), dst=dst, on_true_tile=on_true_tile)
    step.check_compute(dst=dst, on_true_tile=on_true_tile)
    step.check_same_elements(dst=dst, on_true_tile=on_true_tile)
    compare = operator(cmp_op, "affine_select", "cmp_op")
    if compare.name not in _COMPARISONS:
        step.fail(f"cmp_op must be one of {_COMPARISONS}, got {compare.name}")
    values = _pattern_values(step, dst, pattern, offset, channel_multiplier)
    chosen = compare.apply(values, np.int64(0)) != 0
    info = dtypes.info(dst.dtype)
    if dst.dtype == on_true_tile.dtype:
        true = step.read_rows("on_true_tile", on_true_tile).view(info.bits)
        false = dtypes.round_to(np.full((1, 1), on_false_value, np.float32), info).view(info.bits)
        step.write_exact("dst", dst, np.where(chosen, true, false))
    else:
        true = step.read_float("on_true_tile", on_true_tile)
        step.write("dst", dst, np.where(chosen, true, np.float32(on_false_value)))
    return step.done()


_PARTITION_REDUCTIONS = ("add", "average", "maximum", "bitwise_or", "bitwise_and")


def tensor_partition_reduce(
    dst: NkiTensor, op: Any, data: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """Reduces across all partitions into one partition."""
    step = Step("tensor_partition_reduce", "gpsimd")
    step.check_spaces(("sbuf",), dst=dst, data=data)
    step.check_compute(dst=dst, data=data)
    average = getattr(op, "__name__", str(op)) == "average"
    found = operator("add" if average else op, "tensor_partition_reduce", "op")
    if found.name not in _PARTITION_REDUCTIONS:
        step.fail(f"op must be one of {_PARTITION_REDUCTIONS}, got {found.name}")
    if dst.shape[0] != 1 or dst.size != data.size // data.shape[0]:
        step.fail(
            f"dst must have 1 partition of {data.size // data.shape[0]} elements, got "
            f"{list(dst.shape)}"
        )
    if found.bitvec:
        check_integers(step, found, dst=dst, data=data)
        write_bits(step, "dst", dst, found.reducer.reduce(step.read_rows("data", data), axis=0))
        return step.done()
    total = found.reducer.reduce(step.read_float("data", data), axis=0)
    step.write("dst", dst, total / np.float32(data.shape[0]) if average else total)
    return step.done()


def nc_n_gather(
    dst: NkiTensor, data: NkiTensor, indices: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """``dst[p, i] = data[p, indices[p, i]]`` over flattened free elements."""
    step = Step("nc_n_gather", "gpsimd")
    step.check_spaces(("sbuf",), dst=dst, data=data, indices=indices)
    step.check_compute(dst=dst, data=data, indices=indices)
    step.check_same_elements(indices=indices, dst=dst)
    step.check_same_partitions(data=data, indices=indices)
    step.check_dtype(("uint32",), indices=indices)
    if dst.dtype != data.dtype:
        step.fail(f"dst must have the dtype of data, {data.dtype}, got {dst.dtype}")
    rows, picks = step.read_rows("data", data), step.read_rows("indices", indices)
    if picks.max() >= rows.shape[1]:
        step.fail(f"indices must be in 0..{rows.shape[1] - 1}, got {int(picks.max())}")
    step.write_exact("dst", dst, np.take_along_axis(rows, picks.astype(np.int64), axis=1))
    return step.done()


_GATHER_LENGTHS = (1, 2, 4, 8, 16, 32)
_MAX_LOCAL_INDICES = 4096


def local_gather(
    dst: NkiTensor,
    src_buffer: NkiTensor,
    index: NkiTensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Gathers free elements. The partitions of each group of 16 share their indices."""
    attributes = {"num_elem_per_idx": num_elem_per_idx}
    step = Step("local_gather", "gpsimd", attributes=attributes)
    step.check_spaces(("sbuf",), dst=dst, src_buffer=src_buffer, index=index)
    step.check_compute(dst=dst, src_buffer=src_buffer, index=index)
    step.check_dtype(("uint16",), index=index)
    if dst.dtype != src_buffer.dtype:
        step.fail(f"dst must have the dtype of src_buffer, {src_buffer.dtype}, got {dst.dtype}")
    partitions = src_buffer.shape[0]
    if partitions != index.shape[0] or partitions % CORE_PARTITIONS:
        step.fail(
            f"src_buffer and index must have the same number of partitions, a multiple of "
            f"{CORE_PARTITIONS}, got {partitions} and {index.shape[0]}"
        )
    if num_elem_per_idx not in _GATHER_LENGTHS:
        step.fail(f"num_elem_per_idx must be one of {_GATHER_LENGTHS}, got {num_elem_per_idx}")
    rows, picks = step.read_rows("src_buffer", src_buffer), step.read_rows("index", index)
    per_core = CORE_PARTITIONS * picks.shape[1]
    count = per_core if num_valid_indices is None else int(num_valid_indices)
    if count > per_core or count > _MAX_LOCAL_INDICES:
        step.fail(
            f"the valid indices per core must be at most {min(per_core, _MAX_LOCAL_INDICES)}, "
            f"got {count}"
        )
    if dst.shape[0] != partitions or dst.size // partitions != count * num_elem_per_idx:
        step.fail(
            f"dst must have {partitions} partitions of {count * num_elem_per_idx} elements, got "
            f"{list(dst.shape)}"
        )
    result = np.empty((partitions, count * num_elem_per_idx), rows.dtype)
    steps = np.arange(num_elem_per_idx)
    for start in range(0, partitions, CORE_PARTITIONS):
        group = slice(start, start + CORE_PARTITIONS)
        flat = picks[group].T.reshape(-1)[:count].astype(np.int64)
        positions = (flat[:, None] * num_elem_per_idx + steps).reshape(-1)
        if positions.size and np.max(positions) >= rows.shape[1]:
            step.fail(
                f"index must address elements below {rows.shape[1]}, got {int(np.max(positions))}"
            )
        result[group] = rows[group][:, positions]
    step.write_exact("dst", dst, result)
    return step.done()


def nonzero_with_count(
    dst: NkiTensor,
    src: NkiTensor,
    index_offset: int = 0,
    padding_val: int = -1,
    name: str | None = None,
) -> NkiInstruction:
    """Writes the indices of non-zero elements, padding and the count, on partitions 0, 16, ..."""
    step = Step("nonzero_with_count", "gpsimd")
    require_generation(step.core, 3, "nonzero_with_count")
    step.check_spaces(("sbuf",), dst=dst, src=src)
    step.check_compute(dst=dst, src=src)
    step.check_dtype(("float32", "int32"), src=src)
    step.check_dtype(("int32",), dst=dst)
    step.check_same_partitions(src=src, dst=dst)
    length = src.size // src.shape[0]
    if dst.size // dst.shape[0] != length + 1:
        step.fail(
            f"dst must have one element more than src ({length} + 1), got "
            f"{dst.size // dst.shape[0]}"
        )
    for lane in range(0, src.shape[0], CORE_PARTITIONS):
        values = step.read_rows("src", src[lane : lane + 1])[0]
        found = np.flatnonzero(values)
        out = np.full(length + 1, padding_val, np.int32)
        out[: found.size] = found + index_offset
        out[length] = found.size
        step.write_exact("dst", dst[lane : lane + 1], out)
    return step.done()


_TOPK_LIMIT = 65536


def topk(
    val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int, name: str | None = None
) -> NkiInstruction:
    """Writes the K largest of `n` values, ascending. They lie in snake order over 16 partitions."""
    step = Step("topk", "gpsimd", attributes={"n": n})
    step.check_spaces(("sbuf",), val_dst=val_dst, idx_dst=idx_dst, src=src)
    step.check_compute(val_dst=val_dst, idx_dst=idx_dst, src=src)
    step.check_dtype(("bfloat16",), src=src, val_dst=val_dst)
    step.check_dtype(("uint32",), idx_dst=idx_dst)
    step.check_same_elements(val_dst=val_dst, idx_dst=idx_dst)
    step.check_same_partitions(src=src, val_dst=val_dst)
    k = val_dst.size // val_dst.shape[0]
    width = src.size // src.shape[0]
    if src.shape[0] % CORE_PARTITIONS:
        step.fail(f"src partitions must be a multiple of {CORE_PARTITIONS}, got {src.shape[0]}")
    if not 8 <= n < _TOPK_LIMIT or width * CORE_PARTITIONS < n:
        step.fail(
            f"n must be in 8..{_TOPK_LIMIT - 1} and at most {width * CORE_PARTITIONS} "
            f"(16 * src free size), got {n}"
        )
    if not 1 <= k <= min(n, _TOPK_LIMIT // 2 - 1):
        step.fail(f"K must be in 1..{min(n, _TOPK_LIMIT // 2 - 1)}, got {k}")
    rows = dtypes.to_float32(step.read_rows("src", src))
    values = np.empty((src.shape[0], k), np.float32)
    indices = np.empty((src.shape[0], k), np.uint32)
    for start in range(0, src.shape[0], CORE_PARTITIONS):
        snake = rows[start : start + CORE_PARTITIONS].T.reshape(-1)[:n]
        order = np.argsort(snake, kind="stable")[-k:]
        values[start : start + CORE_PARTITIONS] = snake[order]
        indices[start : start + CORE_PARTITIONS] = order
    step.write("val_dst", val_dst, values)
    step.write_exact("idx_dst", idx_dst, indices)
    return step.done()


def sequence_bounds(
    dst: NkiTensor, segment_ids: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """Writes start and end index of the segment of each element; padding (id 0) gets (n, -1)."""
    step = Step("sequence_bounds", "gpsimd")
    step.check_spaces(("sbuf",), dst=dst, segment_ids=segment_ids)
    step.check_dtype(("float32", "int32"), dst=dst, segment_ids=segment_ids)
    if segment_ids.shape[0] != 1 or dst.shape[0] != 1:
        step.fail(
            f"the partition dimension must be 1, got dst {list(dst.shape)} and segment_ids "
            f"{list(segment_ids.shape)}"
        )
    ids = step.read_float("segment_ids", segment_ids)[0]
    n = ids.size
    if dst.size != 2 * n:
        step.fail(f"dst must have 2 * {n} elements, got {list(dst.shape)}")
    changes = np.flatnonzero(np.diff(ids)) + 1
    edges = np.concatenate([[0], changes, [n]])
    segment = np.searchsorted(edges, np.arange(n), side="right") - 1
    bounds = np.stack([edges[segment], edges[segment + 1]]).astype(np.float32)
    bounds[0, ids == 0] = n
    bounds[1, ids == 0] = -1
    step.write("dst", dst, bounds)
    return step.done()


__all__ = [
    "CORE_PARTITIONS",
    "PARTITIONS",
    "affine_select",
    "iota",
    "local_gather",
    "nc_n_gather",
    "nonzero_with_count",
    "sequence_bounds",
    "tensor_partition_reduce",
    "topk",
]
