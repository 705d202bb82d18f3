"""Tensor Engine: matrix multiplication and transposes."""

from typing import Any

import numpy as np

from jax_tkg.hardware import (
    MOVING_FMAX,
    PARTITIONS,
    PSUM_BANK_BYTES,
    PSUM_PARTITION_BYTES,
    STATIONARY_FMAX,
    TRN3,
)
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor

VECTOR_TRANSPOSE_MAX = 32

_MATMUL_DTYPES = (
    *TRN3.float8_dtypes,
    "bfloat16",
    "float16",
    "tfloat32",
    "float32",
)
_WIDE = ("float32", "tfloat32")


def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: Any = constants.matmul_perf_mode.none,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = stationary.T @ moving``, accumulated in float32 in PSUM."""
    step = Step("nc_matmul", "tensor", attributes={"is_transpose": is_transpose})
    mode = constants.member(constants.matmul_perf_mode, perf_mode, "perf_mode")
    double_row = mode is constants.matmul_perf_mode.double_row
    step.check_spaces(("sbuf",), stationary=stationary, moving=moving)
    step.check_spaces(("psum",), dst=dst)
    _check_matmul_dtypes(step, dst, stationary, moving, double_row, is_transpose)
    rows, columns, outputs = _matmul_sizes(step, dst, stationary, moving, double_row)
    _check_tiling(step, dst, stationary, tile_position, tile_size, rows, columns, double_row)
    for operand, tensor in (("stationary", stationary), ("moving", moving), ("dst", dst)):
        step.check_start_partition(operand, tensor)
        step.check_pattern(operand, tensor)
    _check_bank(step, dst)
    left = dtypes.to_float32(step.read("stationary", stationary))
    right = dtypes.to_float32(step.read("moving", moving))
    left, right = left.reshape(-1, columns), right.reshape(-1, outputs)
    if is_transpose:
        # In transpose mode the data passes through unchanged, also NaN and infinity.
        product = _pass_through(left, right)
    else:
        product = left.T @ right
    if step.instruction is not None:
        step.instruction.attributes.update(
            contraction=rows, columns=columns, moving=outputs, double_row=double_row
        )
        if tile_position:
            step.instruction.attributes["tile"] = (*tile_position, *tile_size)
    write_product(step, dst, product, accumulate)
    return step.done()


def _pass_through(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if np.count_nonzero(right) == right.shape[1] and np.all(right.max(axis=0) == 1):
        return left[np.argmax(right, axis=0)].T
    return left.T @ right


def _check_matmul_dtypes(
    step: Step,
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    double_row: bool,
    is_transpose: bool,
) -> None:
    target = step.core.target
    step.check_dtype(_MATMUL_DTYPES, stationary=stationary, moving=moving)
    for operand, tensor in (("stationary", stationary), ("moving", moving)):
        if tensor.dtype in TRN3.float8_dtypes and tensor.dtype not in target.float8_dtypes:
            what = f"nc_matmul: {operand} of {tensor.dtype}"
            require_generation(step.core, TRN3.generation, what)
    kinds = {stationary.dtype, moving.dtype}
    if kinds == {"float8_e4m3", "float8_e4m3fn"}:
        step.fail("float8_e4m3 and float8_e4m3fn cannot be mixed in one matmul")
    if (stationary.dtype in _WIDE) != (moving.dtype in _WIDE):
        step.fail(
            f"if one of stationary and moving is float32 or tfloat32, the other must be too, got "
            f"{stationary.dtype} and {moving.dtype}"
        )
    if double_row:
        require_generation(step.core, 3, "nc_matmul: perf_mode double_row")
        step.check_dtype(dtypes.FLOAT8, stationary=stationary, moving=moving)
        if is_transpose:
            step.fail("perf_mode double_row cannot be combined with is_transpose")
    if is_transpose:
        # The text of nc_matmul asks for float32, that of nc_transpose for the dtype of the data.
        if dst.dtype not in ("float32", stationary.dtype):
            step.fail(
                f"dst of a transpose must be of float32 or, as stationary, {stationary.dtype}, "
                f"got {dst.dtype}"
            )
        return
    if target.generation >= 4:
        step.check_dtype(("float32", "bfloat16"), dst=dst)
    else:
        step.check_dtype(("float32",), dst=dst)


def _matmul_sizes(
    step: Step, dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, double_row: bool
) -> tuple[int, int, int]:
    """Returns contraction length per pass, stationary columns and moving columns."""
    rows = stationary.shape[0]
    if moving.shape[0] != rows:
        step.fail(
            f"stationary and moving must have the same number of partitions, got {rows} and "
            f"{moving.shape[0]}"
        )
    if rows > PARTITIONS:
        step.fail(f"the contraction must be at most {PARTITIONS} partitions, got {rows}")
    group = 2 if double_row else 1
    if double_row:
        for operand, tensor in (("stationary", stationary), ("moving", moving)):
            if len(tensor.shape) < 3 or tensor.shape[1] != 2:
                step.fail(
                    f"with double_row the first free dimension of {operand} must be 2, got shape "
                    f"{list(tensor.shape)}"
                )
    columns = stationary.size // rows // group
    outputs = moving.size // rows // group
    if columns > STATIONARY_FMAX:
        step.fail(f"the free size of stationary must be at most {STATIONARY_FMAX}, got {columns}")
    limit = MOVING_FMAX
    if step.core.target.generation >= 4:
        limit = PSUM_PARTITION_BYTES // dtypes.info(dst.dtype).itemsize
    if outputs > limit:
        step.fail(f"the free size of moving must be at most {limit}, got {outputs}")
    if dst.shape[0] != columns or dst.size // dst.shape[0] != outputs:
        step.fail(
            f"dst must have {columns} partitions (stationary's free size) of {outputs} elements "
            f"(moving's free size), got {list(dst.shape)}"
        )
    return rows, columns, outputs


def _check_tiling(
    step: Step,
    dst: NkiTensor,
    stationary: NkiTensor,
    position: tuple[int, ...],
    size: tuple[int, ...],
    rows: int,
    columns: int,
    double_row: bool,
) -> None:
    if not position and not size:
        return
    if not position or not size:
        step.fail("tile_position and tile_size must both be set to enable tiling")
    row_sizes = (64, PARTITIONS) if step.core.target.generation < 3 else (32, 64, PARTITIONS)
    for axis, label, used in ((0, "row", rows), (1, "column", columns)):
        if size[axis] not in row_sizes:
            step.fail(f"tile_size {label} must be one of {row_sizes}, got {size[axis]}")
        if position[axis] % size[axis] or not 0 <= position[axis] < PARTITIONS:
            step.fail(
                f"tile_position {label} must be a multiple of the tile size {size[axis]} below "
                f"{PARTITIONS}, got {position[axis]}"
            )
        if used > size[axis]:
            step.fail(
                f"stationary uses {used} {label}s, more than the tile's {size[axis]} "
                f"(tile_size {tuple(size)})"
            )
    if double_row and size[1] != PARTITIONS:
        step.fail("double_row cannot be combined with column tiling")
    if stationary.partition_start not in (position[0], 0):
        step.fail(
            f"stationary starts at partition {stationary.partition_start}, but tile_position "
            f"says row {position[0]}"
        )
    if dst.partition_start not in (position[1], 0):
        step.fail(
            f"dst starts at partition {dst.partition_start}, but tile_position says column "
            f"{position[1]}"
        )


def _check_bank(step: Step, dst: NkiTensor) -> None:
    """Checks that a matmul writes within one PSUM bank, on NeuronCore-v2 and v3."""
    if step.core.target.generation >= 4:
        return
    assert dst.storage is not None
    place = dst.layout()
    start = (dst.storage.address or 0) + place.start
    end = start + place.extent
    if start // PSUM_BANK_BYTES != (end - 1) // PSUM_BANK_BYTES:
        step.fail(
            f"dst {dst.label} must lie within one PSUM bank of {PSUM_BANK_BYTES} bytes, but spans "
            f"bytes {start}..{end} of the partition"
        )


def write_product(step: Step, dst: NkiTensor, product: np.ndarray, accumulate: bool | None) -> None:
    """Writes a product to PSUM, or adds it to the products that matmuls have accumulated there."""
    storage = dst.storage
    assert storage is not None
    assert storage.matmul_shadow is not None
    info = dtypes.info(dst.dtype)
    place = dst.layout()
    where = (info.bits, dst.shape, place.partition, place.start, place.strides)
    shadow = storage.shadow_view(storage.matmul_shadow, *where)
    whole = np.iinfo(info.bits).max
    started, any_started = bool(shadow.min() == whole), bool(shadow.max() == whole)
    if accumulate is None and not started:
        _check_other_values(step, dst, shadow, any_started)
    if accumulate is None and not any_started:
        accumulate = False
    if step.instruction is not None:
        step.instruction.attributes["accumulate"] = bool(any_started and accumulate is not False)
    if accumulate is False:
        step.write("dst", dst, product, matmul=True)
        return
    if accumulate and not started:
        step.fail(
            f"accumulate=True, but dst {dst.label} was not wholly started by a matmul with "
            "accumulate=False: undefined"
        )
    old = dtypes.to_float32(step.read("dst", dst)) if started else _partial(step, dst, shadow)
    step.write("dst", dst, old.reshape(product.shape) + product, matmul=True)


def _check_other_values(step: Step, dst: NkiTensor, started: np.ndarray, any_started: bool) -> None:
    """Checks that no other instruction than a matmul was the last to write an element of `dst`.

    Accumulating onto such an element is undefined before NeuronCore-v4. On v4 the documentation
    says both that it counts as written, so that the product is added, and that the first product
    must overwrite. It is overwritten here, with a finding if that makes a difference.
    """
    storage = dst.storage
    assert storage is not None
    if not storage.track:
        return
    bits = dtypes.info(dst.dtype).bits
    place = dst.layout()
    where = (bits, dst.shape, place.partition, place.start, place.strides)
    others = ~started
    if storage.shadow is not None:
        others &= storage.shadow_view(storage.shadow, *where)
    if not others.any():
        return
    part = "a part of " if any_started else ""
    held = f"{part}dst {dst.label} was last written by another instruction than a matmul"
    if step.core.target.generation < 4:
        step.fail(
            f"{held}; accumulating onto it is undefined on NeuronCore-v2 and v3: pass "
            "accumulate=False"
        )
    if (storage.view(*where)[others != 0] != 0).any():
        file, line = caller()
        step.core.machine.report(
            "accumulation",
            f"{step.opcode}: {held}, and the product replaces its values; AWS's documentation does "
            f"not say clearly whether it is added: pass accumulate=False ({file}:{line})",
        )


def _partial(step: Step, dst: NkiTensor, shadow: np.ndarray) -> np.ndarray:
    """Returns the accumulated values, with 0 where no matmul has written last."""
    storage = dst.storage
    assert storage is not None
    info = dtypes.info(dst.dtype)
    place = dst.layout()
    values = storage.view(info.storage, dst.shape, place.partition, place.start, place.strides)
    return np.where(shadow == np.iinfo(info.bits).max, dtypes.to_float32(values), np.float32(0))


def nc_transpose(
    dst: NkiTensor,
    data: NkiTensor,
    engine: Any = constants.engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """Transposes a 2D tile: partitions become free elements."""
    step = Step("nc_transpose", "tensor")
    chosen, given = step.check_engine(engine, ("tensor", "vector"), _transpose_engine(dst, data))
    step.set_engine(chosen, given)
    rows, columns = data.shape[0], data.size // data.shape[0]
    if dst.shape[0] != columns or dst.size // dst.shape[0] != rows:
        step.fail(
            f"dst must have {columns} partitions of {rows} elements, the transpose of data "
            f"{list(data.shape)}, got {list(dst.shape)}"
        )
    if dst.dtype != data.dtype:
        step.fail(f"dst must have the dtype of data, {data.dtype}, got {dst.dtype}")
    if chosen == "tensor":
        step.check_spaces(("sbuf",), data=data)
        step.check_spaces(("psum",), dst=dst)
        limit = PARTITIONS
    else:
        limit = VECTOR_TRANSPOSE_MAX
    if rows > limit or columns > limit:
        step.fail(
            f"the {chosen} engine transposes at most [{limit}, {limit}], got data "
            f"[{rows}, {columns}]"
        )
    step.check_compute(dst=dst, data=data)
    values = step.read("data", data).reshape(rows, columns)
    step.write_exact("dst", dst, np.ascontiguousarray(values.T))
    return step.done()


def _transpose_engine(dst: NkiTensor, data: NkiTensor) -> str:
    """The engine that the compiler chooses: only the Vector Engine reads PSUM or writes SBUF."""
    if dst.buffer.value == "psum" and data.buffer.value == "sbuf":
        return "tensor"
    return "vector"
