"""The device loops of a core: its position in them, and the rule that cores take equal turns.

The simulator calls a loop's body in Python once per turn. The compiler traces the body once, and
the device repeats that one copy of its instructions. So a tensor that is allocated in the body
exists only there. The two cores of a logical core must have identical control flow, so they must
make equal numbers of turns.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from jax_tkg.simulator import errors

Scope = tuple[tuple[int, int], ...]
"""The turns that a core is in, outermost first. A turn is the number of its loop within the
enclosing turn (or within the program), and its number within the loop. Empty outside all loops."""


@dataclasses.dataclass
class LoopRun:
    """One execution of a loop.

    Attributes:
      opcode: "fori_loop", "while_loop" or "dynamic_range".
      where: file and line of the call.
      turns: its number of turns; None while a `while_loop` runs.
    """

    opcode: str
    where: str
    turns: int | None


class DeviceLoops:
    """The loops of one core.

    Attributes:
      scope: the turns that the core is in.
      runs: the loops that the core has entered, in order.
      keeps_order: whether it is in an `nl.no_reorder` block.
    """

    def __init__(self) -> None:
        self.scope: Scope = ()
        self.runs: list[LoopRun] = []
        self.keeps_order = False
        # Loops entered so far in the turn around, by nesting.
        self._entered = [0]

    @contextlib.contextmanager
    def loop(self, opcode: str, where: str, turns: int | None) -> Iterator[LoopRun]:
        """A loop, from before its first turn until after its last.

        Raises:
          NkiValidationError: the core is in an `nl.no_reorder` block.
        """
        if self.keeps_order:
            raise errors.NkiValidationError(
                f"{opcode}: a loop on the device cannot be inside nl.no_reorder(): put the "
                f"no_reorder block into the loop's body ({where})"
            )
        run = LoopRun(opcode, where, turns)
        self.runs.append(run)
        around = self.scope
        try:
            yield run
        finally:
            self.scope = around
            self._entered[-1] += 1

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """One turn of the innermost loop."""
        around = self.scope
        self.scope = (*around, (self._entered[-1], number))
        self._entered.append(0)
        try:
            yield
        finally:
            self._entered.pop()
            self.scope = around


def loop_of(scope: Scope) -> tuple[int, ...]:
    """Identifies the innermost loop of a scope, whatever the turn."""
    return tuple(loop for loop, _ in scope)


def check_equal_turns(rank: int, cores: Sequence[DeviceLoops], finished: bool) -> None:
    """Checks that the cores of a rank run the same loops with equal numbers of turns.

    Args:
      rank: whose cores.
      cores: their loops.
      finished: whether both programs ended. If not, only loops that both entered are compared.

    Raises:
      PeerMismatchError: they do not.
    """
    if len(cores) < 2:
        return
    for first, second in zip(*(loops.runs for loops in cores), strict=False):
        if None not in (first.turns, second.turns) and first.turns != second.turns:
            raise errors.PeerMismatchError(
                f"{first.opcode}: core 0 of rank {rank} makes {first.turns} turns at "
                f"{first.where}, but core 1 {second.turns} at {second.where}; both cores must "
                "make equal numbers of turns"
            )
    counts = [len(loops.runs) for loops in cores]
    if finished and len(set(counts)) > 1:
        more = counts.index(max(counts))
        extra = cores[more].runs[min(counts)]
        raise errors.PeerMismatchError(
            f"{extra.opcode}: core {more} of rank {rank} runs the loop at {extra.where}, but core "
            f"{1 - more} does not; the cores must run the same loops on the device"
        )
