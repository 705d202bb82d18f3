"""Pages that are made from the code are current."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).resolve().parents[2]


class GeneratedPagesTest(parameterized.TestCase):
    @parameterized.parameters("arguments_page", "architecture")
    def test_current(self, script: str) -> None:
        command = [sys.executable, "-m", f"scripts.{script}", "--check"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)


if __name__ == "__main__":
    absltest.main()
