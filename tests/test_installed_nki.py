"""Which package named nki counts as AWS's, in interpreters of their own with real folders."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import pytest
from absl.testing import absltest, parameterized

from jax_tkg import installed_nki
from tests import fake_nki

ROOT = pathlib.Path(__file__).parents[1]

PROGRAM = """
import json
import jax, numpy as np
import jax_tkg
from tests import cases

shape = cases.Shape(L=1)
rng = np.random.default_rng(0)
arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
options = cases.options(shape)

def message(run):
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def simulate():
    out = jax_tkg.transformer_tkg(**arguments, **options, implementation="simulate")
    return str(bool(np.isfinite(out.hidden).all()))

def explain(implementation, platform):
    choice = jax_tkg.explain(
        **arguments, **options, implementation=implementation, platform=platform
    )
    return f"{choice.implementation}: {choice.reason}"

call = lambda a: jax_tkg.transformer_tkg(**a, **options)
print(json.dumps({
    "auto": message(lambda: explain("auto", "neuron")),
    "nki": message(lambda: explain("nki", "neuron")),
    "dry_run": message(lambda: str(jax_tkg.dry_run(call, arguments).count("NativeKernel"))),
    "simulate": message(simulate),
}))
"""


def _run(folder: pathlib.Path, program: str = PROGRAM) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        # The working directory is searched first.
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.thorough
class NotAwsTest(parameterized.TestCase):
    """What is not AWS's package leaves the reference, the dry run and the simulator as they are."""

    def _check(self, folder: pathlib.Path, found: str) -> None:
        got = _run(folder)
        needed = f"AWS's nki package is not installed (needed: nki >= 0.6.0; found: {found})"
        self.assertEqual(got["auto"], f"reference: {needed}")
        self.assertRegex(got["nki"], "^ValueError: implementation: .*got 'nki': ")
        self.assertEndsWith(got["nki"], needed)
        self.assertNotIn("\n", got["nki"])
        self.assertEqual(got["dry_run"], "1")
        self.assertEqual(got["simulate"], "True")

    @pytest.mark.extended
    def test_nothing(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._check(pathlib.Path(folder), "nothing")

    @pytest.mark.extended
    def test_empty_folder(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            empty = pathlib.Path(folder).resolve() / "nki"
            empty.mkdir()
            self._check(empty.parent, f"the folder {empty} without __init__.py")

    def test_placeholder_of_the_public_index(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder).resolve()
            fake_nki.write_package(path, "0.0.1", 'raise ImportError("WRONG PACKAGE")\n')
            self._check(
                path, f"nki 0.0.1, the placeholder of the public package index, in {path / 'nki'}"
            )

    @pytest.mark.extended
    def test_module_of_the_users(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            module = pathlib.Path(folder).resolve() / "nki.py"
            module.write_text("raise SystemExit('imported')\n")
            self._check(module.parent, f"{module}, which no installed distribution named nki owns")

    def test_module_that_hides_the_installed_package(self) -> None:
        """The version of the hidden package says nothing of the module."""
        program = (
            "import json, sys\nsys.path.append('installed')\n"
            "from jax_tkg import installed_nki\nprint(json.dumps(installed_nki.nki_problem()))"
        )
        with tempfile.TemporaryDirectory() as folder:
            module = pathlib.Path(folder).resolve() / "nki.py"
            module.write_text("raise SystemExit('imported')\n")
            installed = module.parent / "installed"
            installed.mkdir()
            fake_nki.write_package(installed, "0.6.0")
            self.assertIn(f"found: {module}, which no", _run(module.parent, program))


class FrontEndsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("0.6.0+123", ("parser", "tracer")),
        ("0.7.0", (None, "custom")),
        ("0.7.3", (None, "custom")),
        ("0.8.0", (None,)),
        ("1.0", (None,)),
    )
    def test_of_releases(self, version: str, expected: tuple[str | None, ...]) -> None:
        self.assertEqual(installed_nki.front_ends(version), expected)
        self.assertContainsSubset({*expected} - {None}, installed_nki.FRONT_ENDS)


@pytest.mark.thorough
class AwsTest(parameterized.TestCase):
    @parameterized.parameters("0.3.0+23928721754.g18aacd8a", "0.5.9", "0.5")
    @pytest.mark.extended_except("1")
    def test_too_old(self, version: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder).resolve()
            fake_nki.write_package(path, version, "raise SystemExit('imported')\n")
            got = _run(path)
        problem = (
            "the installed nki package is too old (needed: nki >= 0.6.0; found: nki "
            f"{version} in {path / 'nki'})"
        )
        self.assertEqual(got["auto"], f"reference: {problem}")
        self.assertRegex(got["nki"], "^ValueError: implementation: .*got 'nki': ")
        self.assertEndsWith(got["nki"], problem)
        self.assertEqual(got["dry_run"], "1")
        self.assertIn(
            f"got 'simulate': AWS's nki package is installed (nki {version}", got["simulate"]
        )

    @parameterized.parameters("0.6.0", "0.6.0+12.gabc", "0.10", "1.0.0rc1")
    def test_new_enough(self, version: str) -> None:
        program = (
            "import json\nfrom jax_tkg import installed_nki\n"
            "found = installed_nki.find_nki()\n"
            "print(json.dumps([found.version, str(found.location), installed_nki.nki_problem()]))"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder).resolve()
            fake_nki.write_package(path, version, "raise SystemExit('imported')\n")
            got = _run(path, program)
        self.assertEqual(got, [version, str(path / "nki"), None])

    def test_the_simulator_under_the_name(self) -> None:
        program = (
            "import json\nfrom jax_tkg import installed_nki, simulator\n"
            "simulator.install()\nimport nki\n"
            "print(json.dumps([installed_nki.find_nki(), installed_nki.nki_problem()]))"
        )
        with tempfile.TemporaryDirectory() as folder:
            found, problem = _run(pathlib.Path(folder), program)
        self.assertIsNone(found)
        self.assertIn("found: the simulator under its name", problem)


if __name__ == "__main__":
    absltest.main()
