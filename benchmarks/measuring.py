"""Timing of several candidates in turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence

SETTLE_SECONDS = 0.25
"""Pause before each turn: the worker threads of OpenMP and Eigen spin on after their last task."""

WARM_UP_SECONDS = 0.25
"""Untimed runs before each turn, as a decode loop runs on without a pause.

After a pause, steps of 2 ms take a third longer for a tenth of a second, on a virtual machine.
"""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to be timed.

    Attributes:
      name: what the table calls it.
      run: does once what is timed.
      finish: waits for what `run` left to be done, untimed.
      clock: seconds, of which the difference before and after `run` is taken.
    """

    name: str
    run: Callable[[], object]
    finish: Callable[[], object] = lambda: None
    clock: Callable[[], float] = time.perf_counter


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per run of one candidate.

    Attributes:
      turns: the median of each turn.
      shortest: the shortest run of all.
    """

    turns: tuple[float, ...]
    shortest: float

    @property
    def median(self) -> float:
        """Median over the turns."""
        return statistics.median(self.turns)

    def ratios_to(self, other: Timing) -> list[float]:
        """How many times longer than `other` this took, in each of the turns taken together."""
        pairs = zip(self.turns, other.turns, strict=True)
        return [mine / theirs for mine, theirs in pairs]

    def ratio_to(self, other: Timing) -> float:
        """The median of `ratios_to`."""
        return statistics.median(self.ratios_to(other))


def measure_in_turns(
    candidates: Sequence[Candidate], turns: int, runs: int, longest_turn: float = 2.0
) -> dict[str, Timing]:
    """Times candidates one after the other, again and again.

    Args:
      candidates: each is run for `WARM_UP_SECONDS` before each of its turns, untimed, and once at
        least.
      turns: how many turns each candidate gets.
      runs: runs per turn; fewer, but one at least, where they would take over `longest_turn`.
      longest_turn: seconds.

    Returns:
      A timing per candidate, by name.
    """
    samples: dict[str, list[list[float]]] = {candidate.name: [] for candidate in candidates}
    for _ in range(turns):
        for candidate in candidates:
            samples[candidate.name].append(_turn(candidate, runs, longest_turn))
    return {
        name: Timing(
            turns=tuple(statistics.median(turn) for turn in taken),
            shortest=min(min(turn) for turn in taken),
        )
        for name, taken in samples.items()
    }


def _turn(candidate: Candidate, runs: int, longest_turn: float) -> list[float]:
    gc.collect()
    time.sleep(SETTLE_SECONDS)
    _warm_up(candidate)
    taken: list[float] = []
    while len(taken) < runs and (not taken or sum(taken) + taken[-1] < longest_turn):
        started = candidate.clock()
        candidate.run()
        taken.append(candidate.clock() - started)
        candidate.finish()
    return taken


def _warm_up(candidate: Candidate) -> None:
    started = time.perf_counter()
    while True:
        candidate.run()
        candidate.finish()
        if time.perf_counter() - started >= WARM_UP_SECONDS:
            return
