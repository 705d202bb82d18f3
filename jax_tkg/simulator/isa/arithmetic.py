"""Applying ALU operators to operands, as the engines do."""

from typing import Any

import numpy as np

from jax_tkg.simulator.isa.operands import Step
from jax_tkg.simulator.isa.operators import Operator, operator
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor

_INTEGER = tuple(i.name for i in dtypes.DTYPES.values() if i.kind in ("int", "uint", "bool"))
WIDE_INTEGER = ("int32", "uint32")


def apply(op: Operator, left: Any, right: Any, reverse: bool) -> np.ndarray:
    """``left op right``, or ``right op left`` if reversed; unary operators ignore `right`."""
    if op.arity == 1:
        return op.apply(left)
    return op.apply(right, left) if reverse else op.apply(left, right)


def reduce_free(op: Operator, values: np.ndarray) -> np.ndarray:
    """Reduces float32 [partitions, elements] to [partitions, 1]."""
    return op.reducer.reduce(values, axis=1, keepdims=True).astype(np.float32)


def arithmetic(step: Step, op: Any, argument: str) -> Operator:
    """Returns the operator, which must not be bitwise."""
    found = operator(op, step.opcode, argument)
    if found.bitvec:
        step.fail(f"{argument}={found.name}: bitvec operators are not supported here")
    return found


def check_integers(step: Step, op: Operator, **tensors: NkiTensor | None) -> None:
    """Checks that all operands of a bitvec operator are integers: it does not cast."""
    for operand, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in _INTEGER:
            step.fail(f"{op.name} needs integers, but {operand} is {tensor.dtype}")


def bitvec_scalar(step: Step, operand: str, value: Any, data: NkiTensor) -> np.ndarray:
    """Returns the integer scalar or column of a bitvec instruction, in the dtype of `data`."""
    storage = dtypes.info(data.dtype).storage
    if isinstance(value, NkiTensor):
        step.check_compute(**{operand: value})
        if value.shape[0] != data.shape[0] or value.size != value.shape[0]:
            step.fail(f"{operand} must have shape ({data.shape[0]}, 1), got {list(value.shape)}")
        return step.read_rows(operand, value).astype(storage)
    if isinstance(value, float) and not value.is_integer():
        step.fail(f"{operand} of a bitvec operator must be an integer, got {value}")
    return np.array([[int(value)]], np.int64).astype(storage)
