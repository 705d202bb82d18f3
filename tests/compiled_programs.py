"""One folder of JAX's persistent compilation cache for a run of the tests, all workers included.

The programs of a command, or of a model that several tests load, are compiled once in a run.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

FOLDER_VARIABLE = "JAX_TKG_TESTS_COMPILED"
"""Environment variable by which workers and processes of tests learn of the folder."""

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    # With a largest size JAX locks the folder, so that no process reads what another writes.
    "jax_compilation_cache_max_size": 1 << 30,
}


def make_folder() -> None:
    """Makes the folder, which this process removes when it ends, unless there is one already."""
    if FOLDER_VARIABLE not in os.environ:
        os.environ[FOLDER_VARIABLE] = folder = tempfile.mkdtemp(prefix="jax_tkg_tests_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def variables() -> dict[str, str]:
    """Environment variables with which a process uses the folder."""
    settings = {"jax_compilation_cache_dir": os.environ[FOLDER_VARIABLE], **SETTINGS}
    return {name.upper(): str(value) for name, value in settings.items()}
