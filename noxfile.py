"""The tests on the oldest, a middle and the newest JAX, and the simulator's without JAX.

`nox` runs all sessions but source-distribution, which needs what `make dist` builds;
`nox -s simulator-without-jax` runs one.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

import nox

nox.options.error_on_missing_interpreters = True

FIXED = {"0.9.0": "3.11", "0.10.2": "3.11"}
"""JAX releases and an interpreter that has wheels for each."""

NEWEST = "newest"


def interpreters() -> dict[str, str]:
    """Version ("3.13") to path of every Python from 3.11 on that is at hand, oldest first.

    Those on PATH, and those that pyenv keeps without putting them there.
    """
    root = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    names = [f"python3.{minor}" for minor in range(11, 20)]
    found: dict[str, str] = {}
    for name in names:
        kept = sorted(str(path) for path in root.glob(f"versions/*/bin/{name}"))
        for path in [shutil.which(name), *kept]:
            if path is None:
                continue
            # pyenv puts commands on PATH that only say which versions it has.
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            match = re.match(r"Python (3\.\d+)", done.stdout)
            if done.returncode == 0 and match:
                found.setdefault(match[1], path)
    return found


def _suite(session: nox.Session, requirement: str) -> None:
    session.install(requirement, "-e", ".[models,profile,test]")
    session.run("python", "-c", "import jax; print('jax', jax.__version__)")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


def _define() -> None:
    at_hand = interpreters()
    chosen = {release: at_hand.get(python, python) for release, python in FIXED.items()}
    if at_hand:
        chosen[NEWEST] = list(at_hand.values())[-1]
    for release, python in chosen.items():
        requirement = "jax" if release == NEWEST else f"jax=={release}"

        @nox.session(name=f"jax-{release}", python=python)
        def session(session: nox.Session, requirement: str = requirement) -> None:
            _suite(session, requirement)


_define()


@nox.session(name="source-distribution", default=False)
def source_distribution(session: nox.Session) -> None:
    """The fast tests of what `make dist` made, where there is nothing else."""
    (archive,) = pathlib.Path("dist").glob("jax_tkg-*.tar.gz")
    marks = (
        "not slow and not thorough and not extended and not exhaustive and not model and not oracle"
    )
    # Not the session's own folder for temporary files: it is inside of the environment, where the
    # tests of damaged model files take every file for one of Python's.
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        session.chdir(pathlib.Path(folder).resolve() / archive.name.removesuffix(".tar.gz"))
        session.install(".[models,profile,test]")
        session.run("python", "-m", "pytest", "-n", "2", "-m", marks, *session.posargs)


@nox.session(name="simulator-without-jax")
def simulator_without_jax(session: nox.Session) -> None:
    """The simulator's tests where the package is installed without JAX."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    needed = [name for name in project["dependencies"] if not name.startswith("jax")]
    session.install(*needed, *project["optional-dependencies"]["test"], "absl-py")
    session.install("--no-deps", "-e", ".")
    session.run("python", "-c", "import importlib.util as u; assert u.find_spec('jax') is None")
    session.run("python", "-m", "pytest", "-n", "2", *(session.posargs or ["tests/simulator"]))
