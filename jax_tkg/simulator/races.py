"""Races between the two cores of a logical core on HBM that they share.

The cores are ordered only where they meet: at barriers, exchanges and collectives. Every
instruction carries the number of meetings its core has passed (its epoch), so two accesses of
different cores are ordered if and only if their epochs differ. Two unordered accesses race if they
touch the same byte and at least one writes. This looks at the program's order and never at the
timing of threads, so a race is reported on every run.

Kernels often let both cores write the same values to the same place, and each read on after its
own write. Whichever write comes last, the bytes are the same, so such twin writes do not race.
"""

import collections

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine import Machine
from jax_tkg.simulator.record import Access, Instruction


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


_Use = tuple[Instruction, Access]


def _races_of(machine: Machine, rank: int) -> list[str]:
    uses: dict[tuple[int, int], tuple[list[_Use], list[_Use]]] = {}
    written: set[int] = set()
    for core in range(machine.lnc):
        for instruction in machine.cores[(rank, core)].instructions:
            for access in instruction.accesses:
                if access.space == "hbm" and access.core is None:
                    key = (access.storage, instruction.epoch)
                    uses.setdefault(key, ([], []))[core].append((instruction, access))
                    if access.is_write:
                        written.add(access.storage)
    messages: list[str] = []
    for (storage, _), (first, second) in uses.items():
        if storage in written and first and second:
            messages += _conflicts(first, second)
    return list(collections.OrderedDict.fromkeys(messages))


def _twins(first: list[_Use], second: list[_Use]) -> dict[int, int]:
    """For a write of one core, when the other core wrote the same values to the same place: the
    index of that instruction, by the identity of the access."""
    twins: dict[int, int] = {}
    for mine, theirs in ((first, second), (second, first)):
        places = {_fingerprint(a): i.index for i, a in reversed(theirs) if a.is_write}
        for _, access in mine:
            if access.is_write and _fingerprint(access) in places:
                twins[id(access)] = places[_fingerprint(access)]
    return twins


def _fingerprint(access: Access) -> tuple:
    rows = None if access.rows is None else access.rows.tobytes()
    return (access.offset, access.shape, access.strides, access.itemsize, rows, access.digest)


def _is_benign(write: Access, other: Instruction, peer: Access, twins: dict[int, int]) -> bool:
    """Whether a write cannot change what the other core's access sees or leaves."""
    if id(write) not in twins:
        return False
    if peer.is_write:
        return _fingerprint(write) == _fingerprint(peer)
    return twins[id(write)] < other.index


def _conflicts(first: list[_Use], second: list[_Use]) -> list[str]:
    messages = []
    twins = _twins(first, second)
    for one, access in first:
        for other, peer in second:
            if not (access.is_write or peer.is_write) or not _overlap(access, peer):
                continue
            harmless = [
                _is_benign(write, instruction, against, twins)
                for write, instruction, against in ((access, other, peer), (peer, one, access))
                if write.is_write
            ]
            if not all(harmless):
                messages.append(
                    f"race on HBM tensor {access.name!r}: core 0 "
                    f"{'writes' if access.is_write else 'reads'} {access.operand} of "
                    f"{one.opcode} at {one.where}, core 1 "
                    f"{'writes' if peer.is_write else 'reads'} {peer.operand} of "
                    f"{other.opcode} at {other.where}, and nothing orders the two"
                )
    return messages


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
