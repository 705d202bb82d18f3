"""Races between the two cores of a logical core on HBM that they share.

Two accesses of different cores race if they touch the same byte, at least one writes, and nothing
orders them. Under ``ordering="program"`` a meeting of the cores (a barrier, an exchange, a
collective) orders all that stands before it in either program with all that stands after it. Under
``ordering="dependencies"`` only a chain of data dependencies and meetings does (see
`dependencies`): the compiler may start an instruction before an earlier one that it does not
depend on, so a barrier orders what its `data` depends on, and no more. Both look at the recorded
program and never at the timing of threads, so a race is reported on every run.

Kernels often let both cores write the same values to the same place, and each read on after its
own write. Whichever write comes last, the bytes are the same, so such twin writes do not race.
"""

import collections
import dataclasses

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.machine import Machine
from jax_tkg.simulator.machine.record import Access, Instruction
from jax_tkg.simulator.ordering.dependencies import DependencyGraph


def check(machine: Machine) -> None:
    """Reports all races of a finished run.

    Raises:
      RaceError: there is one, and the options say "error".
    """
    for rank in range(machine.ranks):
        for message in _races_of(machine, rank):
            if machine.options.races == "error":
                raise errors.RaceError(message)
            machine.report("race", message)


@dataclasses.dataclass(slots=True)
class _Use:
    """One access to a shared tensor.

    Attributes:
      meetings: how many meetings about this tensor its core had passed; half a meeting more for an
        access of a meeting itself.
      fingerprint: equal for writes of equal values to the same place between the same meetings.
    """

    core: int
    instruction: Instruction
    access: Access
    meetings: float
    fingerprint: tuple


def _races_of(machine: Machine, rank: int) -> list[str]:
    graph: DependencyGraph | None = None
    reached: dict[tuple[int, int, bool], set[tuple[int, int]]] = {}

    def is_ordered(write: _Use, peer: _Use) -> bool:
        """Whether a meeting, or a chain of dependencies, leads from one to the other."""
        nonlocal graph
        if write.instruction.epoch == peer.instruction.epoch:
            return False
        if machine.options.ordering == "program" or write.meetings != peer.meetings:
            return True
        forward = write.instruction.epoch < peer.instruction.epoch
        graph = graph or DependencyGraph(machine, rank)
        key = (write.core, write.instruction.index, forward)
        if key not in reached:
            reached[key] = graph.reachable(key[:2], forward)
        return (peer.core, peer.instruction.index) in reached[key]

    messages: list[str] = []
    for uses in _shared_uses(machine, rank).values():
        twins = _twins(uses)
        first, second = ([u for u in uses if u.core == core] for core in (0, 1))
        for one in first:
            for other in second:
                if _is_conflict(one, other, twins):
                    write, peer = (one, other) if one.access.is_write else (other, one)
                    if not is_ordered(write, peer):
                        messages.append(_describe(one, other))
    return list(collections.OrderedDict.fromkeys(messages))


def _shared_uses(machine: Machine, rank: int) -> dict[int, list[_Use]]:
    """The accesses to every shared tensor that is written, in program order of each core."""
    uses: dict[int, list[_Use]] = {}
    written: set[int] = set()
    for core in range(machine.lnc):
        passed: dict[int, int] = {}
        for instruction in machine.cores[(rank, core)].instructions:
            meeting = instruction.attributes.get("meeting", ())
            for access in instruction.accesses:
                if access.space != "hbm" or access.core is not None:
                    continue
                count = passed.get(access.storage, 0) + 0.5 * (access.storage in meeting)
                mark = _fingerprint(instruction, access)
                use = _Use(core, instruction, access, count, mark)
                uses.setdefault(access.storage, []).append(use)
                if access.is_write:
                    written.add(access.storage)
            for storage in set(meeting):
                passed[storage] = passed.get(storage, 0) + 1
    return {storage: found for storage, found in uses.items() if storage in written}


def _fingerprint(instruction: Instruction, access: Access) -> tuple:
    rows = None if access.rows is None else access.rows.tobytes()
    where = (access.offset, access.shape, access.strides, access.itemsize, rows)
    return (instruction.epoch, where, access.digest)


def _twins(uses: list[_Use]) -> dict[tuple[int, tuple], int]:
    """For writes of one core: the index of the other core's first write of the same values to the
    same place, by the other core and the fingerprint."""
    twins: dict[tuple[int, tuple], int] = {}
    for use in uses:
        if use.access.is_write:
            twins.setdefault((use.core, use.fingerprint), use.instruction.index)
    return twins


def _is_conflict(one: _Use, other: _Use, twins: dict[tuple[int, tuple], int]) -> bool:
    """Whether two accesses of different cores must be ordered."""
    if not (one.access.is_write or other.access.is_write):
        return False
    harmless = all(
        _is_benign(write, peer, twins)
        for write, peer in ((one, other), (other, one))
        if write.access.is_write
    )
    return not harmless and _overlap(one.access, other.access)


def _is_benign(write: _Use, peer: _Use, twins: dict[tuple[int, tuple], int]) -> bool:
    """Whether a write cannot change what the other core's access sees or leaves: that core has
    written the same itself, before."""
    own = twins.get((peer.core, write.fingerprint))
    if own is None:
        return False
    if peer.access.is_write and peer.fingerprint == write.fingerprint:
        return True
    return own < peer.instruction.index


def _describe(one: _Use, other: _Use) -> str:
    sides = [
        f"core {use.core} {'writes' if use.access.is_write else 'reads'} {use.access.operand} of "
        f"{use.instruction.opcode} at {use.instruction.where}"
        for use in (one, other)
    ]
    tensor = one.access.name
    return f"race on HBM tensor {tensor!r}: {sides[0]}, {sides[1]}, and nothing orders the two"


def _overlap(one: Access, other: Access) -> bool:
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
    if access.rows is None:
        return access.byte_start, access.byte_end
    if not len(access.rows):
        return 0, 0
    row = access.byte_end - access.byte_start - (access.shape[0] - 1) * access.strides[0]
    start = access.byte_start
    return start + int(min(access.rows)), start + int(max(access.rows)) + row


def _is_dense(access: Access) -> bool:
    return access.rows is None and access.nbytes == access.byte_end - access.byte_start


def _touched(access: Access, start: int, end: int) -> np.ndarray:
    """Which of the bytes start..end of the allocation an access touches."""
    low, high = _extent(access)
    bytes_touched = np.zeros(high - low, bool)
    shape = (*access.shape, access.itemsize)
    strides = (*access.strides, 1)
    if access.rows is None:
        np.ndarray(shape, bool, bytes_touched, 0, strides)[...] = True
    else:
        first = int(min(access.rows))
        for row in access.rows:
            np.ndarray(shape[1:], bool, bytes_touched, int(row) - first, strides[1:])[...] = True
    return bytes_touched[start - low : end - low]
