"""Where ranks meet: results, failures told to the others, ranks that never come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl.testing import absltest, parameterized

from jax_tkg.lowering.rank_meetings import MissingRankError, PeerRankError, RankMeetings

GROUP = (4, 0, 2)
NEVER = 1e6
"""Seconds; a rank that waits this long is a hang, which the time limit of tests ends."""


class _Ranks:
    """Ranks on threads of their own, started one after the other as the test says."""

    def __init__(self, meetings: RankMeetings):
        self.meetings = meetings
        self.outcomes: dict[int, Any] = {}
        self._threads: list[threading.Thread] = []

    def start(
        self,
        rank: int,
        bring: Callable[[], Any] | None = None,
        compute: Callable[[list[Any]], Sequence[Any]] = lambda brought: brought,
    ) -> threading.Thread:
        def meet() -> None:
            try:
                self.outcomes[rank] = self.meetings.meet(
                    "call", rank, GROUP, bring or (lambda: rank), compute
                )
            except BaseException as error:
                self.outcomes[rank] = error

        thread = threading.Thread(target=meet, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def join(self) -> dict[int, Any]:
        for thread in self._threads:
            thread.join()
        return self.outcomes


def _raise(error: BaseException) -> Any:
    raise error


class MeetingsTest(parameterized.TestCase):
    @parameterized.parameters(((4, 0, 2),), ((2, 0, 4),), ((0, 2, 4),))
    def test_one_computes_for_all_in_the_order_of_the_group(self, order: tuple[int, ...]) -> None:
        computed = []

        def compute(brought: list[int]) -> list[str]:
            computed.append(brought)
            return [f"result of {rank}" for rank in brought]

        ranks = _Ranks(RankMeetings(NEVER))
        for rank in order:
            ranks.start(rank, compute=compute)
        self.assertEqual(ranks.join(), {rank: f"result of {rank}" for rank in GROUP})
        self.assertEqual(computed, [list(GROUP)])

    def test_rounds_do_not_mix(self) -> None:
        meetings = RankMeetings(NEVER)
        seen: dict[int, list[Any]] = {rank: [] for rank in GROUP}

        def loop(rank: int) -> None:
            for turn in range(50):
                seen[rank].append(
                    meetings.meet("call", rank, GROUP, lambda: turn, lambda brought: brought)  # noqa: B023
                )

        threads = [threading.Thread(target=loop, args=(rank,)) for rank in GROUP]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(seen, {rank: list(range(50)) for rank in GROUP})

    def test_results_may_take_longer_than_the_patience(self) -> None:
        patience = 0.05

        def compute(brought: list[int]) -> list[int]:
            threading.Event().wait(10 * patience)
            return brought

        ranks = _Ranks(RankMeetings(patience))
        for rank in GROUP:
            ranks.start(rank, compute=compute)
        outcomes = ranks.join()
        # On a slow machine the ranks themselves may come too late, which is another error.
        missed = [o for o in outcomes.values() if isinstance(o, BaseException)]
        for error in missed:
            self.assertNotIn("ranks []", str(error))


class FailuresTest(parameterized.TestCase):
    @parameterized.parameters(0, 1, 2)
    def test_before_the_computation(self, place: int) -> None:
        """Ranks that wait and ranks that come later are told at once."""
        ranks = _Ranks(RankMeetings(NEVER))
        for index, rank in enumerate((0, 4, 2)):
            bring = (lambda: _raise(ValueError("no memory"))) if index == place else None
            thread = ranks.start(rank, bring)
            if index == place:
                thread.join()
        failed = (0, 4, 2)[place]
        outcomes = ranks.join()
        self.assertIsInstance(outcomes.pop(failed), ValueError)
        for error in outcomes.values():
            self.assertIsInstance(error, PeerRankError)
            self.assertEqual(str(error), f"ValueError: no memory (on rank {failed})")

    def test_in_the_computation(self) -> None:
        ranks = _Ranks(RankMeetings(NEVER))
        for rank in GROUP:
            ranks.start(rank, compute=lambda brought: _raise(ValueError("a limit")))
        errors = sorted(map(repr, ranks.join().values()))
        self.assertLen([e for e in errors if e == "ValueError('a limit')"], 1)
        self.assertLen([e for e in errors if "ValueError: a limit (on rank" in e], 2)

    @parameterized.parameters(KeyboardInterrupt("at once"), SystemExit(3), KeyboardInterrupt())
    def test_interrupts_keep_their_type_and_message(self, interrupt: BaseException) -> None:
        ranks = _Ranks(RankMeetings(NEVER))
        ranks.start(0, lambda: _raise(interrupt)).join()
        ranks.start(4)
        ranks.start(2)
        for outcome in ranks.join().values():
            self.assertIs(type(outcome), type(interrupt))
            self.assertEqual(outcome.args, interrupt.args)

    def test_next_call_after_a_failure_begins_anew(self) -> None:
        meetings = RankMeetings(NEVER)
        ranks = _Ranks(meetings)
        ranks.start(0, lambda: _raise(ValueError("once"))).join()
        # Rank 2 never comes to the first call.
        ranks.start(4).join()
        self.assertIsInstance(ranks.outcomes[4], PeerRankError)
        again = _Ranks(meetings)
        for rank in (0, 4, 2):
            again.start(rank)
        self.assertEqual(again.join(), {rank: rank for rank in GROUP})


class MissingRanksTest(absltest.TestCase):
    def test_the_error_names_them_and_the_next_call_begins_anew(self) -> None:
        meetings = RankMeetings(0.05)
        ranks = _Ranks(meetings)
        ranks.start(2)
        ranks.start(0)
        outcomes = ranks.join()
        for error in outcomes.values():
            self.assertIn(type(error).__name__, (MissingRankError.__name__, PeerRankError.__name__))
            self.assertRegex(str(error), r"ranks \[4.*\] of the replica group \[4, 0, 2\]")
        meetings.patience_seconds = NEVER
        again = _Ranks(meetings)
        for rank in GROUP:
            again.start(rank, bring=lambda: "new")
        self.assertEqual(again.join(), dict.fromkeys(GROUP, "new"))


if __name__ == "__main__":
    absltest.main()
