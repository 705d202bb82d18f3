"""The check that AWS's compiler makes where a kernel has `enable_core_barrier_checker()`.

At LNC 2, consider each pair of accesses, one by each core, to the same bytes of shared HBM, at
least one of which writes. A `core_barrier` must stand between the two: after the one access on its
core, and before the other access on the other core. The barrier must run on the same engine of both
cores. Exchanges and collectives, which satisfy the race detector (`races`), do not count, and
neither does the fact that both cores write equal values.

``Options(ordering=...)`` defines "before" and "after", as for races: program order, or only the
order that the barrier's `data` and other dependencies impose.

Source: the docstring of `Kernel.enable_core_barrier_checker` in nki/framework/kernel.py of the nki
package. AWS's check works on the compiled kernel and may be stricter about addresses that are
known only at run time; this one uses their values.
"""

import collections

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.machine import Machine
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.ordering.dependencies import DependencyGraph
from jax_tkg.simulator.ordering.shared_hbm import Use, overlap, shared_uses

Node = tuple[int, int]


def check(machine: Machine) -> None:
    """Reports all pairs of accesses of a finished run that have no core barrier between them.

    Raises:
      RaceError: there is one, and the options say "error".
    """
    for rank in range(machine.ranks):
        for message in _unseparated(machine, rank):
            if machine.options.core_barriers == "error":
                raise errors.RaceError(message)
            machine.report("core_barrier", message)


def _unseparated(machine: Machine, rank: int) -> list[str]:
    barriers = _common_barriers(machine, rank)
    passed = {core: _passed(machine, rank, core, barriers) for core in range(machine.lnc)}

    def counts(instruction: Instruction) -> bool:
        return (instruction.core, instruction.index) in barriers

    def met(instruction: Instruction) -> tuple[int, ...]:
        return instruction.attributes["meeting"] if counts(instruction) else ()

    graph = DependencyGraph(machine, rank, counts)

    def is_separated(one: Use, other: Use) -> bool:
        before, behind = (passed[use.core][use.instruction.index] for use in (one, other))
        if before == behind:
            return False
        if machine.options.ordering == "program" or one.meetings != other.meetings:
            return True
        return graph.leads(one.instruction, other.instruction, before < behind)

    messages: list[str] = []
    for uses in shared_uses(machine, rank, met).values():
        first, second = ([u for u in uses if u.core == core] for core in (0, 1))
        for one in first:
            for other in second:
                if not (one.access.is_write or other.access.is_write):
                    continue
                if overlap(one.access, other.access) and not is_separated(one, other):
                    messages.append(_describe(one, other))
    return list(collections.OrderedDict.fromkeys(messages))


def _common_barriers(machine: Machine, rank: int) -> set[Node]:
    """The barriers that run on the same engine of both cores, by core and index."""
    calls = (
        [i for i in machine.cores[(rank, core)].instructions if i.opcode == "core_barrier"]
        for core in range(machine.lnc)
    )
    return {
        (each.core, each.index)
        for pair in zip(*calls, strict=True)
        if len({barrier.engine for barrier in pair}) == 1
        for each in pair
    }


def _passed(machine: Machine, rank: int, core: int, barriers: set[Node]) -> list[int]:
    """How many of the barriers stand before each instruction of a core."""
    counts, count = [], 0
    for instruction in machine.cores[(rank, core)].instructions:
        counts.append(count)
        count += (core, instruction.index) in barriers
    return counts


def _describe(one: Use, other: Use) -> str:
    return (
        f"HBM tensor {one.access.name!r} without a core barrier: {one}, {other}, and no "
        "core_barrier on the same engine of both cores stands between the two"
    )
