"""docs/arguments.md is what the tables say."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class ArgumentsPageTest(absltest.TestCase):
    def test_the_page_is_current(self) -> None:
        command = [sys.executable, "scripts/arguments_page.py", "--check"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)


if __name__ == "__main__":
    absltest.main()
