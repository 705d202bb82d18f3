"""The most memory that a process of the tests has held, in the summary of a run.

Hooks of pytest, which `tests/conftest.py` imports.
"""

from __future__ import annotations

import ctypes
import pathlib
import resource
import sys
from typing import Any

import pytest

_KEY = pytest.StashKey[list[int]]()


def _peak_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak if sys.platform == "darwin" else peak << 10


def resident_bytes() -> int:
    """What this process holds now; 0 where the system does not say, as other than Linux."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * resource.getpagesize()


def give_back() -> None:
    """Memory that was freed goes back to the system; glibc keeps what lies below what is in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells its peak to the process that started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_bytes"] = _peak_bytes()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Keeps what a worker of pytest-xdist tells; one that crashed tells nothing."""
    del error
    peak = getattr(node, "workeroutput", {}).get("peak_bytes")
    if peak is not None:
        node.config.stash.setdefault(_KEY, []).append(peak)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line: the largest worker, or this process where there are none."""
    peak = max(config.stash.get(_KEY, None) or [_peak_bytes()])
    terminalreporter.write_line(f"largest worker: {peak >> 20:,} MiB")
