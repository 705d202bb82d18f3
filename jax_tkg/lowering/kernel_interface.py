"""How a kernel is called: its tensors, its static arguments and what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jax_tkg.call.arguments import PER_LAYER, PER_LAYER_CACHES, Operands
from jax_tkg.lowering.kernel_operands import kernel_operands, layers_loop

WEIGHTS = tuple(
    name for name in PER_LAYER if name not in PER_LAYER_CACHES and not name.endswith("_scales")
)
SCALES = tuple(name for name in PER_LAYER if name.endswith("_scales"))


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is static in one launch; hashable.

    Attributes:
      eps: RMSNorm epsilon.
      replica_groups: groups of ranks, or None for no all-reduce.
      sbuf_residual_and_cc: all-reduce from SBUF to SBUF.
      clamp_bound: bound of the inputs of float8 products.
      first_layer: where it begins in layer-stacked tensors; 0 with a tensor per layer.
      num_layers: how many layers it runs.
      stacked_caches: whether the caches have a layer axis.
      looped: whether all per-layer tensors have one, and the layers loop on the device.
    """

    eps: float
    replica_groups: tuple[tuple[int, ...], ...] | None
    sbuf_residual_and_cc: bool
    clamp_bound: float
    first_layer: int
    num_layers: int
    stacked_caches: bool
    looped: bool = False

    def arguments(self) -> dict[str, Any]:
        """By the names of our kernel's parameters."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class KernelInterface:
    """A kernel and how to call it.

    Attributes:
      tensors: names of its tensor parameters, in order.
      operands: makes those tensors, by name, of the primitive's operands, for layers that loop on
        the device or not.
      loops: whether the layers of these operands can loop.
      static_arguments: its other arguments, by name.
      returns_caches: whether it returns the caches after the hidden states, or only writes them.
      module: gives the name of the module that it can be imported from.
    """

    tensors: tuple[str, ...]
    operands: Callable[[Operands, bool], dict[str, Any]]
    loops: Callable[[Operands], bool]
    static_arguments: Callable[[Launch], dict[str, Any]]
    returns_caches: bool
    module: Callable[[], str]


MEGAKERNEL = KernelInterface(
    tensors=(
        "X",
        *WEIGHTS,
        *PER_LAYER_CACHES,
        "RoPE_cos",
        "RoPE_sin",
        "prior_mask",
        "active_mask",
        "window_places",
        "key_places",
        "value_places",
        *SCALES,
    ),
    operands=kernel_operands,
    loops=layers_loop,
    static_arguments=Launch.arguments,
    returns_caches=True,
    module=lambda: "jax_tkg.kernels.transformer",
)
"""`jax_tkg.kernels.transformer.transformer_tkg`."""
