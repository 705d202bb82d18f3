"""JAX's persistent compilation cache for a command: what one run compiles, later ones load."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import filelock
import jax

from jax_tkg.command_line import note
from jax_tkg.user_cache import make_private, user_cache

_FOLDER = "jax_compilation_cache_dir"
"""JAX's name for the folder; type checkers know it in some versions of JAX only."""

OFF = "off"
"""What the flag says for no cache."""

MOST_BYTES = 1 << 30
"""Size of a folder beyond which JAX removes the entries that were used least recently."""

_LOCK_SECONDS = 10
"""How long JAX waits for the folder's lock, too."""


def use_compilation_cache(named: str | None, num_processes: int = 1) -> None:
    """Turns the cache on for this process, before it compiles anything.

    Where JAX has been told of a folder already (JAX_COMPILATION_CACHE_DIR) and none is named, its
    settings stay as they are. A folder that cannot be used is noted on standard error, and
    nothing is cached. JAX locks the folder, so that processes can share it. Programs whose writing
    was cut off in an earlier run are removed from it.

    Args:
      named: a folder; `OFF` for no cache; None for the one in the user's cache directory.
      num_processes: that run the command together.
    """
    # JAX 0.9 hangs where several processes load a program (0.10 does not).
    hangs = num_processes > 1 and jax.__version_info__ < (0, 10)
    if named == OFF or hangs:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    given = getattr(jax.config, _FOLDER)
    if named is None and given:
        return
    try:
        # Loading an entry runs what others wrote into it.
        parent = user_cache("compiled") if named is None else pathlib.Path(named).expanduser()
        make_private(parent)
        folder = parent.absolute() / _processor()
        make_private(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder}, which cannot be written to")
        _remove_cut_off(folder)
    except (OSError, RuntimeError) as error:
        note(f"note: --compilation_cache: expected a folder of your own, got {error}; not used")
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update(_FOLDER, str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # By default JAX keeps nothing that compiles in less than a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _remove_cut_off(folder: pathlib.Path) -> None:
    """Removes programs whose writing was cut off, as by Ctrl-C or a signal.

    JAX writes a program in place, and then a file with the time of its last use. A program without
    one may not be whole: JAX would warn of it in each run, never write it anew, and write no other
    program either, because it reads all times first. Under the lock no other process is writing.

    A program that another process has read since looks whole, and stays.
    """
    try:
        with filelock.FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):
            for program in folder.glob("*-cache"):
                used = program.with_name(program.name.removesuffix("-cache") + "-atime")
                if not used.exists():
                    program.unlink()
    except filelock.Timeout:
        note(
            f"note: --compilation_cache: expected to lock {folder} within {_LOCK_SECONDS} s, got "
            "no lock; programs whose writing was cut off stay there"
        )


def _processor() -> str:
    """A name for this kind of processor: XLA compiles for the instructions that it has.

    Home directories may be shared by machines of several kinds.
    """
    features = {platform.machine(), platform.processor()}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            features |= {line for line in file if line.startswith(("flags", "Features"))}
    except OSError:
        # Not Linux; the names have to do.
        features.add(platform.system())
    digest = hashlib.sha256("".join(sorted(features)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
