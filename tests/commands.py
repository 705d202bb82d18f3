"""Running the package's commands as their users do: in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from jax_tkg.command_line import XLA_LOG
from tests import compiled_programs


def environment(**changes: str) -> dict[str, str]:
    """Variables with which a process imports the package that these tests import.

    It compiles quickly as tests do, which takes half of a command's time.
    """
    flags = [os.environ.get("XLA_FLAGS", "")]
    if importlib.util.find_spec("jax") is not None:
        from tests import with_jax

        flags.append(with_jax.xla_flags())
    own = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join(flags).strip(),
        **compiled_programs.variables(),
    }
    # Importing JAX in this process has set it.
    inherited = {name: value for name, value in os.environ.items() if name != XLA_LOG}
    return {**inherited, **own, **changes}


def command(module: str, *flags: str | bytes) -> list[str | bytes]:
    """The command line of `python -m MODULE FLAGS`."""
    return [sys.executable, "-m", module, *flags]


def run(
    module: str,
    *flags: str | bytes,
    stdout: Any = subprocess.PIPE,
    stdin: bytes | None = None,
    **changes: str,
) -> subprocess.CompletedProcess[bytes]:
    """Runs `python -m MODULE FLAGS`, with environment variables changed.

    Returns:
      The process, its output as bytes: a random model writes bytes that no decoding should have
      to accept twice.
    """
    return subprocess.run(
        command(module, *flags),
        env=environment(**changes),
        # Never the terminal of whoever runs the tests.
        **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=600,
    )


def without(folder: str, packages: Sequence[str]) -> dict[str, str]:
    """Variables with which a process does not find some installed packages.

    Args:
      folder: an empty folder, in which the module is written that hides them.
      packages: their import names.
    """
    with open(os.path.join(folder, "sitecustomize.py"), "w", encoding="utf-8") as file:
        file.write(
            "from importlib.machinery import PathFinder\n"
            "find = PathFinder.find_spec\n"
            "def find_others(name, *arguments):\n"
            f"    hidden = name.partition('.')[0] in {list(packages)!r}\n"
            "    return None if hidden else find(name, *arguments)\n"
            "PathFinder.find_spec = find_others\n"
        )
    return {"PYTHONPATH": os.pathsep.join([folder, *sys.path])}


def last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """The only line on standard error."""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]
