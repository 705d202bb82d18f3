"""Meeting points of simulated cores: barriers, exchanges and collectives.

Every core is a thread. All participants of a meeting compute the same key. The last one to arrive
combines their contributions in the order of the participants, so the outcome never depends on the
timing of threads. When every core that still runs is waiting, no core can ever arrive; the wait
then ends with an error at once, without a time limit.
"""

import dataclasses
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from jax_tkg.simulator import errors

Participant = tuple[int, int]


def describe_participant(participant: Participant) -> str:
    """Describes the rank and core of a participant, for messages."""
    return f"rank {participant[0]} core {participant[1]}"


@dataclasses.dataclass
class _Meeting:
    expected: tuple[Participant, ...]
    what: str
    brought: dict[Participant, Any] = dataclasses.field(default_factory=dict)
    places: dict[Participant, str] = dataclasses.field(default_factory=dict)
    result: Any = None
    done: bool = False


class MeetingBoard:
    """The meetings of the cores of one machine."""

    def __init__(self, participants: Sequence[Participant]):
        self._condition = threading.Condition()
        self._meetings: dict[Hashable, _Meeting] = {}
        self._waiting: dict[Participant, _Meeting] = {}
        self._running = set(participants)
        self._failure: BaseException | None = None

    def meet(
        self,
        me: Participant,
        key: Hashable,
        expected: Sequence[Participant],
        brought: Any,
        combine: Callable[[list[Any]], Any],
        what: str,
        place: str,
    ) -> Any:
        """Waits until all expected participants have arrived with this key.

        Args:
          me: the participant that calls.
          key: identifies the meeting; a participant uses each key once.
          expected: all participants, in the same order for each of them.
          brought: the contribution of this participant.
          combine: computes the outcome from all contributions, in the order of `expected`. The
            last participant to arrive calls it, once.
          what: the operation, for messages.
          place: the source line, for messages.

        Returns:
          The outcome, the same object for all.

        Raises:
          MissingPeerError: a participant can never arrive.
          PeerMismatchError: the participants expect different participants, or `combine` raised
            the error.
          PeerFailedError: another core failed.
        """
        with self._condition:
            self._raise_failure()
            meeting = self._meetings.get(key)
            if meeting is None:
                meeting = self._meetings[key] = _Meeting(tuple(expected), what)
            elif meeting.expected != tuple(expected):
                other, other_place = next(iter(meeting.places.items()))
                raise self._fail(
                    errors.PeerMismatchError(
                        f"{what} at {place}: {describe_participant(me)} expects the participants "
                        f"{_names(expected)}, but {describe_participant(other)} at {other_place} "
                        f"expects {_names(meeting.expected)}"
                    )
                )
            meeting.brought[me] = brought
            meeting.places[me] = place
            if len(meeting.brought) == len(meeting.expected):
                try:
                    meeting.result = combine([meeting.brought[p] for p in meeting.expected])
                except BaseException as error:
                    raise self._fail(error) from None
                meeting.done = True
                del self._meetings[key]
                self._condition.notify_all()
                return meeting.result
            self._waiting[me] = meeting
            self._find_deadlock()
            while not meeting.done and self._failure is None:
                self._condition.wait()
            del self._waiting[me]
            if not meeting.done:
                self._raise_failure()
            return meeting.result

    def leave(self, me: Participant, failure: BaseException | None = None) -> None:
        """Records that a participant has ended and joins no further meeting."""
        with self._condition:
            self._running.discard(me)
            if failure is not None and self._failure is None:
                self._failure = failure
                self._condition.notify_all()
            self._find_deadlock()

    def _find_deadlock(self) -> None:
        if self._failure is not None or not self._running:
            return
        waits = [p for p in self._running if p in self._waiting and not self._waiting[p].done]
        if len(waits) < len(self._running):
            return
        first = min(waits)
        meeting = self._waiting[first]
        absent = [p for p in meeting.expected if p not in meeting.brought]
        self._failure = errors.MissingPeerError(
            f"{meeting.what} at {meeting.places[first]}: {describe_participant(first)} waits for "
            + "; ".join(self._whereabouts(p) for p in absent)
        )
        self._condition.notify_all()

    def _whereabouts(self, participant: Participant) -> str:
        name = describe_participant(participant)
        meeting = self._waiting.get(participant)
        if meeting is not None:
            return f"{name}, which waits at {meeting.what} at {meeting.places[participant]}"
        if participant in self._running:
            return f"{name}, which is not there"
        return f"{name}, which has ended without coming (or is not part of this run)"

    def _fail(self, error: BaseException) -> BaseException:
        if self._failure is None:
            self._failure = error
            self._condition.notify_all()
        return error

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        if isinstance(self._failure, errors.MissingPeerError):
            raise self._failure
        raise errors.PeerFailedError(f"another core failed: {self._failure}") from self._failure


def _names(participants: Sequence[Participant]) -> str:
    return "[" + ", ".join(describe_participant(p) for p in participants) + "]"
