"""What the two cores of a logical core do to the HBM tensors that they share, in program order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np

from jax_tkg.simulator.machine.machine import Machine
from jax_tkg.simulator.machine.record import Access, Instruction


@dataclasses.dataclass
class Use:
    """One access to a shared tensor.

    Attributes:
      core: 0 or 1.
      instruction: what accesses it.
      access: the bytes.
      meetings: how many meetings about this tensor its core had passed; half a meeting more for an
        access of a meeting itself.
    """

    core: int
    instruction: Instruction
    access: Access
    meetings: float

    @functools.cached_property
    def fingerprint(self) -> tuple:
        """Equal for writes of equal values to the same place between the same meetings."""
        access = self.access
        rows = None if access.row_offsets is None else access.row_offsets.tobytes()
        where = (access.offset, access.shape, access.strides, access.itemsize, rows)
        return (self.instruction.epoch, where, access.digest)

    def __str__(self) -> str:
        verb = "writes" if self.access.is_write else "reads"
        return (
            f"core {self.core} {verb} {self.access.operand} of {self.instruction.opcode} at "
            f"{self.instruction.where}"
        )


def shared_uses(
    machine: Machine, rank: int, met: Callable[[Instruction], Iterable[int]]
) -> dict[int, list[Use]]:
    """The accesses to each shared tensor that is written, in program order of each core.

    Args:
      machine: after a run.
      rank: whose cores.
      met: the storages of the tensors that an instruction is a meeting about.

    Returns:
      The uses by storage.
    """
    uses: dict[int, list[Use]] = {}
    written: set[int] = set()
    for core in range(machine.lnc):
        passed: dict[int, int] = {}
        for instruction in machine.cores[(rank, core)].instructions:
            meeting = set(met(instruction))
            for access in instruction.accesses:
                if access.space != "hbm" or access.core is not None:
                    continue
                count = passed.get(access.storage, 0) + 0.5 * (access.storage in meeting)
                uses.setdefault(access.storage, []).append(Use(core, instruction, access, count))
                if access.is_write:
                    written.add(access.storage)
            for storage in meeting:
                passed[storage] = passed.get(storage, 0) + 1
    return {storage: found for storage, found in uses.items() if storage in written}


def overlap(one: Access, other: Access) -> bool:
    """Whether two accesses to one allocation touch a common byte."""
    low, high = _extent(one)
    other_low, other_high = _extent(other)
    start, end = max(low, other_low), min(high, other_high)
    if start >= end:
        return False
    if _is_dense(one) and _is_dense(other):
        return True
    return bool((_touched(one, start, end) & _touched(other, start, end)).any())


def _extent(access: Access) -> tuple[int, int]:
    rows = access.row_offsets
    if rows is None:
        return access.byte_start, access.byte_end
    if not len(rows):
        return 0, 0
    row = access.byte_end - access.byte_start - (access.shape[0] - 1) * access.strides[0]
    start = access.byte_start
    return start + int(min(rows)), start + int(max(rows)) + row


def _is_dense(access: Access) -> bool:
    is_whole = access.row_offsets is None
    return is_whole and access.nbytes == access.byte_end - access.byte_start


def _touched(access: Access, start: int, end: int) -> np.ndarray:
    """Which of the bytes start..end of the allocation an access touches."""
    low, high = _extent(access)
    bytes_touched = np.zeros(high - low, bool)
    shape = (*access.shape, access.itemsize)
    strides = (*access.strides, 1)
    rows = access.row_offsets
    if rows is None:
        np.ndarray(shape, bool, bytes_touched, 0, strides)[...] = True
    else:
        first = int(min(rows))
        for row in rows:
            np.ndarray(shape[1:], bool, bytes_touched, int(row) - first, strides[1:])[...] = True
    return bytes_touched[start - low : end - low]
