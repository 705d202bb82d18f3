"""A hanging test is a failure that shows where it hangs."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile

import pytest
from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]

HANGING = """
import threading

import pytest


def wait_for_ever():
    threading.Event().wait()


def test_waits():
    # At the end of the process it would be joined.
    threading.Thread(target=wait_for_ever).start()
    wait_for_ever()
"""

LIMITS = """
import pytest


def limit(request):
    marker = request.node.get_closest_marker("timeout")
    return marker.args[0] if marker else float(request.config.getini("timeout"))


def test_plain(request):
    assert limit(request) == float(request.config.getini("timeout")) > 0


@pytest.mark.slow
def test_slow(request):
    assert limit(request) > float(request.config.getini("timeout"))


@pytest.mark.slow
@pytest.mark.timeout(7)
def test_own(request):
    assert limit(request) == 7
"""


@pytest.mark.thorough
class TimeLimitsTest(parameterized.TestCase):
    def _pytest(self, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Runs pytest with this repository's configuration on a test module."""
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / "test_given.py"
        path.write_text(source)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        # The conftest applies to tests below it; as a plugin it applies to this one.
        plugin = ["-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
        return subprocess.run(
            [*command, *plugin, *flags, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    @parameterized.parameters("0", "1")
    @pytest.mark.extended_except("0")
    def test_hang_shows_the_stacks_of_all_threads(self, workers: str) -> None:
        done = self._pytest(HANGING, "-o", "timeout=1", "-n", workers)
        shown = done.stdout + done.stderr
        self.assertEqual(done.returncode, 1, shown)
        self.assertIn("Timeout", shown)
        self.assertGreaterEqual(shown.count("in wait_for_ever"), 2, shown)

    @pytest.mark.extended
    def test_slow_tests_have_more(self) -> None:
        done = self._pytest(LIMITS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    absltest.main()
