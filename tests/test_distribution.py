"""Source distribution and wheel: what they hold, and that both work where there is nothing else."""

from __future__ import annotations

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest
from absl.testing import absltest

import jax_tkg
from jax_tkg.console import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAME = f"jax_tkg-{jax_tkg.__version__}"


def _run(command: list[str], cwd: pathlib.Path) -> str:
    """What a command prints that succeeds, and does not find the package by PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.thorough
class DistributionTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="jax_tkg_distribution_"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        # A copy, because building writes into the tree.
        tree = cls.folder / "tree"
        shutil.copytree(ROOT, tree, ignore=_not_in_the_repository)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "../dist"]
        cls.printed = _run(command, tree)
        cls.source = cls.folder / "dist" / f"{NAME}.tar.gz"
        cls.wheel = cls.folder / "dist" / f"{NAME}-py3-none-any.whl"

    @pytest.mark.extended
    def test_builds_without_warnings(self) -> None:
        self.assertNotRegex(self.printed, "(?i)warning|deprecat")

    def test_wheel(self) -> None:
        with zipfile.ZipFile(self.wheel) as file:
            names = set(file.namelist())
            metadata = email.message_from_bytes(file.read(f"{NAME}.dist-info/METADATA"))
        inside = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
        expected = {
            path.relative_to(ROOT).as_posix() for path in (ROOT / "jax_tkg").rglob("*.py")
        } | {"jax_tkg/py.typed"}
        self.assertEqual(inside, expected)
        self.assertIn(f"{NAME}.dist-info/licenses/LICENSE", names)
        self.assertEqual(metadata["Version"], jax_tkg.__version__)
        self.assertEqual(metadata["License-Expression"], "Apache-2.0")
        self.assertIn("# jax_tkg", metadata.get_payload())

    @pytest.mark.extended
    def test_source_distribution(self) -> None:
        with tarfile.open(self.source) as file:
            file.extractall(self.folder / "source", filter="data")
            names = {name.removeprefix(f"{NAME}/") for name in file.getnames()}
        self.assertContainsSubset(
            {
                *("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "noxfile.py", "PKG-INFO"),
                *("docs/index.md", "docs/conf.py", "docs/tutorials/decode_step.md"),
                *("tests/conftest.py", "scripts/messages.py", "benchmarks/steps.py"),
            },
            names,
        )
        # One module of its tests; `make dist` runs all fast ones.
        tests = "tests/simulator/test_launch.py"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
        printed = _run(command, self.folder / "source" / NAME)
        self.assertRegex(printed, r"\d+ passed")

    @pytest.mark.extended
    def test_installed(self) -> None:
        """The console script of an installed wheel, with this environment's other packages."""
        place = self.folder / "installed"
        _run([sys.executable, "-m", "venv", "--without-pip", str(place)], self.folder)
        python = place / "bin" / "python"
        purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = pathlib.Path(_run([str(python), "-c", purelib], self.folder).strip())
        # Without their own .pth files, by which this checkout may be installed.
        others = [entry for entry in sys.path if entry.endswith("site-packages")]
        (packages / "others.pth").write_text("\n".join(others))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
        _run([*pip, "--no-index", "--quiet", str(self.wheel)], self.folder)
        where = _run([str(python), "-c", "import jax_tkg; print(jax_tkg.__file__)"], self.folder)
        self.assertStartsWith(where, str(packages))
        script = str(place / "bin" / "jax-tkg")
        overview = _run([script, "--help"], self.folder)
        self.assertContainsSubset(COMMANDS, overview.split())
        self.assertIn("Downloads", _run([script, "fetch-model", "--help"], self.folder))
        kernel = "jax_tkg.kernels.transformer:transformer_tkg"
        self.assertIn("0 findings", _run([script, "check", kernel], self.folder))
        report = _run([script, "doctor"], self.folder)
        self.assertIn("no problem found", report)


def _not_in_the_repository(where: str, names: list[str]) -> list[str]:
    """Names of what is made or fetched beside the repository's files."""
    del where
    return [
        name
        for name in names
        if name in ("__pycache__", "build", "dist", "results")
        or (name.startswith(".") and name != ".github")
        or name.endswith(".egg-info")
    ]


class VersionTest(absltest.TestCase):
    def test_the_changelog_begins_with_this_version(self) -> None:
        first = re.search(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())
        assert first is not None
        self.assertEqual(first[1], jax_tkg.__version__)


class WorkflowsTest(absltest.TestCase):
    """What GitHub runs are commands that there are."""

    def test_commands(self) -> None:
        makefile = (ROOT / "Makefile").read_text()
        noxfile = (ROOT / "noxfile.py").read_text()
        workflows = "".join(
            path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        )
        targets = re.findall(r"run: make ([\w-]+)", workflows)
        self.assertContainsSubset(
            {"lint", "test", "test-extended", "test-oracle", "docs", "dist"}, targets
        )
        for target in targets:
            self.assertRegex(makefile, rf"(?m)^{target}:")
        (listed,) = re.findall(r"session: \[(.*)\]", workflows)
        for session in re.findall(r'"([^"]+)"', listed):
            name = session.removeprefix("jax-")
            self.assertIn(f'"{name}"', noxfile)


if __name__ == "__main__":
    absltest.main()
