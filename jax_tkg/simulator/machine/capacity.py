"""Checks that the tensors that are alive at the same time fit in SBUF and PSUM.

A tensor is alive from its first write to its last use in program order. The compiler places tensors
without an address, and can reuse their bytes outside that time. So at every instruction the sizes
of these live tensors, plus the bytes that live tensors at explicit addresses cover, must fit. This
is a lower bound of what any placement needs; a real compiler may need more.
"""

import heapq

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.machine import Core, Machine
from jax_tkg.simulator.memory.storage import Lifetime


def check(machine: Machine) -> None:
    """Checks every core of a finished run.

    Raises:
      CapacityError: something does not fit, and the options say "error".
    """
    for core in machine.cores.values():
        for space in ("sbuf", "psum"):
            message = _overflow(core, space)
            if message is None:
                continue
            if machine.options.capacity == "error":
                raise errors.CapacityError(message)
            machine.report("capacity", message)


def peak_bytes(core: Core, space: str) -> int:
    """Returns the largest number of bytes per partition that live tensors need at one time."""
    return _peak(core, space)[0]


def _used(core: Core, space: str) -> list[Lifetime]:
    return [s for s in core.memory.lifetimes if s.space == space and s.first_use is not None]


def _peak(core: Core, space: str) -> tuple[int, int]:
    """Peak bytes per partition, and the instruction at which it is reached."""
    lifetimes = sorted(_used(core, space), key=lambda s: s.first_use or 0)
    best, when = 0, 0
    floating = 0
    covered = np.zeros(core.memory.partition_bytes(space), np.int32)
    ends: list[tuple[int, int, Lifetime]] = []
    placed_bytes = 0
    for life in lifetimes:
        assert life.first_use is not None
        assert life.last_use is not None
        changed = False
        while ends and ends[0][0] < life.first_use:
            gone = heapq.heappop(ends)[2]
            if gone.address is None:
                floating -= gone.row_bytes
            else:
                covered[gone.address : gone.address + gone.row_bytes] -= 1
                changed = True
        heapq.heappush(ends, (life.last_use, life.number, life))
        if life.address is None:
            floating += life.row_bytes
        else:
            covered[life.address : life.address + life.row_bytes] += 1
            changed = True
        if changed:
            placed_bytes = int(np.count_nonzero(covered))
        if floating + placed_bytes > best:
            best, when = floating + placed_bytes, life.first_use
    return best, when


def _overflow(core: Core, space: str) -> str | None:
    capacity = core.memory.partition_bytes(space)
    peak, when = _peak(core, space)
    if peak <= capacity:
        return None
    live = [
        s
        for s in _used(core, space)
        if s.first_use is not None and s.first_use <= when <= (s.last_use or 0)
    ]
    largest = sorted(live, key=lambda s: -s.row_bytes)[:3]
    where = ""
    if core.machine.keeps_record:
        where = f" ({core.instructions[when].opcode} at {core.instructions[when].where})"
    return (
        f"{space.upper()} of {core}: live tensors need {peak} bytes per partition at instruction "
        f"{when}{where}, but {core.target.name} has {capacity}; the largest are "
        + ", ".join(f"{s.row_bytes} bytes of the {s.label}" for s in largest)
    )
