"""The kernel's entry for one launch: a function with a parameter per tensor, in a file of its own.

`nki.jit` finds JAX arrays among its top-level arguments only, and compiles from source on disk.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from jax_tkg.call.arguments import PER_LAYER, PER_LAYER_CACHES, is_stacked
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch

ENTRY_NAME = "transformer_tkg_entry"

DIRECTORY_VARIABLE = "JAX_TKG_KERNELS"
"""Environment variable that names the folder of generated entries."""


def flatten(
    tensors: dict[str, Any], kernel: KernelInterface = MEGAKERNEL
) -> tuple[list[str], list[Any]]:
    """Names and values of the entry's parameters, in order; what is None has none."""
    names, values = [], []
    for name in kernel.tensors:
        value = tensors[name]
        if isinstance(value, tuple):
            for index, entry in enumerate(value):
                if entry is not None:
                    names.append(f"{name}_{index}")
                    values.append(entry)
        elif value is not None:
            names.append(name)
            values.append(value)
    return names, values


def entry_source(
    tensors: dict[str, Any], launch: Launch, kernel: KernelInterface = MEGAKERNEL
) -> str:
    """Source of the entry: it hands its parameters to the kernel, and returns hidden and caches.

    Args:
      tensors: the kernel's tensors by name; per-layer ones tuples or stacked.
      launch: static arguments, written into the source.
      kernel: which kernel.
    """
    names, _ = flatten(tensors, kernel)
    parameters = "".join(f"    {name},\n" for name in names)
    given = "".join(
        f"        {name}={_expression(name, tensors[name], launch)},\n" for name in kernel.tensors
    )
    options = kernel.static_arguments(launch).items()
    static = "".join(f"        {name}={value!r},\n" for name, value in options)
    call = f"transformer_tkg(\n{given}{static}    )\n"
    return (
        '"""One launch of transformer_tkg, with a parameter per tensor; generated."""\n\n'
        "import nki\n\n"
        f"from {kernel.module()} import transformer_tkg\n\n\n"
        f"@nki.jit\ndef {ENTRY_NAME}(\n{parameters}):\n"
        + (f"    return {call}" if kernel.returns_caches else _returning_caches(call, names))
    )


def _returning_caches(call: str, names: Sequence[str]) -> str:
    """Statements that return the caches too, which makes them results that alias parameters."""
    caches = ["hidden", *(name for name in names if name.startswith(PER_LAYER_CACHES))]
    return f"    hidden = {call}    return {_tuple(caches)}\n"


def _expression(name: str, value: Any, launch: Launch) -> str:
    if value is None:
        return "None"
    if isinstance(value, tuple):
        entries = [
            "None" if entry is None else f"{name}_{index}" for index, entry in enumerate(value)
        ]
        return _tuple(entries)
    in_tuples = name in PER_LAYER and name not in PER_LAYER_CACHES and not launch.looped
    if in_tuples and is_stacked(value):
        layers = range(launch.first_layer, launch.first_layer + launch.num_layers)
        return _tuple([f"{name}[{index}]" for index in layers])
    return name


def _tuple(entries: Sequence[str]) -> str:
    return "(" + "".join(f"{entry}, " for entry in entries).rstrip() + ")"


def entry_directory() -> pathlib.Path:
    """The folder of generated entries: JAX_TKG_KERNELS, or a folder in the user's cache."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return pathlib.Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "jax_tkg" / "kernels"


def load_entry(source: str) -> Any:
    """The entry, from a file that stays: the compiler may read it after the lowering."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    path = entry_directory() / f"{ENTRY_NAME}_{digest}.py"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole, for other processes write the same file.
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(source)
        partial.replace(path)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return getattr(module, ENTRY_NAME)
