"""Checks of operands that all engines share: memories, dtypes, shapes, access patterns, engines."""

from collections.abc import Sequence
from typing import Any, NoReturn

from jax_tkg.hardware import PARTITIONS
from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.machine.machine import Core
from jax_tkg.simulator.memory.layout import merge_contiguous
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

# Sizes and strides of access patterns are 16-bit fields of an instruction.
_PATTERN_FIELD_LIMIT = 1 << 16
_MAX_FREE_DIMS = 4


class OperandChecks:
    """The checks of one instruction. Each raises NkiValidationError for a broken limit.

    Attributes:
      opcode: the name of the instruction, for messages.
      core: the core that executes it.
    """

    __slots__ = ("core", "opcode")

    def __init__(self, opcode: str, core: Core):
        self.opcode = opcode
        self.core = core

    def fail(self, message: str) -> NoReturn:
        """Raises the error for a broken limit.

        Raises:
          NkiValidationError: always.
        """
        file, line = caller()
        raise errors.NkiValidationError(f"{self.opcode}: {message} ({file}:{line})")

    def check_spaces(self, allowed: Sequence[str], **tensors: Any) -> None:
        """Checks that the operands are in one of the allowed memories."""
        for operand, tensor in tensors.items():
            if not isinstance(tensor, NkiTensor):
                if tensor is None:
                    continue
                self.fail(f"{operand} must be a tensor, got {described(tensor)}")
            space = tensor.storage.space if tensor.storage is not None else tensor.buffer.value
            if space not in allowed:
                self.fail(
                    f"{operand} must be in {' or '.join(s.upper() for s in allowed)}, "
                    f"got {tensor.label}"
                )

    def check_compute(self, **tensors: NkiTensor | None) -> None:
        """Checks the operands of a compute engine.

        They must be in SBUF or PSUM, and follow the rules for start partition and access pattern.
        """
        for operand, tensor in tensors.items():
            if tensor is None:
                continue
            if not isinstance(tensor, NkiTensor) or not tensor.on_chip:
                self.fail(f"{operand} must be a tensor in SBUF or PSUM, got {described(tensor)}")
            self.check_start_partition(operand, tensor)
            self.check_pattern(operand, tensor)

    def check_start_partition(self, operand: str, tensor: NkiTensor) -> None:
        """Checks the start partition.

        An access of more than 64 partitions starts at 0, an access of 33 to 64 at 0 or 64, and an
        access of up to 32 at 0, 32, 64 or 96 (architecture guide, cross-partition connectivity).
        """
        count = tensor.shape[0]
        start = tensor.partition_start
        if start == 0:
            return
        step = PARTITIONS if count > 64 else 64 if count > 32 else 32
        if start % step:
            allowed = list(range(0, PARTITIONS, step))
            self.fail(
                f"{operand} {tensor.label} with {count} partitions must start at partition "
                f"{' or '.join(map(str, allowed))}, got {start}"
            )

    def check_pattern(self, operand: str, tensor: NkiTensor) -> None:
        """Checks that there are at most 4 free dimensions, with sizes and strides of 16 bits."""
        if len(tensor.shape) <= 2 and tensor.shape[-1] < _PATTERN_FIELD_LIMIT:
            return
        dims = merge_contiguous(tensor.shape[1:], tensor.strides[1:])
        if len(dims) > _MAX_FREE_DIMS:
            self.fail(
                f"{operand} {tensor.label} has {len(dims)} free dimensions after merging "
                f"contiguous ones, but an access pattern has at most {_MAX_FREE_DIMS}"
            )
        for size, stride in zip(tensor.shape[1:], tensor.strides[1:], strict=True):
            if size >= _PATTERN_FIELD_LIMIT or (size > 1 and stride >= _PATTERN_FIELD_LIMIT):
                self.fail(
                    f"{operand} {tensor.label}: size {size} and stride {stride} of an access "
                    f"pattern must be below {_PATTERN_FIELD_LIMIT}"
                )

    def check_same_partitions(self, **tensors: NkiTensor | None) -> None:
        """Checks that all tensors have the same number of partitions."""
        items = [(o, t) for o, t in tensors.items() if t is not None]
        first_operand, first = items[0]
        for operand, tensor in items[1:]:
            if tensor.shape[0] != first.shape[0]:
                self.fail(
                    f"{operand} must have as many partitions as {first_operand} "
                    f"({first.shape[0]}), got {tensor.shape[0]}"
                )

    def check_same_elements(self, **tensors: NkiTensor | None) -> None:
        """Checks that partitions and elements per partition agree."""
        self.check_same_partitions(**tensors)
        items = [(o, t) for o, t in tensors.items() if t is not None]
        first_operand, first = items[0]
        for operand, tensor in items[1:]:
            if tensor.size != first.size:
                self.fail(
                    f"{operand} must have as many elements per partition as {first_operand} "
                    f"({first.size // first.shape[0]}), got {tensor.size // tensor.shape[0]} "
                    f"({operand} {list(tensor.shape)}, {first_operand} {list(first.shape)})"
                )

    def check_not_both_psum(self, **tensors: Any) -> None:
        """Checks that two inputs are not both in PSUM."""
        if all(isinstance(t, NkiTensor) and t.buffer.value == "psum" for t in tensors.values()):
            self.fail(f"{' and '.join(tensors)} cannot both be in PSUM")

    def check_dtype(self, allowed: Sequence[str], **tensors: NkiTensor | None) -> None:
        """Checks the operands' dtypes."""
        for operand, tensor in tensors.items():
            if tensor is not None and tensor.dtype not in allowed:
                self.fail(f"{operand} must be of {' or '.join(allowed)}, got {tensor.dtype}")

    def check_engine(self, engine: Any, allowed: Sequence[str], default: str) -> tuple[str, bool]:
        """Returns the engine of an instruction, and whether the kernel chose it."""
        chosen = constants.member(constants.engine, engine, "engine")
        if chosen is constants.engine.unknown:
            return default, False
        if chosen.name not in allowed:
            self.fail(f"engine must be one of {list(allowed)}, got {chosen.name}")
        return chosen.name, True
