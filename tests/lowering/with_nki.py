"""Tests with an installed nki: the stand-in of `nki_stand_in` under the name of AWS's package."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from jax_tkg.lowering import kernel_entry

FOLDER = pathlib.Path(__file__).parent / "nki_stand_in"

_stand_in: dict[str, Any] = {}
"""The stand-in's modules once they were imported: it registers a target with XLA, once."""


@contextlib.contextmanager
def installed() -> Iterator[Any]:
    """`import nki` gives the stand-in in here, and entries are written to a folder of its own."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_nki(name)}
    sys.modules.update(_stand_in)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", {kernel_entry.DIRECTORY_VARIABLE: folder}),
        mock.patch("sys.path", [str(FOLDER), *sys.path]),
    ):
        try:
            yield importlib.import_module("nki")
        finally:
            for name in [name for name in sys.modules if _is_nki(name)]:
                _stand_in[name] = sys.modules.pop(name)
            sys.modules.update(hidden)


def _is_nki(name: str) -> bool:
    return name == "nki" or name.startswith("nki.")


def run_as_neuron(function: Any, *args: Any, donate_argnums: Any = ()) -> Any:
    """Lowers a function for platform neuron, and runs what came on CPU devices.

    Args:
      function: jitted or not; a jitted one has its arguments' shardings.
      *args: its arguments, where the program's devices need them.
      donate_argnums: of the executed program.
    """
    runtime = importlib.import_module("nki.runtime")
    target = importlib.import_module("nki.framework.jax").TARGET
    checks = jax.export.DisabledSafetyCheck
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    with runtime.served(target):
        exported = jax.export.export(
            jitted,
            platforms=["neuron"],
            disabled_checks=[checks.custom_call(target), checks.platform()],
        )(*args)
        results = jax.jit(exported.call, donate_argnums=donate_argnums)(*args)
        return jax.block_until_ready(results)


def on_mesh(arguments: Any, mesh: Any, specs: Any) -> Any:
    """Arguments laid out over a mesh."""

    def place(array: Any, spec: Any) -> Any:
        if array is None:
            return None
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

    return {
        name: [place(entry, getattr(specs, name)) for entry in value]
        if isinstance(value, list)
        else place(None if value is None else np.asarray(value), getattr(specs, name))
        for name, value in arguments.items()
    }
