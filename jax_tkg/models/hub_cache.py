"""Models that the Hugging Face Hub's cache has on disk already. Nothing is downloaded."""

from __future__ import annotations

import os
import pathlib
import re

from jax_tkg.models.errors import ModelError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_cache() -> pathlib.Path:
    """The cache's folder: HF_HUB_CACHE, else "hub" in HF_HOME, else in ~/.cache/huggingface."""
    named = os.environ.get("HF_HUB_CACHE")
    if named:
        return pathlib.Path(named).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(shared, "huggingface")
    return pathlib.Path(home).expanduser() / "hub"


def cached_model(name: str) -> pathlib.Path | None:
    """The folder of the model `org/name`; None if the name has another form.

    It is the snapshot that `refs/main` names, or the only one there is.

    Raises:
      ModelError: the cache does not have the model, or several snapshots and no `refs/main`.
    """
    if not _NAME.fullmatch(name):
        return None
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    try:
        revision = (repository / "refs" / "main").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    if re.fullmatch(r"[0-9a-f]+", revision) and (snapshots / revision).is_dir():
        return snapshots / revision
    found = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    if len(found) == 1:
        return found[0]
    got = f"{len(found)} snapshots and no refs/main" if found else "no snapshot of it"
    raise ModelError(
        f"{name}: expected a GGUF file, or a folder with config.json, safetensors and "
        "tokenizer.json, or a model in the Hugging Face cache, got no such file or folder, and "
        f"{got} in {repository}"
    )
