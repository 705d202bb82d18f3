"""What a call and the environment say of the Neuron machine: cores per logical core, generation."""

from __future__ import annotations

import os
from typing import Any

from jax_tkg.call.arguments import Operands, Parameters, is_stacked
from jax_tkg.hardware import target_named

CORES_VARIABLE = "NEURON_LOGICAL_NC_CONFIG"
"""Environment variable of Neuron's runtime: physical cores per logical core."""

TARGET_VARIABLE = "NEURON_PLATFORM_TARGET_OVERRIDE"
"""Environment variable of NKI's compiler: the machine that kernels are compiled for."""

DEFAULT_CORES = 2
"""Physical cores per logical core on Trainium2, where nothing says otherwise."""

NEWER_FLOAT8 = "float8_e4m3fn"
"""The float8 format that Trainium3 has and Trainium2 has not."""

NEWER_FLOAT8_GENERATION = 4
"""The NeuronCore version of Trainium3."""

QUANTIZABLE = ("W_gates", "W_ups", "W_downs")
"""The arguments that may be float8."""


def logical_cores(parameters: Parameters) -> int:
    """Physical cores per logical core: the argument, NEURON_LOGICAL_NC_CONFIG, or else 2.

    Raises:
      ValueError: the environment variable is neither 1 nor 2.
    """
    if parameters.lnc is not None:
        return parameters.lnc
    value = os.environ.get(CORES_VARIABLE) or str(DEFAULT_CORES)
    if value not in ("1", "2"):
        raise ValueError(f"{CORES_VARIABLE}: expected 1 or 2 where lnc is None, got {value!r}")
    return int(value)


def check_target(operands: Operands) -> None:
    """Checks that the machine which the environment names, if it does, has the weights' dtypes.

    Args:
      operands: the call's arrays, or their abstract values.

    Raises:
      ValueError: it has not, or there is no machine of that name.
    """
    if not os.environ.get(TARGET_VARIABLE):
        return
    target = target_named(None)
    name = _first_newer_float8(operands)
    if name is not None and target.generation < NEWER_FLOAT8_GENERATION:
        raise ValueError(
            f"{name}: expected float8_e4m3 or float8_e5m2 on {target.name}, the machine that "
            f"{TARGET_VARIABLE} names ({NEWER_FLOAT8} needs trn3), got {NEWER_FLOAT8}"
        )


def simulated_target(tensors: dict[str, Any]) -> str:
    """The machine to simulate: what the environment names, or the oldest that has the dtypes.

    Args:
      tensors: a kernel's tensors by name.
    """
    if os.environ.get(TARGET_VARIABLE):
        return target_named(None).name
    newer = any(_is_newer_float8(tensors.get(name)) for name in QUANTIZABLE)
    return "trn3" if newer else "trn2"


def nc_version(tensors: dict[str, Any]) -> int:
    """The number in NeuronCore-v<number> of the machine that the tensors' kernel is made for.

    Args:
      tensors: a kernel's tensors by name.
    """
    return target_named(simulated_target(tensors)).generation


def _first_newer_float8(operands: Operands) -> str | None:
    for name in QUANTIZABLE:
        if _is_newer_float8(getattr(operands, name)):
            return name
    return None


def _is_newer_float8(field: Any) -> bool:
    entries = (field,) if is_stacked(field) else field or ()
    return any(entry.dtype.name == NEWER_FLOAT8 for entry in entries)
