"""The kernel's entry for one launch: a generated function with one parameter for each tensor.

`nki.jit` finds JAX arrays among its top-level arguments only, so it cannot be given the lists of
arrays that the kernel takes. It compiles from a file, which must stay where it is: the compiler
may read it after the lowering, and another process reuses a trace only for a kernel at the same
path. What runs is the source that was generated, never what a file happens to hold.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import stat
import tempfile
import types
from collections.abc import Sequence
from typing import Any

from jax_tkg.call.arguments import PER_LAYER, PER_LAYER_CACHES, is_stacked
from jax_tkg.lowering.kernel_interface import (
    KERNEL_FUNCTION,
    MEGAKERNEL,
    KernelInterface,
    Launch,
)
from jax_tkg.lowering.static_values import imported_names
from jax_tkg.user_cache import make_private, user_cache

ENTRY_NAME = "transformer_tkg_entry"

DIRECTORY_VARIABLE = "JAX_TKG_KERNELS"
"""Environment variable that names the folder of generated entries."""


def flatten(
    tensors: dict[str, Any], kernel: KernelInterface = MEGAKERNEL
) -> tuple[list[str], list[Any]]:
    """Names and values of the entry's parameters, in order. Tensors that are None are left out."""
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
    """Source of the entry, which passes its parameters to the kernel and returns hidden and caches.

    Args:
      tensors: the kernel's tensors by name. Per-layer tensors are tuples, or stacked.
      launch: the static arguments, which are written into the source.
      kernel: the kernel that the entry calls.
    """
    names, _ = flatten(tensors, kernel)
    parameters = "".join(f"    {name},\n" for name in names)
    given = "".join(
        f"        {name}={_expression(name, tensors[name], launch)},\n" for name in kernel.tensors
    )
    options = kernel.static_arguments(launch)
    static = "".join(f"        {name}={value!r},\n" for name, value in options.items())
    imported = ", ".join([*imported_names(options), KERNEL_FUNCTION])
    call = f"{KERNEL_FUNCTION}(\n{given}{static}    )\n"
    return (
        '"""One launch of transformer_tkg, with a parameter per tensor; generated."""\n\n'
        "import nki\n\n"
        f"from {kernel.module()} import {imported}\n\n\n"
        f"@nki.jit\ndef {ENTRY_NAME}(\n{parameters}):\n"
        + (f"    return {call}" if kernel.returns_caches else _returning_caches(call, names))
    )


def _returning_caches(call: str, names: Sequence[str]) -> str:
    """Statements that also return the caches: NKI aliases only parameters that are returned."""
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
        return pathlib.Path(named).expanduser().absolute()
    return user_cache("kernels")


def check_directory() -> None:
    """Makes the folder of generated entries, or checks the one there is.

    Raises:
      OSError: it cannot be made, is another user's, or others can write to it.
    """
    make_private(entry_directory())


def load_entry(source: str) -> Any:
    """The entry that this source defines; the source is in a file when this returns.

    Equal sources give the same function, on which NKI keeps what it has compiled.

    Args:
      source: as `entry_source` generates it.

    Raises:
      OSError: the folder cannot be made or written to, or others can write to it.
    """
    contents = source.encode()
    digest = hashlib.sha256(contents).hexdigest()[:24]
    try:
        folder = entry_directory()
        make_private(folder)
        path = folder / f"{ENTRY_NAME}_{digest}.py"
        if _read(path) != contents:
            _write(path, contents)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{DIRECTORY_VARIABLE}: expected a folder of your own for the generated source of "
            f"kernels, got {error}; set {DIRECTORY_VARIABLE} to a folder that only you can write to"
        ) from error
    return getattr(_execute(source, str(path)), ENTRY_NAME)


@functools.lru_cache(maxsize=256)
def _execute(source: str, path: str) -> types.ModuleType:
    module = types.ModuleType(pathlib.Path(path).stem)
    module.__file__ = path
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module


def _read(path: pathlib.Path) -> bytes | None:
    """Contents of a regular file; None if there is none. Symbolic links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        # Whatever lies there is replaced, and if that cannot be done the error says why.
        return None
    with open(descriptor, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _write(path: pathlib.Path, contents: bytes) -> None:
    """Writes a temporary file and renames it: others may write or read the same entry."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(contents)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
