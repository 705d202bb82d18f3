"""Microscaled formats of NeuronCore-v4: quantization and matrix multiplication.

A group of 8 partitions by 4 neighboring elements shares one power-of-two scale. A packed element
holds the four values. The scales of a quadrant of 32 partitions lie in its first four partitions,
so the scale of group i of a tile with more than 32 partitions is in row ``i // 4 * 32 + i % 4``.
"""

import ml_dtypes
import numpy as np

from jax_tkg.hardware import PARTITIONS, PSUM_PARTITION_BYTES, STATIONARY_FMAX
from jax_tkg.simulator.isa.matmul import write_product
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor

QUADRANT = 32
GROUP_PARTITIONS = 8
GROUP_ELEMENTS = 4
_SCALE_DTYPES = ("float8_e8m0fnu", "uint8")
_EXPONENT_BIAS = 127

# The unpacked dtype of each packed dtype, and the largest exponent of its values.
_FLOAT8 = {
    "float8_e4m3fn_x4": (np.dtype(ml_dtypes.float8_e4m3fn), 8),
    "float8_e5m2_x4": (np.dtype(ml_dtypes.float8_e5m2), 15),
}
_FLOAT4_VALUES = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def scale_rows(partitions: int) -> np.ndarray:
    """Returns the partitions that hold the scales of a tile, in the order of its groups."""
    group = np.arange(partitions // GROUP_PARTITIONS)
    if partitions <= QUADRANT:
        return group
    per_quadrant = QUADRANT // GROUP_PARTITIONS
    return group // per_quadrant * QUADRANT + group % per_quadrant


def _check_scale(step: Step, operand: str, scale: NkiTensor, data: NkiTensor, columns: int) -> None:
    step.check_spaces(("sbuf",), **{operand: scale})
    step.check_dtype(_SCALE_DTYPES, **{operand: scale})
    needed = int(scale_rows(data.shape[0])[-1]) + 1
    if scale.shape[0] < needed or scale.size // scale.shape[0] < columns:
        step.fail(
            f"{operand} must have at least {needed} partitions of {columns} elements for "
            f"{data.shape[0]} partitions of data, got {list(scale.shape)}"
        )


def _check_partitions(step: Step, operand: str, tensor: NkiTensor) -> None:
    if tensor.shape[0] % QUADRANT or tensor.shape[0] > PARTITIONS:
        step.fail(
            f"{operand} must have a multiple of {QUADRANT} partitions up to {PARTITIONS}, got "
            f"{tensor.shape[0]}"
        )


def quantize_mx(
    dst: NkiTensor, src: NkiTensor, dst_scale: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """Quantizes to a microscaled float8 format: writes data and scales.

    The scale of a group with largest magnitude a is 2^(floor(log2 a) - (E - 1)), E being the
    largest exponent of the format, and 2^-127 for a group of zeros.
    """
    step = Step("quantize_mx", "vector")
    require_generation(step.core, 4, "quantize_mx")
    step.check_spaces(("sbuf",), dst=dst, src=src)
    step.check_dtype(("float16", "bfloat16"), src=src)
    step.check_dtype(tuple(_FLOAT8), dst=dst)
    _check_partitions(step, "src", src)
    elements = src.size // src.shape[0]
    if elements % GROUP_ELEMENTS:
        step.fail(f"src must have a multiple of 4 elements per partition, got {elements}")
    columns = elements // GROUP_ELEMENTS
    if dst.shape[0] != src.shape[0] or dst.size != src.shape[0] * columns:
        step.fail(f"dst must have shape [{src.shape[0]}, {columns}], got {list(dst.shape)}")
    _check_scale(step, "dst_scale", dst_scale, src, columns)
    storage, largest = _FLOAT8[dst.dtype]
    values = step.read_float("src", src)
    groups = values.reshape(-1, GROUP_PARTITIONS, columns, GROUP_ELEMENTS)
    exponent = np.frexp(np.abs(groups).max(axis=(1, 3)))[1] - 1
    exponent = exponent - (largest - 1)
    zero = ~groups.any(axis=(1, 3))
    exponent = np.where(zero, -_EXPONENT_BIAS, np.clip(exponent, -_EXPONENT_BIAS, 127))
    scaled = groups * np.exp2(-exponent.astype(np.float32))[:, None, :, None]
    packed = scaled.reshape(values.shape).astype(storage)
    step.write_exact("dst", dst, np.ascontiguousarray(packed).view(np.uint32))
    codes = (exponent + _EXPONENT_BIAS).astype(np.uint8)
    for row, code in zip(scale_rows(src.shape[0]), codes, strict=True):
        part = dst_scale[int(row) : int(row) + 1, 0:columns]
        step.write_exact("dst_scale", part, code[None, :])
    return step.done()


def _unpack(step: Step, operand: str, tensor: NkiTensor) -> np.ndarray:
    """Returns the four values of every packed element, float32 [partitions, elements, 4]."""
    rows = np.ascontiguousarray(step.read_rows(operand, tensor))
    if tensor.dtype == "float4_e2m1fn_x4":
        shifts = np.arange(4, dtype=np.uint16) * 4
        return _FLOAT4_VALUES[(rows[..., None] >> shifts) & 0xF]
    values = dtypes.to_float32(rows.view(_FLOAT8[tensor.dtype][0]))
    return values.reshape(rows.shape[0], -1, GROUP_ELEMENTS)


def _dequantize(
    step: Step, operand: str, data: NkiTensor, scale_operand: str, scale: NkiTensor
) -> np.ndarray:
    values = _unpack(step, operand, data)
    columns = values.shape[1]
    codes = np.concatenate(
        [
            step.read_rows(scale_operand, scale[int(row) : int(row) + 1, 0:columns])
            for row in scale_rows(data.shape[0])
        ]
    ).view(np.uint8)
    factors = np.exp2(codes.astype(np.float32) - _EXPONENT_BIAS)
    return values * np.repeat(factors, GROUP_PARTITIONS, axis=0)[:, :, None]


def nc_matmul_mx(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    stationary_scale: NkiTensor,
    moving_scale: NkiTensor,
    tile_position: tuple[int, ...] | None = None,
    tile_size: tuple[int, ...] | None = None,
    accumulate: bool | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = stationary.T @ moving`` of microscaled operands, summed over packed values too."""
    step = Step("nc_matmul_mx", "tensor")
    require_generation(step.core, 4, "nc_matmul_mx")
    step.check_spaces(("sbuf",), stationary=stationary, moving=moving)
    step.check_spaces(("psum",), dst=dst)
    packed = (*_FLOAT8, "float4_e2m1fn_x4")
    step.check_dtype(packed, stationary=stationary, moving=moving)
    step.check_dtype(("float32", "bfloat16"), dst=dst)
    _check_partitions(step, "stationary", stationary)
    step.check_same_partitions(stationary=stationary, moving=moving)
    rows = stationary.shape[0]
    columns, outputs = stationary.size // rows, moving.size // rows
    if columns % 2 or columns > STATIONARY_FMAX:
        step.fail(
            f"the free size of stationary must be even and at most {STATIONARY_FMAX}, got {columns}"
        )
    limit = PSUM_PARTITION_BYTES // dtypes.info(dst.dtype).itemsize
    if outputs > limit:
        step.fail(
            f"the free size of moving must be at most {limit} for a {dst.dtype} dst, got {outputs}"
        )
    if dst.shape[0] != columns or dst.size != columns * outputs:
        step.fail(f"dst must have shape [{columns}, {outputs}], got {list(dst.shape)}")
    _check_row_tiling(step, tile_position, tile_size, rows)
    _check_scale(step, "stationary_scale", stationary_scale, stationary, columns)
    _check_scale(step, "moving_scale", moving_scale, moving, outputs)
    left = _dequantize(step, "stationary", stationary, "stationary_scale", stationary_scale)
    right = _dequantize(step, "moving", moving, "moving_scale", moving_scale)
    product = np.tensordot(left, right, axes=((0, 2), (0, 2)))
    if step.instruction is not None:
        step.instruction.attributes.update(contraction=rows, columns=columns, moving=outputs)
        if tile_position and tile_size:
            step.instruction.attributes["tile"] = (*tile_position, *tile_size)
    write_product(step, dst, product, accumulate)
    return step.done()


def _check_row_tiling(
    step: Step,
    position: tuple[int, ...] | None,
    size: tuple[int, ...] | None,
    rows: int,
) -> None:
    if not position and not size:
        return
    if not position or not size:
        step.fail("tile_position and tile_size must both be set to enable tiling")
    if size[1] != PARTITIONS or position[1] != 0:
        step.fail(
            f"only rows are tiled: tile_size must end with {PARTITIONS} and tile_position with 0, "
            f"got {tuple(size)} and {tuple(position)}"
        )
    if size[0] not in (32, 64, PARTITIONS) or position[0] % size[0] or rows > size[0]:
        step.fail(
            f"tile_size row must be 32, 64 or {PARTITIONS}, hold the {rows} rows, and divide "
            f"tile_position row, got {tuple(size)} and {tuple(position)}"
        )
