"""`benchmarks.measuring`: what is run before a turn, and what of it is timed."""

import types

import pytest

from benchmarks import measuring


class _Clock:
    """A clock that only `run` and `sleep` move."""

    def __init__(self, seconds_per_run: float) -> None:
        self.now = 0.0
        self.read_at: list[float] = []
        self.started_runs: list[float] = []
        self._seconds_per_run = seconds_per_run

    def run(self) -> None:
        self.started_runs.append(self.now)
        self.now += self._seconds_per_run

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read(self) -> float:
        self.read_at.append(self.now)
        return self.now


def _turn(
    monkeypatch: pytest.MonkeyPatch, seconds_per_run: float, runs: int
) -> tuple[_Clock, float]:
    clock = _Clock(seconds_per_run)
    fake = types.SimpleNamespace(perf_counter=lambda: clock.now, sleep=clock.sleep)
    monkeypatch.setattr(measuring, "time", fake)
    candidate = measuring.Candidate("mine", clock.run, clock=clock.read)
    timings = measuring.measure_in_turns([candidate], turns=1, runs=runs)
    return clock, timings["mine"].median


def test_short_runs_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, median = _turn(monkeypatch, seconds_per_run=0.002, runs=30)
    untimed = [start for start in clock.started_runs if start < clock.read_at[0]]
    assert untimed[0] >= measuring.SETTLE_SECONDS
    assert clock.read_at[0] - untimed[0] >= measuring.WARM_UP_SECONDS
    assert len(clock.started_runs) - len(untimed) == 30
    assert median == pytest.approx(0.002)


def test_long_runs_warm_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, median = _turn(monkeypatch, seconds_per_run=1.5, runs=30)
    untimed = [start for start in clock.started_runs if start < clock.read_at[0]]
    assert len(untimed) == 1
    # A second timed run would end after the 2 seconds that a turn may take.
    assert len(clock.started_runs) == 2
    assert median == pytest.approx(1.5)
