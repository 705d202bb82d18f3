"""The hardware check-list: without Neuron it ends cleanly, and its steps pass in the simulator."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from benchmarks import neuron_checklist
from jax_tkg.installed_nki import NkiPackage
from tests.lowering import with_nki

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.thorough
class NeuronChecklistTest(parameterized.TestCase):
    def _run(self, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.neuron_checklist", *flags],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **environment},
        )

    def test_without_neuron(self) -> None:
        done = self._run()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("No Neuron device here", done.stdout)

    def test_alone_without_nki(self) -> None:
        done = self._run("--standalone")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Nothing to check: AWS's nki package is not installed", done.stdout)

    @pytest.mark.extended
    def test_alone_through_an_installed_nki(self) -> None:
        """Lists of arrays are ranks, in both front ends; a stand-in has the place of nki."""
        with tempfile.TemporaryDirectory() as folder:
            done = self._run(
                "--standalone", PYTHONPATH=f"{with_nki.FOLDER}:{ROOT}", JAX_TKG_KERNELS=folder
            )
        for name in ("parser", "tracer"):
            self.assertIn(f"NKI_COMPILER_FRONTEND={name}", done.stdout)
        # The other packages of AWS's are not there.
        self.assertEqual(done.stdout.count("2 of 3 steps passed"), 2, done.stdout + done.stderr)
        self.assertEqual(done.stdout.count("ok: largest error"), 4, done.stdout)
        self.assertEqual(done.returncode, 1)

    @parameterized.parameters(
        (None, ["(not set)"]),
        ("0.6.0", ["parser", "tracer"]),
        ("0.7.0", ["(not set)", "custom"]),
    )
    def test_front_ends_of_the_installed_nki(
        self, version: str | None, expected: list[str]
    ) -> None:
        """Each has all steps, with the variable that names it."""
        name, seen, said = "NKI_COMPILER_FRONTEND", [], io.StringIO()
        nki = None if version is None else NkiPackage(version, ROOT)

        def step(implementation: str) -> str:
            """Passes."""
            seen.append(os.environ.get(name, "(not set)"))
            return implementation

        with (
            mock.patch.dict(os.environ, {name: "left over"}),
            mock.patch.object(neuron_checklist, "find_nki", return_value=nki),
            contextlib.redirect_stdout(said),
        ):
            failed = neuron_checklist._run_with_front_ends([(step, "")], "nki")
        self.assertEqual((failed, seen), (0, expected))
        self.assertEqual(re.findall(f"{name}=(.*)", said.getvalue()), expected)

    @pytest.mark.slow
    @pytest.mark.extended
    def test_steps_in_the_simulator(self) -> None:
        done = self._run("--implementation=simulate")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("13 of 13 steps passed", done.stdout)
        # What loops on the device comes last.
        names = re.findall(r"^ ?\d+\. (\w+):", done.stdout, re.MULTILINE)
        self.assertEqual(names[-2:], ["layer_loop", "groups_in_a_layer_loop"])


if __name__ == "__main__":
    absltest.main()
