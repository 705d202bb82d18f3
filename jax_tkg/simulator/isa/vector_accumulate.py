"""Vector Engine instructions that reduce or scan, some of them with its 128 accumulators."""

from typing import Any

import numpy as np

from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.arithmetic import apply, arithmetic, check_no_operand, reduce_free
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.isa.operators import Operator, operator, operator_name
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

_CMD = constants.reduce_cmd
FP32_MIN = float(np.finfo(np.float32).min)
_NARROW = tuple(n for n in dtypes.DTYPES if n not in ("int32", "uint32"))
_SCAN_REDUCTIONS = ("add", "subtract", "multiply", "maximum", "minimum")
_COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")


def _start(
    step: Step, command: constants.reduce_cmd, op: Operator, data: NkiTensor, initial: Any
) -> np.ndarray:
    """Returns the initial values of the accumulators, one per partition of `data`."""
    registers, lanes = step.core.vector_accumulators, _lanes(data)
    if command is _CMD.reset_reduce:
        registers.put(lanes, op.identity)
    elif command is _CMD.load_reduce:
        if initial is None:
            step.fail("reduce_cmd load_reduce needs an initial value")
        registers.put(lanes, np.asarray(step.scalar("initial value", initial, data)).reshape(-1))
    elif command is _CMD.reduce:
        step.check_accumulators(registers, lanes, "Vector")
    else:
        step.fail(f"reduce_cmd {command.name} is not supported here")
    return registers.values[lanes]


def _idle(step: Step, data: NkiTensor, reduce_res: NkiTensor | None) -> None:
    """Leaves the accumulators undefined: under reduce_cmd idle they may still be modified."""
    if reduce_res is not None:
        step.fail("reduce_res needs a reduce_cmd other than idle")
    step.core.vector_accumulators.forget(_lanes(data))


def _lanes(data: NkiTensor) -> slice:
    return slice(data.partition_start, data.partition_start + data.shape[0])


def _read_out(
    step: Step, lanes: np.ndarray, reduce_res: NkiTensor | None, negate: bool = False
) -> None:
    if reduce_res is None:
        return
    step.check_compute(reduce_res=reduce_res)
    if reduce_res.shape[0] != lanes.size or reduce_res.size != lanes.size:
        step.fail(f"reduce_res must have shape ({lanes.size}, 1), got {list(reduce_res.shape)}")
    values = lanes.reshape(-1, 1)
    step.write("reduce_res", reduce_res, -values if negate else values.copy())


def tensor_scalar_reduce(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: Any,
    reduce_op: Any,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: Any = _CMD.reset_reduce,
    reduce_init: Any = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = data op0 operand0``, and the reduction of `dst` over its free elements."""
    step = Step("tensor_scalar_reduce", "vector")
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    if reverse0:
        step.fail("reverse0 is not supported by the instruction")
    if reduce_init is not None and command is not _CMD.load_reduce:
        step.fail(f"reduce_init needs reduce_cmd load_reduce, got {command.name}")
    first = arithmetic(step, op0, "op0")
    reduction = operator(reduce_op, "tensor_scalar_reduce", "reduce_op")
    if reduction.name not in ("add", "multiply", "maximum", "minimum"):
        step.fail(f"reduce_op must be add, multiply, max or min, got {reduction.name}")
    step.check_compute(dst=dst, data=data)
    step.check_same_elements(data=data, dst=dst)
    values = step.read_float("data", data)
    if first.arity == 1:
        check_no_operand(step, first, "operand0", operand0)
        values = first.apply(values)
    else:
        values = apply(first, values, step.scalar("operand0", operand0, data), False)
    lanes = _start(step, command, reduction, data, reduce_init)
    lanes[:] = reduction.apply(lanes, reduce_free(reduction, values)[:, 0])
    step.write("dst", dst, values)
    _read_out(step, lanes, reduce_res, reduce_res_negate)
    return step.done()


def tensor_scalar_cumulative(
    dst: NkiTensor,
    src: NkiTensor,
    op0: Any,
    op1: Any,
    imm0: Any,
    imm1: Any = None,
    reduce_cmd: Any = _CMD.reset_reduce,
    name: str | None = None,
) -> NkiInstruction:
    """Running reduction by ``op1`` over ``src op0 imm0``."""
    step = Step("tensor_scalar_cumulative", "vector")
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    first = arithmetic(step, op0, "op0")
    second = arithmetic(step, op1, "op1")
    if second.name not in _SCAN_REDUCTIONS:
        step.fail(f"op1 must be one of {_SCAN_REDUCTIONS}, got {second.name}")
    step.check_compute(dst=dst, src=src)
    step.check_same_elements(src=src, dst=dst)
    step.check_dtype(_NARROW, src=src, dst=dst)
    values = step.read_float("src", src)
    values = apply(first, values, step.scalar("imm0", imm0, src), False)
    lanes = _start(step, command, second, src, imm1)
    result = np.empty_like(values)
    running = lanes.copy()
    for i in range(values.shape[1]):
        running = second.apply(values[:, i], running).astype(np.float32)
        result[:, i] = running
    lanes[:] = running
    step.write("dst", dst, result)
    return step.done()


def tensor_tensor_scan(
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: Any,
    op0: Any,
    op1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``result[i] = (data0[i] op0 result[i-1]) op1 data1[i]``."""
    step = Step("tensor_tensor_scan", "vector")
    first, second = arithmetic(step, op0, "op0"), arithmetic(step, op1, "op1")
    for argument, found in (("op0", first), ("op1", second)):
        if found.arity != 2:
            step.fail(f"{argument} must be a binary operator, got {found.name}")
    step.check_compute(dst=dst, data0=data0, data1=data1)
    step.check_same_elements(data0=data0, data1=data1, dst=dst)
    step.check_not_both_psum(data0=data0, data1=data1)
    left, right = step.read_float("data0", data0), step.read_float("data1", data1)
    start = step.scalar("initial", initial, data0, float_only=False)
    running = np.broadcast_to(np.asarray(start, np.float32).reshape(-1), left.shape[:1])
    result = np.empty_like(left)
    for i in range(left.shape[1]):
        running = apply(first, left[:, i], running, reverse0)
        running = apply(second, running, right[:, i], reverse1).astype(np.float32)
        result[:, i] = running
    step.write("dst", dst, result)
    return step.done()


def range_select(
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: Any,
    comp_op1: Any,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: Any = _CMD.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: Any = "maximum",
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    name: str | None = None,
) -> NkiInstruction:
    """Keeps the elements whose index lies between two bounds, and their maximum, per partition."""
    step = Step("range_select", "vector")
    require_generation(step.core, 3, "range_select")
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    step.check_compute(dst=dst, on_true_tile=on_true_tile)
    step.check_same_elements(on_true_tile=on_true_tile, dst=dst)
    if dtypes.info(on_true_tile.dtype).kind != "float":
        step.fail(f"on_true_tile must be of a float dtype, got {on_true_tile.dtype}")
    if np.float32(on_false_value) != np.float32(FP32_MIN):
        step.fail(f"on_false_value must be {FP32_MIN}, got {on_false_value}")
    reduction = operator(reduce_op, "range_select", "reduce_op")
    if reduction.name != "maximum":
        step.fail(f"reduce_op must be nl.maximum, got {reduction.name}")
    values = step.read_float("on_true_tile", on_true_tile)
    if range_start + values.shape[1] > 1 << 24:
        step.fail(
            f"range_start + elements must be within 2^24, got {range_start + values.shape[1]}"
        )
    index = (range_start + np.arange(values.shape[1], dtype=np.float32))[None, :]
    inside = np.ones(values.shape, bool)
    for operand, op, bound in (("0", comp_op0, bound0), ("1", comp_op1, bound1)):
        compare = operator(op, "range_select", f"comp_op{operand}")
        if compare.name not in _COMPARISONS:
            step.fail(f"comp_op{operand} must be one of {_COMPARISONS}, got {compare.name}")
        if not isinstance(bound, NkiTensor):
            step.fail(f"bound{operand} must be a tensor, got {described(bound)}")
        limit = step.scalar(f"bound{operand}", bound, on_true_tile)
        inside &= compare.apply(index, limit) != 0
    result = np.where(inside, values, np.float32(FP32_MIN))
    lanes = _start(step, command, reduction, on_true_tile, None)
    lanes[:] = np.maximum(lanes, result.max(axis=1))
    step.write("dst", dst, result)
    _read_out(step, lanes, reduce_res)
    return step.done()


def select_reduce(
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: Any,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Any = _CMD.idle,
    reduce_op: Any = "maximum",
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """Selects by a predicate, optionally with a running maximum."""
    step = Step("select_reduce", "vector")
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    step.check_compute(dst=dst, predicate=predicate, on_true=on_true)
    step.check_same_elements(on_true=on_true, predicate=predicate, dst=dst)
    step.check_not_both_psum(on_true=on_true, predicate=predicate)
    if on_true.dtype in ("tfloat32", "int32", "uint32"):
        step.fail(f"on_true must not be tfloat32, int32 or uint32, got {on_true.dtype}")
    step.check_dtype(("int8", "uint8", "int16", "uint16", "bool"), predicate=predicate)
    if operator(reduce_op, "select_reduce", "reduce_op").name != "maximum":
        step.fail(f"reduce_op must be nl.maximum, got {operator_name(reduce_op)}")
    chosen = step.read_rows("predicate", predicate) != 0
    if reverse_pred:
        chosen = ~chosen
    other = step.scalar("on_false", on_false, on_true, float_only=False)
    result = np.where(chosen, step.read_float("on_true", on_true), other).astype(np.float32)
    step.write("dst", dst, result)
    if command is not _CMD.idle:
        maximum = operator("maximum", "select_reduce", "reduce_op")
        lanes = _start(step, command, maximum, on_true, None)
        lanes[:] = np.maximum(lanes, result.max(axis=1))
        _read_out(step, lanes, reduce_res)
    else:
        _idle(step, on_true, reduce_res)
    return step.done()


def exponential(
    dst: NkiTensor,
    src: NkiTensor,
    max_value: Any = 0.0,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Any = _CMD.idle,
    reduce_init: Any = 0.0,
    name: str | None = None,
) -> NkiInstruction:
    """``exp(src - max_value)`` on NeuronCore-v4, optionally with a running sum."""
    step = Step("exponential", "vector")
    require_generation(step.core, 4, "exponential")
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    step.check_compute(dst=dst, src=src)
    step.check_same_elements(src=src, dst=dst)
    if not isinstance(reduce_init, NkiTensor) and reduce_init and command is not _CMD.load_reduce:
        step.fail(f"reduce_init must be 0.0 unless reduce_cmd is load_reduce, got {reduce_init}")
    result = np.exp(step.read_float("src", src) - step.scalar("max_value", max_value, src))
    step.write("dst", dst, result)
    if command is not _CMD.idle:
        addition = operator("add", "exponential", "reduce_op")
        lanes = _start(step, command, addition, src, reduce_init)
        lanes[:] = lanes + result.sum(axis=1, dtype=np.float32)
        _read_out(step, lanes, reduce_res)
    else:
        _idle(step, src, reduce_res)
    return step.done()
