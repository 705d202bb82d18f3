"""The peak use of SBUF and PSUM by the live tensors of a recorded run.

A tensor is live from its first to its last use in program order. Tensors with addresses count as
the bytes that they cover together. The compiler places the others, so their sizes are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jax_tkg.simulator.machine.record import Instruction


@dataclasses.dataclass(frozen=True)
class HighWater:
    """The fullest moment of one memory.

    Attributes:
      partition_bytes: bytes needed in the fullest partition's row.
      instruction: the first instruction at that moment, or None if the memory is not used.
    """

    partition_bytes: int
    instruction: Instruction | None


@dataclasses.dataclass
class _Life:
    first: int
    last: int
    address: int | None
    row_bytes: int


def high_water(stream: Iterable[Instruction], space: str) -> HighWater:
    """The most bytes per partition of "sbuf" or "psum" that live tensors of one core need."""
    program = list(stream)
    lives: dict[int, _Life] = {}
    for position, instruction in enumerate(program):
        for access in instruction.accesses:
            if access.space != space:
                continue
            life = lives.setdefault(
                access.storage, _Life(position, position, access.address, access.row_bytes)
            )
            life.last = position
    starts: dict[int, list[_Life]] = {}
    ends: dict[int, list[_Life]] = {}
    for life in lives.values():
        starts.setdefault(life.first, []).append(life)
        ends.setdefault(life.last + 1, []).append(life)
    best = HighWater(0, None)
    floating = 0
    placed: list[tuple[int, int]] = []
    for position in sorted({*starts, *ends}):
        for life in ends.get(position, ()):
            if life.address is None:
                floating -= life.row_bytes
            else:
                placed.remove((life.address, life.address + life.row_bytes))
        for life in starts.get(position, ()):
            if life.address is None:
                floating += life.row_bytes
            else:
                placed.append((life.address, life.address + life.row_bytes))
        total = floating + _covered(placed)
        if total > best.partition_bytes:
            best = HighWater(total, program[position])
    return best


def _covered(ranges: list[tuple[int, int]]) -> int:
    """Bytes in the union of ranges."""
    total, reached = 0, 0
    for start, end in sorted(ranges):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
