"""The hardware check-list: without Neuron it ends cleanly, and its steps pass in the simulator."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
from absl.testing import absltest


class NeuronChecklistTest(absltest.TestCase):
    def _run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.neuron_checklist", *flags],
            capture_output=True,
            text=True,
            check=False,
            cwd=pathlib.Path(__file__).resolve().parents[1],
        )

    def test_without_neuron(self) -> None:
        done = self._run()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("No Neuron device here", done.stdout)

    @pytest.mark.slow
    def test_steps_in_the_simulator(self) -> None:
        done = self._run("--implementation=simulate")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("12 of 12 steps passed", done.stdout)


if __name__ == "__main__":
    absltest.main()
