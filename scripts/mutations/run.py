"""Runs tests on copies of the project in which one fault at a time is made."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from scripts.mutations.mutation import Mutation

ROOT = pathlib.Path(__file__).resolve().parents[2]

MAKE_TEST = "not extended and not exhaustive and not oracle"
"""The marks of the tests that `make test` runs."""

TIMEOUT_SECONDS = 200
"""Time limit of one test: a fault may make it hang."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutation.

    Attributes:
      mutation: which.
      result: "killed", "survives" or "does not apply".
      seconds: of the tests.
      detail: the test that failed, or why the mutation does not apply.
    """

    mutation: Mutation
    result: str
    seconds: float
    detail: str = ""

    @property
    def is_expected(self) -> bool:
        """Whether it is what the table says."""
        return self.result == ("survives" if self.mutation.survives else "killed")


def copy_project(folder: pathlib.Path) -> None:
    """Copies what tests read, without hidden files and build products."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder, ignore=ignore, dirs_exist_ok=True)


def run_tests(
    folder: pathlib.Path, tests: Sequence[str], workers: int = 1, marks: str = ""
) -> tuple[bool, str]:
    """Whether tests pass on a copy of the project, and pytest's line on the first that fails.

    Args:
      folder: the copy.
      tests: files and test cases below `tests`.
      workers: processes that share the tests.
      marks: an expression that chooses among the tests by their marks, or all. Where it leaves none
        of them, they pass.

    Raises:
      RuntimeError: pytest could not run them, as where there is no such test.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-o", f"timeout={TIMEOUT_SECONDS}", "--tb=no"),
            *(("-n", str(workers), "--dist", "worksteal") if workers > 1 else ()),
            *(("-m", marks) if marks else ()),
            *(f"tests/{test}" for test in tests),
        ],
        cwd=folder,
        # Bytecode is told from its source by size and second, which two faults may share.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    shown = done.stdout + done.stderr
    # 5: all tests were deselected, or there are none.
    if done.returncode == 5 and marks:
        return True, "no test has the marks"
    # 1: a test failed or ran out of time; 2: a module could not be imported.
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest on {' '.join(tests)} could not run:\n{shown}")
    if done.returncode == 0:
        return True, ""
    lines = [
        line for line in shown.splitlines() if line.startswith(("FAILED", "SUBFAILED", "ERROR"))
    ]
    return False, lines[0] if lines else "ran out of time"


def check_unchanged(mutations: Sequence[Mutation], jobs: int = 1, marks: str = "") -> str:
    """Runs all tests of the mutations on the unchanged project; empty, or what fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy_project(folder)
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        passed, line = run_tests(folder, tests, jobs, marks)
        return "" if passed else line


def outcome(folder: pathlib.Path, mutation: Mutation, marks: str = "") -> Outcome:
    """Runs a mutation's tests on a copy of the project, which is as it was afterwards."""
    path = mutation.path(folder)
    source = path.read_text() if path.exists() else ""
    start = time.monotonic()
    try:
        changed = mutation.applied(source)
    except ValueError as error:
        return Outcome(mutation, "does not apply", 0.0, str(error))
    path.write_text(changed)
    try:
        passed, line = run_tests(folder, mutation.tests, marks=marks)
    finally:
        path.write_text(source)
    return Outcome(mutation, "survives" if passed else "killed", time.monotonic() - start, line)


def outcomes(mutations: Sequence[Mutation], jobs: int, marks: str = "") -> Iterator[Outcome]:
    """The outcome of each mutation, as they come; `jobs` at a time, each in a copy of its own."""
    with tempfile.TemporaryDirectory() as name:
        copies: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
        for number in range(min(jobs, len(mutations))):
            folder = pathlib.Path(name) / str(number)
            copy_project(folder)
            copies.put(folder)

        def one(mutation: Mutation) -> Outcome:
            folder = copies.get()
            try:
                return outcome(folder, mutation, marks)
            finally:
                copies.put(folder)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            waiting = [pool.submit(one, mutation) for mutation in mutations]
            for done in concurrent.futures.as_completed(waiting):
                yield done.result()


def run(mutations: Sequence[Mutation], jobs: int = 1, marks: str = "") -> int:
    """Prints a line per mutation and a table of survivors; returns the exit status.

    The status is 1 if a mutation survives that must not, is killed though the table says why it
    cannot be, or no longer applies to the source, or if the tests fail without any.
    """
    if failure := check_unchanged(mutations, jobs, marks):
        print(f"on the unchanged source: {failure}")
        return 1
    found = []
    for result in outcomes(mutations, jobs, marks):
        found.append(result)
        mark = " " if result.is_expected else "!"
        print(
            f"{mark} {result.result:14} {result.seconds:6.1f} s  {result.mutation.name}"
            + (f"\n    {result.detail}" if result.detail else ""),
            flush=True,
        )
    killed = sum(result.result == "killed" for result in found)
    print(f"{killed} of {len(found)} mutations killed")
    for result in found:
        if result.result == "survives":
            reason = result.mutation.survives or "NO REASON GIVEN: a test is missing"
            print(f"survives: {result.mutation.name}: {reason}")
    return 0 if all(result.is_expected for result in found) else 1
