"""Splits one call of the primitive into launches of the kernel, each with all layers or a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jax_tkg.call.arguments import PER_LAYER, PER_LAYER_CACHES, Operands, Parameters, is_stacked
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch

RunLaunch = Callable[[dict[str, Any], Launch], tuple[jax.Array, Any, Any]]
"""Runs a kernel on its tensors by name. Returns hidden states, key caches and value caches."""


def run_launches(
    operands: Operands,
    parameters: Parameters,
    run: RunLaunch,
    kernel: KernelInterface = MEGAKERNEL,
) -> tuple[jax.Array, Any, Any]:
    """Runs all layers, a launch at a time.

    Args:
      operands: without `Bits`.
      parameters: the static parameters.
      run: runs one launch.
      kernel: the kernel that is launched.

    Returns:
      The results of `reference.transformer`.
    """
    total = parameters.num_layers
    step = parameters.layers_per_launch or total
    looped = launches_loop(operands, parameters, kernel)
    tensors = kernel.operands(operands, looped)
    groups = parameters.replica_groups
    if groups is not None and len(groups[0]) == 1:
        groups = None
    stacked = is_stacked(operands.K_caches)
    hidden = operands.X
    K_caches: Any = operands.K_caches if stacked else ()
    V_caches: Any = operands.V_caches if stacked else ()
    for first in range(0, total, step):
        count = min(step, total - first)
        given = {**tensors, "X": hidden, **_layers(tensors, first, count)}
        if stacked:
            given["K_caches"], given["V_caches"] = K_caches, V_caches
        launch = Launch(
            parameters=parameters,
            replica_groups=groups,
            first_layer=first,
            num_layers=count,
            stacked_caches=stacked,
            looped=looped,
        )
        hidden, K_updated, V_updated = run(given, launch)
        K_caches = K_updated if stacked else (*K_caches, *K_updated)
        V_caches = V_updated if stacked else (*V_caches, *V_updated)
    return hidden, K_caches, V_caches


def launches_loop(
    operands: Operands, parameters: Parameters, kernel: KernelInterface = MEGAKERNEL
) -> bool:
    """Whether the layers of a launch loop on the device.

    Args:
      operands: the call's arrays, or their abstract values.
      parameters: its static parameters.
      kernel: the kernel that is launched.
    """
    layers = parameters.layers_per_launch or parameters.num_layers
    return layers > 1 and kernel.loops(operands)


def layer_tuples(tensors: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """The tensors in the form that the kernel takes.

    The launch's layers of weights and scales are put into tuples. If the layers loop on the device,
    the kernel takes the whole stacked tensors.
    """
    if launch.looped:
        return tensors
    layers = range(launch.first_layer, launch.first_layer + launch.num_layers)
    return {
        name: tuple(value[index] for index in layers)
        if name in PER_LAYER and name not in PER_LAYER_CACHES and is_stacked(value)
        else value
        for name, value in tensors.items()
    }


def _layers(tensors: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    """The per-layer tensors of one launch. Stacked tensors are passed whole."""
    chosen = {}
    for name in PER_LAYER:
        value = tensors.get(name)
        if isinstance(value, tuple):
            value = value[first : first + count]
            # A launch without a quantized layer has no scales.
            chosen[name] = None if all(entry is None for entry in value) else value
    return chosen
