"""What all tests share: the simulator under the name `nki`, hypothesis's settings, time limits,
marks, and the largest worker's memory in the summary.

Where JAX is installed, also what `tests/with_jax.py` sets. The simulator's tests need none.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading

import hypothesis
import pytest
import threadpoolctl

from jax_tkg import simulator
from tests import compiled_programs, extended
from tests.worker_memory import (  # noqa: F401
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

if importlib.util.find_spec("jax") is not None:
    from tests.with_jax import (  # noqa: F401
        failures_told_once,
        forget_when_large,
        little_memory,
        programs_of_this_run,
        quick_compilation,
    )

# Before there are workers, which inherit it.
compiled_programs.make_folder()

# Kernels import nki.
simulator.install()

# Each worker has a core. NumPy's products in the oracle are small, and take ten times as long on
# threads that wait for one another.
threadpoolctl.threadpool_limits(limits=1, user_api="blas")

# In the background of a shell SIGINT is ignored, also by the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and (
    threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Runs are repeatable, and a slow machine is no failure.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


SLOW_TIMEOUT_SECONDS = 1800
"""Time limit of a test marked `slow`; pyproject.toml has that of the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks cases that are left to `make test-extended`; slow tests have a larger time limit."""
    extended.add_marks(items)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_SECONDS))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Sends the stacks of a hanging test to stderr: workers of pytest-xdist have no stdout."""
    if hasattr(session.config, "workerinput"):
        session.config.get_terminal_writer()._file = sys.__stderr__  # type: ignore[assignment]
