"""Vector Engine: element-wise operations, copies, reductions and shuffles."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.arithmetic import (
    WIDE_INTEGER,
    apply,
    apply_bits,
    arithmetic,
    bitvec_scalar,
    check_integers,
    check_no_operand,
    write_bits,
)
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.isa.operators import operator
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

_UNKNOWN = constants.engine.unknown
QUADRANT = 32
_UNMODIFIED = 255
_PREDICATE_DTYPES = ("uint8", "uint16", "uint32", "bool")


def _check_gpsimd(step: Step, engine: str, **tensors: Any) -> None:
    """Checks that no operand of the GpSimd Engine is in PSUM, which it cannot access."""
    if engine != "gpsimd":
        return
    for operand, tensor in tensors.items():
        if isinstance(tensor, NkiTensor) and tensor.buffer.value == "psum":
            step.fail(f"{operand} is in PSUM, which the GpSimd Engine cannot access")


def tensor_copy(
    dst: NkiTensor, src: NkiTensor, engine: Any = _UNKNOWN, name: str | None = None
) -> NkiInstruction:
    """Copies within on-chip memory: bit-exact if the dtypes are equal, else through float32."""
    step = Step("tensor_copy", "vector")
    chosen, given = step.check_engine(engine, ("vector", "scalar", "gpsimd"), "vector")
    step.set_engine(chosen, given)
    if chosen == "scalar":
        require_generation(step.core, 3, "tensor_copy on the Scalar Engine")
    step.check_compute(dst=dst, src=src)
    step.check_same_elements(src=src, dst=dst)
    _check_gpsimd(step, chosen, dst=dst, src=src)
    if dst.dtype == src.dtype:
        step.write_exact("dst", dst, step.read("src", src))
    else:
        step.write("dst", dst, step.read_float("src", src))
    return step.done()


def memset(
    dst: NkiTensor, value: Any, engine: Any = _UNKNOWN, name: str | None = None
) -> NkiInstruction:
    """Fills a tile with a compile-time constant."""
    step = Step("memset", "vector", attributes={"value": value})
    chosen, given = step.check_engine(engine, ("vector", "gpsimd"), "vector")
    step.set_engine(chosen, given)
    step.check_compute(dst=dst)
    _check_gpsimd(step, chosen, dst=dst)
    info = dtypes.info(dst.dtype)
    if not isinstance(value, (bool, int, float, np.integer, np.floating)):
        step.fail(f"value must be a compile-time number, got {described(value)}")
    if info.kind == "packed":
        if value != 0:
            step.fail(f"value must be 0 for the packed dtype {info.name}, got {value}")
        step.write_exact("dst", dst, np.zeros(dst.shape, info.storage))
        return step.done()
    if info.kind in ("int", "uint"):
        limits = np.iinfo(info.storage)
        # Neither NaN nor an infinity lies within the limits.
        if not limits.min <= value <= limits.max or value != int(value):
            step.fail(f"value must be an integer that {info.name} holds, got {value}")
    filled = np.full(dst.shape, int(value) if info.kind in ("int", "uint") else np.float32(value))
    step.write("dst", dst, filled)
    return step.done()


def tensor_copy_predicated(
    dst: NkiTensor,
    src: Any,
    predicate: NkiTensor,
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """Copies `src` to `dst` where `predicate` is non-zero. The rest of `dst` is unchanged."""
    step = Step("tensor_copy_predicated", "vector")
    step.check_compute(dst=dst, predicate=predicate)
    step.check_same_elements(dst=dst, predicate=predicate)
    step.check_dtype(_PREDICATE_DTYPES, predicate=predicate)
    step.check_not_both_psum(src=src, predicate=predicate)
    chosen = step.read("predicate", predicate).reshape(dst.shape) != 0
    if reverse_pred:
        chosen = ~chosen
    bits = dtypes.info(dst.dtype).bits
    if isinstance(src, NkiTensor):
        step.check_compute(src=src)
        step.check_same_elements(dst=dst, src=src)
        if src.dtype != dst.dtype:
            step.fail(f"src must have the dtype of dst, {dst.dtype}, got {src.dtype}")
        new = step.read("src", src).reshape(dst.shape).view(bits)
    else:
        new = _constant(step, "src", src, dst).view(bits)
    old, written = step.read_moved("dst", dst)
    # Elements that the predicate does not choose stay as they are, also if never written.
    step.write_moved(
        "dst", dst, np.where(chosen, new, old), None if written is None else written | chosen
    )
    return step.done()


def _constant(step: Step, operand: str, value: Any, dst: NkiTensor) -> np.ndarray:
    """Returns a compile-time number as one element of `dst`; an integer stays exact in integers."""
    info = dtypes.info(dst.dtype)
    if not isinstance(value, (bool, int, float, np.integer, np.floating)):
        step.fail(f"{operand} must be a number or a tensor, got {described(value)}")
    if info.kind == "packed":
        step.fail(f"{operand} must be a tensor for the packed dtype {info.name}, got {value}")
    if info.kind in ("int", "uint") and isinstance(value, (int, np.integer)):
        limits = np.iinfo(info.storage)
        return np.array(min(max(int(value), limits.min), limits.max), info.storage)
    return dtypes.round_to(np.array(value, np.float32), info)


def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Any,
    engine: Any = _UNKNOWN,
    name: str | None = None,
) -> NkiInstruction:
    """Element-wise ``data1 op data2``."""
    step = Step("tensor_tensor", "vector")
    found = operator(op, "tensor_tensor", "op")
    if found.arity != 2:
        step.fail(f"op must be a binary operator, got {found.name}")
    step.check_compute(dst=dst, data1=data1, data2=data2)
    step.check_same_elements(data1=data1, data2=data2, dst=dst)
    step.check_not_both_psum(data1=data1, data2=data2)
    tensors = (dst, data1, data2)
    in_psum = any(t.buffer.value == "psum" for t in tensors)
    integers = all(t.dtype in WIDE_INTEGER for t in tensors)
    on_gpsimd = found.name == "power" or (integers and not in_psum and not found.bitvec)
    chosen, given = step.check_engine(
        engine, ("vector", "gpsimd"), "gpsimd" if on_gpsimd else "vector"
    )
    step.set_engine(chosen, given)
    if step.instruction is not None:
        step.instruction.attributes["op"] = found.name
    if found.name == "power" and chosen != "gpsimd":
        step.fail("op=power runs on the GpSimd Engine only")
    _check_gpsimd(step, chosen, dst=dst, data1=data1, data2=data2)
    if found.bitvec:
        check_integers(step, found, dst=dst, data1=data1, data2=data2)
        left, right = step.read_rows("data1", data1), step.read_rows("data2", data2)
        write_bits(step, "dst", dst, apply_bits(found, left, right))
    elif integers and chosen == "gpsimd" and found.name != "power":
        # The GpSimd Engine computes 32-bit integers exactly, modulo 2^32.
        left = step.read_rows("data1", data1).astype(np.int64)
        right = step.read_rows("data2", data2).astype(np.int64)
        result = np.asarray(found.apply(left, right)).astype(np.int64)
        step.write_exact("dst", dst, result.astype(dtypes.info(dst.dtype).storage))
    else:
        left, right = step.read_float("data1", data1), step.read_float("data2", data2)
        step.write("dst", dst, found.apply(left, right))
    return step.done()


_SCALAR_ENGINE_PAIRS = (("multiply", "add"), ("multiply", None), ("add", None))


def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: Any = _UNKNOWN,
    name: str | None = None,
) -> NkiInstruction:
    """``(data op0 operand0) op1 operand1`` with operands broadcast along the free dimension."""
    step = Step("tensor_scalar", "vector")
    first = operator(op0, "tensor_scalar", "op0")
    second = None if op1 is None else operator(op1, "tensor_scalar", "op1")
    chosen, given = step.check_engine(engine, ("vector", "scalar", "gpsimd"), "vector")
    step.set_engine(chosen, given)
    if step.instruction is not None:
        step.instruction.attributes["op"] = first.name
    step.check_compute(dst=dst, data=data)
    step.check_same_elements(data=data, dst=dst)
    _check_gpsimd(step, chosen, dst=dst, data=data, operand0=operand0, operand1=operand1)
    if second is None and operand1 is not None:
        step.fail("operand1 is given without op1")
    if second is not None and second.bitvec != first.bitvec:
        step.fail(f"op0={first.name} and op1={second.name} must both be bitvec or both arithmetic")
    if chosen == "scalar" and (first.name, second and second.name) not in _SCALAR_ENGINE_PAIRS:
        step.fail(
            f"the Scalar Engine supports (op0, op1) of {list(_SCALAR_ENGINE_PAIRS)}, got "
            f"({first.name}, {second and second.name})"
        )
    if first.bitvec:
        if chosen != "vector":
            step.fail(f"bitvec operators run on the Vector Engine only, got engine {chosen}")
        check_integers(step, first, dst=dst, data=data)
        result = step.read_rows("data", data)
    else:
        result = step.read_float("data", data)
    for op, operand, value, reverse in (
        (first, "operand0", operand0, reverse0),
        (second, "operand1", operand1, reverse1),
    ):
        if op is None:
            continue
        if op.arity == 1:
            check_no_operand(step, op, operand, value)
            result = op.apply(result)
            continue
        scalar_of = functools.partial(bitvec_scalar, step) if op.bitvec else step.scalar
        result = apply(op, result, scalar_of(operand, value, data), reverse)
    if first.bitvec:
        write_bits(step, "dst", dst, result)
    else:
        step.write("dst", dst, result)
    return step.done()


def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``(data op0 operand0) op1 operand1`` with a scalar and then a tensor operand."""
    step = Step("scalar_tensor_tensor", "vector")
    first = arithmetic(step, op0, "op0")
    second = arithmetic(step, op1, "op1")
    if step.instruction is not None:
        step.instruction.attributes.update(op0=first.name, op1=second.name)
    step.check_compute(dst=dst, data=data, operand1=operand1)
    step.check_same_elements(data=data, operand1=operand1, dst=dst)
    step.check_not_both_psum(data=data, operand1=operand1)
    column = step.scalar("operand0", operand0, data, float_only=False)
    result = apply(first, step.read_float("data", data), column, reverse0)
    result = apply(second, result, step.read_float("operand1", operand1), reverse1)
    step.write("dst", dst, result)
    return step.done()


def tensor_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    axis: int | Sequence[int],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """Reduces the last free dimensions."""
    found = operator(op, "tensor_reduce", "op")
    step = Step("tensor_reduce", "vector", attributes={"op": found.name})
    if found.reducer is None:
        step.fail(f"op={found.name} is not a reduction operator")
    axes = [axis] if isinstance(axis, (int, np.integer)) else list(axis)
    axes = sorted(a + data.ndim if a < 0 else int(a) for a in axes)
    if axes != list(range(data.ndim - len(axes), data.ndim)) or not axes or axes[0] == 0:
        step.fail(
            f"axis must be the last contiguous free dimensions of {list(data.shape)}, got {axis}"
        )
    step.check_compute(dst=dst, data=data)
    step.check_same_partitions(data=data, dst=dst)
    kept = int(np.prod(data.shape[1 : axes[0]]))
    if dst.size // dst.shape[0] != kept:
        step.fail(
            f"dst must have {kept} elements per partition, for axis {axis} of "
            f"{list(data.shape)}, got {list(dst.shape)}"
        )
    if found.bitvec:
        if negate:
            step.fail("negate is only for arithmetic operators")
        check_integers(step, found, dst=dst, data=data)
        rows = step.read("data", data).reshape(data.shape[0], kept, -1)
        write_bits(step, "dst", dst, found.reducer.reduce(rows, axis=2))
        return step.done()
    values = dtypes.to_float32(step.read("data", data)).reshape(data.shape[0], kept, -1)
    result = found.reducer.reduce(values, axis=2).astype(np.float32)
    step.write("dst", dst, -result if negate else result)
    return step.done()


def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Element-wise 1/x."""
    step = Step("reciprocal", "vector")
    step.check_compute(dst=dst, data=data)
    step.check_same_elements(data=data, dst=dst)
    step.write("dst", dst, np.float32(1) / step.read_float("data", data))
    return step.done()


def nc_stream_shuffle(
    dst: NkiTensor, src: NkiTensor, shuffle_mask: Sequence[int], name: str | None = None
) -> NkiInstruction:
    """Moves partitions within each quadrant of 32.

    Output partition i takes input partition ``shuffle_mask[i]``; 255 leaves it unchanged.
    """
    step = Step("nc_stream_shuffle", "vector")
    mask = [int(m) for m in shuffle_mask]
    if len(mask) != QUADRANT:
        step.fail(f"shuffle_mask must have {QUADRANT} entries, got {len(mask)}")
    for i, m in enumerate(mask):
        if m != _UNMODIFIED and not 0 <= m < QUADRANT:
            step.fail(f"shuffle_mask[{i}] must be in 0..{QUADRANT - 1} or {_UNMODIFIED}, got {m}")
    step.check_compute(dst=dst, src=src)
    if dst.dtype != src.dtype:
        step.fail(f"dst must have the dtype of src, {src.dtype}, got {dst.dtype}")
    if dst.size // dst.shape[0] != src.size // src.shape[0]:
        step.fail(
            f"dst must have as many elements per partition as src {list(src.shape)}, got "
            f"{list(dst.shape)}"
        )
    active = -(-max(dst.shape[0], src.shape[0]) // QUADRANT) * QUADRANT
    for operand, tensor in (("src", src), ("dst", dst)):
        spacing = 128 if active > 64 else active
        if tensor.partition_start % spacing:
            step.fail(
                f"{operand} with {active} active partitions must start at a multiple of "
                f"{spacing}, got {tensor.partition_start}"
            )
    _shuffle(step, dst, src, mask)
    return step.done()


def _shuffle(step: Step, dst: NkiTensor, src: NkiTensor, mask: list[int]) -> None:
    rows = step.read_rows("src", src).copy()
    for start in range(0, dst.shape[0], QUADRANT):
        count = min(QUADRANT, dst.shape[0] - start)
        sources = np.array(mask[:count])
        moved = np.flatnonzero(sources != _UNMODIFIED)
        wanted = sources[moved] + start
        outside = wanted >= src.shape[0]
        if outside.any():
            i = int(moved[np.argmax(outside)])
            step.fail(
                f"shuffle_mask[{i}]={mask[i]} reads partition {int(wanted[np.argmax(outside)])} "
                f"of src, which has {src.shape[0]}"
            )
        if moved.size == count:
            step.write_exact("dst", dst[start : start + count], rows[wanted])
            continue
        for lane, source in zip(moved, wanted, strict=True):
            row = start + int(lane)
            step.write_exact("dst", dst[row : row + 1], rows[source : source + 1])
