"""Where the host calls of a replica group's ranks meet: one of them computes for all."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

PATIENCE_SECONDS = 600.0
"""How long a rank waits for the others of its group to reach the same call."""


class MissingRankError(RuntimeError):
    """Some ranks of a replica group did not reach a call that others wait in."""


class PeerRankError(RuntimeError):
    """The computation failed on another rank of the replica group; the message says how."""


@dataclasses.dataclass(eq=False)
class _Meeting:
    """One call by all ranks of a group.

    Attributes:
      arrived: positions in the group of the ranks that have come.
      brought: what they brought, by position.
      results: per position; None until they are computed.
      failure: the first exception of a rank, or None.
      failed: position of that rank.
      failed_at: when, by `time.monotonic`.
    """

    arrived: set[int] = dataclasses.field(default_factory=set)
    brought: dict[int, Any] = dataclasses.field(default_factory=dict)
    results: Sequence[Any] | None = None
    failure: BaseException | None = None
    failed: int = 0
    failed_at: float = 0.0


class RankMeetings:
    """The meetings of this process's ranks.

    JAX starts a program on several CPU devices only when all of them have left the one before, so
    a key has one meeting at a time.

    Attributes:
      patience_seconds: how long a rank waits for the others to come.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS):
        self.patience_seconds = patience_seconds
        self._condition = threading.Condition()
        self._meetings: dict[Hashable, _Meeting] = {}

    def meet(
        self,
        key: Hashable,
        rank: int,
        group: Sequence[int],
        bring: Callable[[], Any],
        compute: Callable[[list[Any]], Sequence[Any]],
    ) -> Any:
        """Waits until all ranks of a group are here; the last to come computes for all.

        A rank that fails, in `bring`, in `compute` or while it waits, ends the meeting for those
        that are here and those that come later.

        Args:
          key: names the call; the same for all ranks of the group.
          rank: who comes.
          group: all ranks of the group, in an order that is the same for all.
          bring: gives this rank's contribution.
          compute: makes the results of all contributions; both in the order of the group.

        Returns:
          This rank's result.

        Raises:
          MissingRankError: some ranks did not come. The next call begins anew.
          PeerRankError: another rank failed. In the place of `KeyboardInterrupt` and others that
            are no `Exception`, one of the same type is raised.
        """
        position = group.index(rank)
        meeting = self._join(key, position, len(group))
        try:
            results = self._results(key, meeting, position, group, bring, compute)
        except BaseException as error:
            with self._condition:
                if meeting.failure is None:
                    meeting.failure, meeting.failed = error, position
                    meeting.failed_at = time.monotonic()
                    self._condition.notify_all()
            raise
        return results[position]

    def _join(self, key: Hashable, position: int, size: int) -> _Meeting:
        with self._condition:
            meeting = self._meetings.get(key)
            if meeting is None or self._is_over(meeting, position):
                meeting = self._meetings[key] = _Meeting()
            meeting.arrived.add(position)
            if len(meeting.arrived) == size:
                # The next round of a loop begins a meeting of its own.
                del self._meetings[key]
            return meeting

    def _is_over(self, meeting: _Meeting, position: int) -> bool:
        """Whether a meeting is kept only for ranks of an earlier call that never came."""
        if meeting.failure is None:
            return False
        expired = time.monotonic() > meeting.failed_at + self.patience_seconds
        return expired or position in meeting.arrived

    def _results(
        self,
        key: Hashable,
        meeting: _Meeting,
        position: int,
        group: Sequence[int],
        bring: Callable[[], Any],
        compute: Callable[[list[Any]], Sequence[Any]],
    ) -> Sequence[Any]:
        brought = bring()
        with self._condition:
            meeting.brought[position] = brought
            is_last = len(meeting.brought) == len(group)
            if is_last:
                self._condition.notify_all()
            else:
                self._wait(key, meeting, group)
        if is_last:
            results = compute([meeting.brought[index] for index in range(len(group))])
            with self._condition:
                meeting.results = results
                self._condition.notify_all()
        if meeting.failure is not None:
            raise _of_peer(meeting.failure, group[meeting.failed])
        assert meeting.results is not None
        return meeting.results

    def _wait(self, key: Hashable, meeting: _Meeting, group: Sequence[int]) -> None:
        """Waits for all ranks, within the patience, and then for the results, however long."""
        condition = self._condition

        def have_come() -> bool:
            return len(meeting.brought) == len(group) or meeting.failure is not None

        if not condition.wait_for(have_come, self.patience_seconds):
            missing = [rank for index, rank in enumerate(group) if index not in meeting.brought]
            if self._meetings.get(key) is meeting:
                del self._meetings[key]
            raise MissingRankError(
                f"ranks {missing} of the replica group {list(group)} did not reach this call of "
                f"transformer_tkg in this process within {self.patience_seconds:g} s"
            )
        condition.wait_for(lambda: meeting.results is not None or meeting.failure is not None)


def _of_peer(failure: BaseException, rank: int) -> BaseException:
    """What the other ranks raise where `rank` failed."""
    if not isinstance(failure, Exception):
        return type(failure)(*failure.args)
    return PeerRankError(f"{type(failure).__name__}: {failure} (on rank {rank})")
