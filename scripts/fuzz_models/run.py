"""Many cases, in a process of their own, which is ended when one hangs."""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import pathlib
import random
import tempfile
from collections.abc import Callable, Iterator

from scripts.fuzz_models import folder_cases, gguf_cases, template_cases
from scripts.fuzz_models.case import Case
from scripts.fuzz_models.judge import MAX_SECONDS, Outcome, judge, load_model

KINDS: dict[str, Callable[[random.Random, pathlib.Path], Case]] = {
    "gguf": gguf_cases.make,
    "folder": folder_cases.make,
    "template": template_cases.make,
}
_WEIGHTS = (45, 45, 10)

_GRACE_SECONDS = 5.0
"""Beyond `MAX_SECONDS`: for writing the case, and for a process that is slow to answer."""

_START_SECONDS = 300.0
"""For starting a process, which imports JAX."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One case and what became of it.

    Attributes:
      index: the case's number, from which it is made again.
      kind: of `KINDS`.
      mutation: what was done to the model.
      outcome: what became of it.
    """

    index: int
    kind: str
    mutation: str
    outcome: Outcome


def run(count: int, seed: int, first: int = 0) -> Iterator[Result]:
    """Runs cases and yields their results in order.

    Args:
      count: how many.
      seed: of all of them.
      first: number of the first case.
    """
    worker: _Worker | None = None
    try:
        for index in range(first, first + count):
            worker = worker or _Worker(seed)
            result = worker.run(index)
            if result is None:
                result = worker.failure(index)
                worker.stop()
                worker = None
            yield result
    finally:
        if worker is not None:
            worker.stop()


def _make(index: int, seed: int, folder: pathlib.Path) -> tuple[str, Case]:
    rng = random.Random(f"{seed} {index}")
    kind = rng.choices(list(KINDS), _WEIGHTS)[0]
    return kind, KINDS[kind](rng, folder)


def _serve(connection: multiprocessing.connection.Connection, seed: int) -> None:
    """The process that runs cases: answers numbers with results."""
    # What is imported late, compiled or looked up once counts for no case.
    with tempfile.TemporaryDirectory() as folder:
        load_model(folder_cases.write(pathlib.Path(folder)).path)
    connection.send(None)
    while True:
        index = connection.recv()
        if index is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            kind, case = _make(index, seed, pathlib.Path(folder))
            # The model's own folder; a GGUF file lies in it, beside nothing.
            inside = case.path if case.path.is_dir() else case.path.parent
            connection.send((kind, case.mutation.name))
            outcome = judge(case, inside, load_model)
            connection.send(Result(index, kind, case.mutation.name, outcome))


class _Worker:
    """A process that runs cases."""

    def __init__(self, seed: int):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, seed), daemon=True)
        self._process.start()
        other.close()
        self._running = ("", "")
        if not self._connection.poll(_START_SECONDS):
            raise RuntimeError("the process that runs cases did not start")
        self._connection.recv()

    def run(self, index: int) -> Result | None:
        """A case's result; None where the process hangs or has ended."""
        try:
            self._connection.send(index)
            for _ in range(2):
                if not self._connection.poll(MAX_SECONDS + _GRACE_SECONDS):
                    return None
                answer = self._connection.recv()
                if isinstance(answer, Result):
                    return answer
                self._running = answer
        except (EOFError, ConnectionError):
            pass
        return None

    def failure(self, index: int) -> Result:
        """The result of the case that this process did not answer."""
        self._process.join(1)
        ended = self._process.exitcode is not None
        fault = f"the process ended with {self._process.exitcode}" if ended else "hangs"
        kind, mutation = self._running
        return Result(index, kind, mutation, Outcome("", (fault,), MAX_SECONDS))

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
