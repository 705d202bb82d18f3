"""Applying ALU operators to operands, as the engines do."""

from typing import Any

import numpy as np

from jax_tkg.simulator.isa.operands import Step
from jax_tkg.simulator.isa.operators import Operator, operator
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.addressing import VirtualRegister
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

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


def check_no_operand(step: Step, op: Operator, operand: str, value: Any) -> None:
    """Checks the second operand of a unary operator, which has none: it must be None or 0."""
    if value is not None and (isinstance(value, NkiTensor) or value != 0):
        step.fail(f"{operand} must be None or 0 for the unary {op.name}, got {described(value)}")


def apply_bits(op: Operator, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Applies a binary bitvec operator to elements in their storage dtypes.

    Operands of equal size are bit patterns, whatever their signs. AWS's documentation does not say
    how operands of different sizes meet; they keep their values here.
    """
    if left.dtype.itemsize == right.dtype.itemsize:
        right = right.view(left.dtype)
    return op.apply(left, right)


def write_bits(step: Step, operand: str, tensor: NkiTensor, values: np.ndarray) -> None:
    """Writes the result of a bitvec operator: as it is, if the sizes of the elements are equal."""
    bits = dtypes.info(tensor.dtype).bits
    if values.dtype.itemsize == bits.itemsize:
        step.write_exact(operand, tensor, values.view(bits))
    else:
        step.write(operand, tensor, values)


def bitvec_scalar(step: Step, operand: str, value: Any, data: NkiTensor) -> np.ndarray:
    """Returns the integer scalar or column of a bitvec instruction, in the dtype of `data`."""
    storage = dtypes.info(data.dtype).storage
    if isinstance(value, NkiTensor):
        step.check_compute(**{operand: value})
        if value.shape[0] != data.shape[0] or value.size != value.shape[0]:
            step.fail(f"{operand} must have shape ({data.shape[0]}, 1), got {list(value.shape)}")
        return step.read_rows(operand, value).astype(storage)
    is_integer = isinstance(value, (bool, int, np.integer, VirtualRegister))
    if not is_integer and not (isinstance(value, (float, np.floating)) and value.is_integer()):
        step.fail(f"{operand} of a bitvec operator must be an integer, got {described(value)}")
    number = step.read_register(value) if isinstance(value, VirtualRegister) else int(value)
    return np.array([[number]], np.int64).astype(storage)
