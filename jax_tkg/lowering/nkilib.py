"""AWS's published kernel behind the same call: where it is found and how it is called."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import PARTITIONS, Operands
from jax_tkg.call.operand_table import names
from jax_tkg.lowering.kernel_interface import KernelInterface, Launch

CHECKOUT_VARIABLE = "NKILIB"
"""Environment variable that names a checkout of aws-neuron/nki-library, branch 2.29_release."""

SCALES = names("scale")

_MODULE = "experimental.transformer.transformer_tkg"


def find_module() -> str:
    """Name of the module that has AWS's kernel.

    Raises:
      ValueError: there is no checkout and no installed library.
    """
    named = os.environ.get(CHECKOUT_VARIABLE)
    if not named:
        # The compiler bundles the library under this name.
        if importlib.util.find_spec("nkilib") is not None:
            return f"nkilib.{_MODULE}"
        raise ValueError(
            "implementation: expected AWS's kernel library for 'nkilib' (a checkout of "
            f"aws-neuron/nki-library that {CHECKOUT_VARIABLE} names, or the nkilib of an installed "
            "Neuron compiler), got neither"
        )
    source = pathlib.Path(named).resolve() / "src"
    package = source / "nkilib_src" / "nkilib"
    if not package.is_dir():
        raise ValueError(
            f"implementation: expected {CHECKOUT_VARIABLE} to name a checkout of "
            f"aws-neuron/nki-library for 'nkilib', got {named!r}, which has no "
            "src/nkilib_src/nkilib"
        )
    if str(source) not in sys.path:
        sys.path.append(str(source))
    return f"nkilib_src.nkilib.{_MODULE}"


def _operands(operands: Operands, looped: bool = False) -> dict[str, Any]:
    """AWS's tensors: 0/1 masks, unsigned positions, and scales with a row per partition."""
    del looped  # It takes a tensor per layer.
    positions = operands.position_ids
    given = {name: getattr(operands, name) for name in NKILIB.tensors}
    return {
        **given,
        **{name: _repeated(given[name]) for name in SCALES},
        "mask_cache": (operands.mask_cache != 0).astype(jnp.uint8),
        "position_ids": None if positions is None else positions.astype(jnp.uint32),
    }


def _repeated(scales: tuple[Any, ...] | None) -> tuple[jax.Array | None, ...] | None:
    if scales is None:
        return None
    return tuple(
        None if scale is None else jnp.broadcast_to(scale[:1], (PARTITIONS, scale.shape[1]))
        for scale in scales
    )


def _static_arguments(launch: Launch) -> dict[str, Any]:
    groups = launch.replica_groups
    return {
        "mask_active": None,
        "num_layers": launch.num_layers,
        "eps": launch.parameters.eps,
        "replica_groups": None if groups is None else [list(group) for group in groups],
    }


NKILIB = KernelInterface(
    description="'nkilib'",
    # Written out: what this list does not name is refused.
    tensors=(
        "X",
        "W_qkvs",
        "W_outs",
        "W_gates",
        "W_ups",
        "W_downs",
        "W_gamma_qkvs",
        "W_gamma_mlps",
        "K_caches",
        "V_caches",
        "RoPE_cos",
        "RoPE_sin",
        "mask_cache",
        "position_ids",
        *SCALES,
    ),
    consumed=("mask_active",),
    options=("eps", "clamp_bound"),
    operands=_operands,
    loops=lambda _: False,
    static_arguments=_static_arguments,
    returns_caches=False,
    module=find_module,
)
"""`nkilib.experimental.transformer.transformer_tkg`, as of branch 2.29_release."""
