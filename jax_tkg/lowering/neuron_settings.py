"""The Neuron machine that a call runs on: cores per logical core, and the generation.

Both come from the call's arguments or from Neuron's environment variables.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import jax

from jax_tkg.bits import Bits
from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.operand_table import OPERANDS
from jax_tkg.hardware import TARGET_VARIABLE, TARGETS, TRN2, Target, target_named

CORES_VARIABLE = "NEURON_LOGICAL_NC_CONFIG"
"""Environment variable of Neuron's runtime: physical cores per logical core."""

DEFAULT_CORES = 2
"""Physical cores per logical core on Trainium2 by default."""

_environment = threading.RLock()

QUANTIZABLE = tuple(row.name for row in OPERANDS if row.scaled_by is not None)
"""The arguments that may be float8."""


def logical_cores(parameters: Parameters) -> int:
    """Physical cores per logical core: `lnc`, else NEURON_LOGICAL_NC_CONFIG, else 2.

    Raises:
      ValueError: the environment variable is neither 1 nor 2.
    """
    if parameters.lnc is not None:
        return parameters.lnc
    value = os.environ.get(CORES_VARIABLE) or str(DEFAULT_CORES)
    if value not in ("1", "2"):
        raise ValueError(f"{CORES_VARIABLE}: expected 1 or 2 where lnc is None, got {value!r}")
    return int(value)


def check_grid(parameters: Parameters, looped: bool) -> None:
    """Checks that the kernel's launch has as many cores as the machine's logical cores have.

    A launch of another size fails or, if its layers loop, hangs; later releases of NKI refuse it.

    Args:
      parameters: the static parameters.
      looped: whether the layers loop on the device.

    Raises:
      ValueError: `lnc` and NEURON_LOGICAL_NC_CONFIG are both given, and differ.
    """
    value = os.environ.get(CORES_VARIABLE)
    if not value or parameters.lnc is None or str(parameters.lnc) == value:
        return
    loops = " (its layers loop on the device, which would hang)" if looped else ""
    raise ValueError(
        f"lnc: expected {value}, which {CORES_VARIABLE} says of this machine, or None, got "
        f"{parameters.lnc}{loops}"
    )


@contextlib.contextmanager
def naming_cores(cores: int) -> Iterator[None]:
    """Has NEURON_LOGICAL_NC_CONFIG name the cores of a launch, if nothing else sets it.

    While NKI compiles: from 0.7 on it refuses a launch of other cores than the variable names, and
    takes it for 1 where it is not set (API reference, nki.jit), also where the machine has 2.
    """
    with _environment:
        named = bool(os.environ.get(CORES_VARIABLE))
        if not named:
            os.environ[CORES_VARIABLE] = str(cores)
        try:
            yield
        finally:
            if not named:
                del os.environ[CORES_VARIABLE]


def check_target(operands: Operands) -> None:
    """Checks that the machine has the dtypes of weights and caches, if the environment names one.

    Args:
      operands: the call's arrays, or their abstract values.

    Raises:
      ValueError: the machine does not support a dtype, or its name is unknown.
    """
    if not os.environ.get(TARGET_VARIABLE):
        return
    target = target_named(None)
    for name in QUANTIZABLE:
        for dtype in sorted(_float8_dtypes(getattr(operands, name)) - {*target.float8_dtypes}):
            raise ValueError(
                f"{name}: expected {' or '.join(target.float8_dtypes)} on {target.name}, the "
                f"machine that {TARGET_VARIABLE} names ({dtype} needs "
                f"{_oldest_target({dtype}).name}), got {dtype}"
            )


def simulated_target(tensors: dict[str, Any]) -> str:
    """The machine to simulate: the environment's, or the oldest that supports the dtypes.

    Args:
      tensors: a kernel's tensors by name.
    """
    if os.environ.get(TARGET_VARIABLE):
        return target_named(None).name
    used = {dtype for name in QUANTIZABLE for dtype in _float8_dtypes(tensors.get(name))}
    return _oldest_target(used).name


def nc_version(tensors: dict[str, Any]) -> int:
    """The number in NeuronCore-v<number> of the machine to compile for.

    Args:
      tensors: a kernel's tensors by name.
    """
    return target_named(simulated_target(tensors)).generation


def _oldest_target(float8_dtypes: set[str]) -> Target:
    """The oldest target of those that the kernel is written for, that has these dtypes."""
    written_for = [target for target in TARGETS.values() if target.generation >= TRN2.generation]
    return next(target for target in written_for if float8_dtypes <= {*target.float8_dtypes})


def _float8_dtypes(field: Any) -> set[str]:
    """The names of the float8 dtypes among the arrays of one argument."""
    entries = jax.tree.leaves(field, is_leaf=lambda node: isinstance(node, Bits))
    return {entry.dtype.name for entry in entries if entry.dtype.name.startswith("float8")}
