"""What each part of a schedule waited for: the chains that lead to its moments.

An event holds several resources, and lets each go at a time of its own: the Tensor Engine loads the
next stationary tile while a product runs, and each DMA engine ends with its own part of a transfer.
So a chain consists of parts of events. What a part waited for need not be what delayed the event.
"""

from __future__ import annotations

import dataclasses

Free = tuple[float, int | None]
"""When something is free, and the number of the `Wait` that ends then."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """A part of an event, for which the next part of a chain waited.

    Attributes:
      event: the event's `number`.
      why: what this part waited for, as in `Event.why`.
      end: when it let the next one go on, in ns; never before the `end` of the one before.
      before: the position in `Waits.all` of the part that it waited for, or None.
    """

    event: int
    why: str
    end: float
    before: int | None


class Waits:
    """All waits of a schedule.

    Attributes:
      all: in the order in which they were added. A flat list: chains are too long to nest.
    """

    def __init__(self) -> None:
        self.all: list[Wait] = []

    def add(self, event: int, why: str, end: float, before: int | None) -> int:
        """Adds a `Wait`, and returns its number."""
        self.all.append(Wait(event, why, end, before))
        return len(self.all) - 1

    def event(self, number: int | None) -> int | None:
        """The event of a wait, or None if there is none."""
        return None if number is None else self.all[number].event

    def chain(self, number: int) -> list[Wait]:
        """What leads to a wait, first things first, and the wait itself."""
        found = [self.all[number]]
        while found[-1].before is not None:
            found.append(self.all[found[-1].before])
        return found[::-1]
