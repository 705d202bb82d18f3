"""Races between the two cores of a logical core on HBM that they share.

Two accesses of different cores race if they touch the same byte, at least one writes, and nothing
orders them. With ``ordering="program"``, a meeting of the cores (a barrier, an exchange or a
collective) orders every access before it in either program with every access after it. With
``ordering="dependencies"``, only a chain of data dependencies and meetings orders two accesses (see
`dependencies`): the compiler may start an instruction before an earlier one that it does not depend
on, so a barrier orders the accesses to its `data` and nothing else. Both orderings are derived from
the recorded program, never from the timing of threads, so every run reports the same races.

Kernels often let both cores write the same values to the same place, and each core then reads after
its own write. The bytes are the same whichever write comes last, so such twin writes do not race.
"""

import collections

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.machine import Machine
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.ordering.dependencies import DependencyGraph, is_meeting
from jax_tkg.simulator.ordering.shared_hbm import Use, overlap, shared_uses


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


def _races_of(machine: Machine, rank: int) -> list[str]:
    graph = DependencyGraph(machine, rank, is_meeting)

    def is_ordered(write: Use, peer: Use) -> bool:
        """Whether a meeting, or a chain of dependencies, leads from one to the other."""
        if write.instruction.epoch == peer.instruction.epoch:
            return False
        if machine.options.ordering == "program" or write.meetings != peer.meetings:
            return True
        forward = write.instruction.epoch < peer.instruction.epoch
        return graph.leads(write.instruction, peer.instruction, forward)

    messages: list[str] = []
    for uses in shared_uses(machine, rank, _met).values():
        twins = _twins(uses)
        first, second = ([u for u in uses if u.core == core] for core in (0, 1))
        for one in first:
            for other in second:
                if _is_conflict(one, other, twins):
                    write, peer = (one, other) if one.access.is_write else (other, one)
                    if not is_ordered(write, peer):
                        messages.append(_describe(one, other))
    return list(collections.OrderedDict.fromkeys(messages))


def _met(instruction: Instruction) -> tuple[int, ...]:
    return instruction.attributes.get("meeting", ())


def _twins(uses: list[Use]) -> dict[tuple[int, tuple], int]:
    """The index of each core's first write of some values to a place, by core and fingerprint."""
    twins: dict[tuple[int, tuple], int] = {}
    for use in uses:
        if use.access.is_write:
            twins.setdefault((use.core, use.fingerprint), use.instruction.index)
    return twins


def _is_conflict(one: Use, other: Use, twins: dict[tuple[int, tuple], int]) -> bool:
    """Whether two accesses of different cores must be ordered."""
    if not (one.access.is_write or other.access.is_write):
        return False
    harmless = all(
        _is_benign(write, peer, twins)
        for write, peer in ((one, other), (other, one))
        if write.access.is_write
    )
    return not harmless and overlap(one.access, other.access)


def _is_benign(write: Use, peer: Use, twins: dict[tuple[int, tuple], int]) -> bool:
    """Whether a write cannot affect the other core's access, because that core wrote the same
    values itself earlier."""
    own = twins.get((peer.core, write.fingerprint))
    if own is None:
        return False
    if peer.access.is_write and peer.fingerprint == write.fingerprint:
        return True
    return own < peer.instruction.index


def _describe(one: Use, other: Use) -> str:
    tensor = one.access.name
    return f"race on HBM tensor {tensor!r}: {one}, {other}, and nothing orders the two"
