"""Vector Engine instructions over the eight largest values, and batch-norm statistics."""

import numpy as np

from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor

_EIGHT = 8
_MAX_SEARCH = 16384
BN_STATS_FMAX = 512


def _check_eight(step: Step, **tensors: NkiTensor) -> None:
    for operand, tensor in tensors.items():
        if tensor.size // tensor.shape[0] != _EIGHT:
            step.fail(
                f"{operand} must have {_EIGHT} elements per partition, got {list(tensor.shape)}"
            )


def _check_searched(step: Step, operand: str, tensor: NkiTensor) -> None:
    elements = tensor.size // tensor.shape[0]
    if not _EIGHT <= elements <= _MAX_SEARCH:
        step.fail(
            f"{operand} must have {_EIGHT}..{_MAX_SEARCH} elements per partition, got {elements}"
        )


def max8(dst: NkiTensor, src: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Writes the 8 largest values of each partition, in descending order."""
    step = Step("max8", "vector")
    step.check_compute(dst=dst, src=src)
    step.check_same_partitions(src=src, dst=dst)
    _check_searched(step, "src", src)
    _check_eight(step, dst=dst)
    values = step.read_float("src", src)
    step.write("dst", dst, -np.sort(-values, axis=1)[:, :_EIGHT])
    return step.done()


def nc_find_index8(
    dst: NkiTensor, data: NkiTensor, vals: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """Writes the index of each of 8 values. Equal values get successive occurrences."""
    step = Step("nc_find_index8", "vector")
    step.check_compute(dst=dst, data=data, vals=vals)
    step.check_same_partitions(data=data, vals=vals, dst=dst)
    _check_searched(step, "data", data)
    _check_eight(step, dst=dst, vals=vals)
    step.check_dtype(("uint16", "uint32"), dst=dst)
    rows, wanted = step.read_float("data", data), step.read_float("vals", vals)
    storage = dtypes.info(dst.dtype).storage
    found = np.full(wanted.shape, np.iinfo(storage).max, storage)
    for p in range(rows.shape[0]):
        used: dict[float, int] = {}
        for i in range(_EIGHT):
            value = float(wanted[p, i])
            places = np.flatnonzero(rows[p] == wanted[p, i])
            seen = used.get(value, 0)
            if seen < places.size:
                found[p, i] = places[seen]
            used[value] = seen + 1
    step.write_exact("dst", dst, found)
    return step.done()


def nc_match_replace8(
    dst: NkiTensor,
    data: NkiTensor,
    vals: NkiTensor,
    imm: float,
    dst_idx: NkiTensor | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Replaces the first occurrence of each of 8 values. Equal values are taken from the last."""
    step = Step("nc_match_replace8", "vector")
    step.check_compute(dst=dst, data=data, vals=vals)
    step.check_same_elements(data=data, dst=dst)
    step.check_same_partitions(data=data, vals=vals)
    _check_searched(step, "data", data)
    _check_eight(step, vals=vals)
    rows = step.read_float("data", data).copy()
    wanted = step.read_float("vals", vals)
    index_dtype = np.dtype(np.uint32)
    if dst_idx is not None:
        step.check_dtype(("uint16", "uint32"), dst_idx=dst_idx)
        _check_eight(step, dst_idx=dst_idx)
        index_dtype = dtypes.info(dst_idx.dtype).storage
    found = np.full(wanted.shape, np.iinfo(index_dtype).max, index_dtype)
    for p in range(rows.shape[0]):
        taken = np.zeros(rows.shape[1], bool)
        for i in reversed(range(_EIGHT)):
            places = np.flatnonzero((rows[p] == wanted[p, i]) & ~taken)
            if places.size:
                found[p, i] = places[0]
                taken[places[0]] = True
        rows[p, taken] = np.float32(imm)
    step.write("dst", dst, rows)
    if dst_idx is not None:
        step.write_exact("dst_idx", dst_idx, found)
    return step.done()


def bn_stats(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Writes count, mean and variance * count, of the even and of the odd elements."""
    step = Step("bn_stats", "vector")
    step.check_compute(dst=dst, data=data)
    step.check_same_partitions(data=data, dst=dst)
    elements = data.size // data.shape[0]
    if elements > BN_STATS_FMAX:
        step.fail(f"data must have at most {BN_STATS_FMAX} elements per partition, got {elements}")
    if dst.size // dst.shape[0] != 6:
        step.fail(f"dst must have 6 elements per partition, got {list(dst.shape)}")
    values = step.read_float("data", data)
    parts = []
    for half in (values[:, 0::2], values[:, 1::2]):
        count = half.shape[1]
        mean = half.mean(axis=1) if count else np.zeros(half.shape[0], np.float32)
        spread = ((half - mean[:, None]) ** 2).sum(axis=1)
        parts += [np.full(half.shape[0], count, np.float32), mean, spread]
    step.write("dst", dst, np.stack(parts, axis=1).astype(np.float32))
    return step.done()


def bn_aggr(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Combines (count, mean, variance * count) triples into mean and variance."""
    step = Step("bn_aggr", "vector")
    step.check_compute(dst=dst, data=data)
    step.check_same_partitions(data=data, dst=dst)
    if (data.size // data.shape[0]) % 3:
        step.fail(f"data must have a multiple of 3 elements per partition, got {list(data.shape)}")
    if dst.size // dst.shape[0] != 2:
        step.fail(f"dst must have 2 elements per partition, got {list(dst.shape)}")
    triples = step.read_float("data", data).reshape(data.shape[0], -1, 3)
    count, mean, spread = triples[..., 0], triples[..., 1], triples[..., 2]
    total = count.sum(axis=1)
    average = (count * mean).sum(axis=1) / total
    squares = spread + count * (mean - average[:, None]) ** 2
    step.write("dst", dst, np.stack([average, squares.sum(axis=1) / total], axis=1))
    return step.done()
