"""Folders of this package in the user's cache directory, which nobody else may write to."""

from __future__ import annotations

import os
import pathlib
import stat


def user_cache(name: str) -> pathlib.Path:
    """The folder `name` of this package in XDG_CACHE_HOME, else in ~/.cache; it may not exist.

    Raises:
      RuntimeError: the user has no home directory.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = pathlib.Path(cache) if cache else pathlib.Path("~/.cache").expanduser()
    return folder.absolute() / "jax_tkg" / name


def make_private(folder: pathlib.Path) -> None:
    """Makes the folder, or checks that nobody else can replace files in the one there is.

    Raises:
      OSError: it cannot be made, is another user's, or others can write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{folder}, which belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(f"{folder}, which others can write to (mode {mode:o})")
