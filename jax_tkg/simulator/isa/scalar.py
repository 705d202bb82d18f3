"""Scalar Engine: activation functions."""

from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.arithmetic import apply, arithmetic, reduce_free
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.isa.operators import (
    OPERATORS,
    Activation,
    activation_function,
    operator,
    operator_name,
)
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

_CMD = constants.reduce_cmd
_FOLD = {_CMD.reduce, _CMD.reset_reduce}


def activation(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Any = _CMD.idle,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = op(data * scale + bias)``, and optionally a sum over the free elements."""
    step = Step("activation", "scalar")
    return _activation(step, dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd)


def activation_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    reduce_op: Any,
    reduce_res: NkiTensor | None,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> NkiInstruction:
    """`activation` with ``reduce_cmd=reset_reduce``."""
    step = Step("activation_reduce", "scalar")
    return _activation(step, dst, op, data, bias, scale, reduce_op, reduce_res, _CMD.reset_reduce)


def _activation(
    step: Step,
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    bias: Any,
    scale: Any,
    reduce_op: Any,
    reduce_res: NkiTensor | None,
    reduce_cmd: Any,
) -> NkiInstruction:
    function = activation_function(op, step.opcode)
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    if command is _CMD.load_reduce:
        step.fail("reduce_cmd load_reduce is not a command of the Scalar Engine's activation")
    step.check_compute(dst=dst, data=data)
    step.check_same_elements(data=data, dst=dst)
    if step.instruction is not None:
        step.instruction.attributes["op"] = function.name
    values = step.read_float("data", data)
    factor = step.scalar("scale", scale, data)
    if not isinstance(scale, (int, float)) or scale != 1.0:
        values = values * factor
    if bias is not None:
        if function.name == "reciprocal" and step.core.target.generation < 3:
            step.fail("op=reciprocal takes no bias on NeuronCore-v2")
        values = values + _bias(step, bias, data)
    _check_range(step, function, values)
    result = np.asarray(function.apply(values), np.float32)
    if command in _FOLD and reduce_op is None:
        step.fail(f"reduce_cmd {command.name} needs reduce_op")
    if reduce_op is not None and operator(reduce_op, step.opcode, "reduce_op").name != "add":
        step.fail(f"reduce_op must be nl.add, got {operator_name(reduce_op)}")
    step.write("dst", dst, result)
    _accumulate(step, result, data, command, OPERATORS["add"], reduce_res)
    return step.done()


def _bias(step: Step, bias: Any, data: NkiTensor) -> Any:
    if not isinstance(bias, NkiTensor):
        if step.core.target.generation < 3:
            step.fail(
                f"bias must be a ({data.shape[0]}, 1) tensor on NeuronCore-v2, got "
                f"{described(bias)}"
            )
        return np.float32(bias)
    if bias.dtype == "tfloat32":
        step.fail("bias must not be tfloat32")
    return step.scalar("bias", bias, data, float_only=False)


def _check_range(step: Step, function: Activation, values: np.ndarray) -> None:
    """Checks the documented valid input range. NaN passes."""
    if np.isinf(function.low) and np.isinf(function.high):
        return
    magnitude = np.abs(values) if function.symmetric else values
    outside = (magnitude < function.low) | (magnitude > function.high)
    if outside.any():
        value = float(values[outside][0])
        sign = "+-" if function.symmetric else ""
        step.fail(
            f"op={function.name} is valid for inputs in {sign}[{function.low:g}, "
            f"{function.high:g}], got {value:g} (after scale and bias)"
        )


def _accumulate(
    step: Step,
    result: np.ndarray,
    data: NkiTensor,
    command: constants.reduce_cmd,
    reduction: Any,
    reduce_res: NkiTensor | None,
) -> None:
    """Updates and reads the 128 reduction registers of the Scalar Engine."""
    registers = step.core.scalar_accumulators
    lanes = slice(data.partition_start, data.partition_start + data.shape[0])
    if command in (_CMD.reset, _CMD.reset_reduce):
        registers.put(lanes, reduction.identity)
    if command in _FOLD or reduce_res is not None:
        step.check_accumulators(registers, lanes, "Scalar")
    values = registers.values[lanes]
    if command in _FOLD:
        values[:] = reduction.apply(values, reduce_free(reduction, result)[:, 0])
    if reduce_res is None:
        return
    step.check_compute(reduce_res=reduce_res)
    if reduce_res.shape[0] != data.shape[0] or reduce_res.size != data.shape[0]:
        step.fail(f"reduce_res must have shape ({data.shape[0]}, 1), got {list(reduce_res.shape)}")
    step.write("reduce_res", reduce_res, values.copy().reshape(-1, 1))


_PAIRS = (
    ("multiply", "add"),
    ("multiply", "subtract"),
    ("multiply", "bypass"),
    ("add", "bypass"),
    ("subtract", "bypass"),
    ("bypass", "bypass"),
)
_REDUCTIONS = ("add", "maximum", "minimum", "abs_max", "abs_min")


def activate2(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    imm0: Any,
    imm1: Any,
    op0: Any,
    op1: Any,
    relu_param: Any = 0.0,
    reverse0: bool = False,
    reverse1: bool = False,
    reduce_op: Any = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Any = _CMD.idle,
    name: str | None = None,
) -> NkiInstruction:
    """``op((data op0 imm0) op1 imm1)`` of NeuronCore-v4, and optionally a reduction."""
    step = Step("activate2", "scalar")
    require_generation(step.core, 4, "activate2")
    step.check_compute(dst=dst, data=data)
    step.check_same_elements(data=data, dst=dst)
    first, second = arithmetic(step, op0, "op0"), arithmetic(step, op1, "op1")
    if (first.name, second.name) not in _PAIRS:
        step.fail(f"(op0, op1) must be one of {list(_PAIRS)}, got ({first.name}, {second.name})")
    values = step.read_float("data", data)
    for stage, operand, value, reverse in (
        (first, "imm0", imm0, reverse0),
        (second, "imm1", imm1, reverse1),
    ):
        if stage.name != "bypass":
            values = apply(stage, values, step.scalar(operand, value, data), reverse)
    if operator_name(op) == "prelu":
        function_name = "prelu"
        slope = step.scalar("relu_param", relu_param, data)
        result = np.where(values >= 0, values, values * slope)
    else:
        function = activation_function(op, "activate2")
        function_name = function.name
        _check_range(step, function, values)
        result = np.asarray(function.apply(values), np.float32)
    if step.instruction is not None:
        step.instruction.attributes["op"] = function_name
    step.write("dst", dst, result)
    command = constants.member(_CMD, reduce_cmd, "reduce_cmd")
    reduction = operator(reduce_op if reduce_op is not None else "add", "activate2", "reduce_op")
    if reduction.name not in _REDUCTIONS:
        step.fail(f"reduce_op must be one of {list(_REDUCTIONS)}, got {reduction.name}")
    if reduction.name.startswith("abs_") and command in _FOLD:
        raise errors.NotSimulatedError(f"activate2 with reduce_op={reduction.name}")
    _accumulate(step, result, data, command, reduction, reduce_res)
    return step.done()
