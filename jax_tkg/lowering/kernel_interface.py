"""How a kernel is called: its tensors, its static arguments and what it returns.

A kernel is closed by default: an operand or an arithmetic option that it does not name is refused
by its name, never dropped. Our kernel names what it takes by the parameters of its function.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.operand_table import BY_NAME
from jax_tkg.call.options import OPTIONS
from jax_tkg.lowering.kernel_operands import CONSUMED, PREPARED, kernel_operands, layers_loop
from jax_tkg.lowering.source_signature import signature_in, source_file

KERNEL_FUNCTION = "transformer_tkg"
"""Name of the kernel's function, in our module and in AWS's."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is static in one launch; hashable.

    Attributes:
      parameters: those of the call.
      replica_groups: groups of ranks, or None for no all-reduce.
      first_layer: where it begins in layer-stacked tensors; 0 with a tensor per layer.
      num_layers: how many layers it runs.
      stacked_caches: whether the caches have a layer axis.
      caches_by_kind: whether they are then tuples with a tensor for the layers of each kind.
      looped: whether all per-layer tensors have one, and the layers loop on the device.
      place_bytes: bytes per partition for the megakernel's `Places`.
      held_buffers: its buffers for weights that load while a router chooses experts.
    """

    parameters: Parameters
    replica_groups: tuple[tuple[int, ...], ...] | None
    first_layer: int
    num_layers: int
    stacked_caches: bool
    looped: bool = False
    caches_by_kind: bool = False
    place_bytes: int = 0
    held_buffers: int = 0

    def argument(self, name: str) -> Any:
        """The value of a kernel's static parameter: the launch's own, or the call's."""
        own = {field.name for field in dataclasses.fields(self)} - {"parameters"}
        return getattr(self if name in own else self.parameters, name)


@dataclasses.dataclass(frozen=True)
class KernelInterface:
    """A kernel and how to call it.

    Attributes:
      description: what messages call it.
      tensors: names of its tensor parameters, in order.
      consumed: operands that it gets in another form, among `tensors` under other names.
      options: names of the arithmetic options that it takes.
      operands: makes its tensors, by name, of the primitive's operands, for layers that loop on
        the device or not, and for the kinds of the layers, if there are several; with the call's
        parameters they are those of the rank that the traced program runs on, else of the first.
      loops: whether the layers of these operands can loop.
      static_arguments: its other arguments, by name.
      returns_caches: whether it returns the caches after the hidden states, or only writes them.
      module: gives the name of the module that it can be imported from.
    """

    description: str
    tensors: tuple[str, ...]
    consumed: tuple[str, ...]
    options: tuple[str, ...]
    operands: Callable[..., dict[str, Any]]
    loops: Callable[[Operands], bool]
    static_arguments: Callable[[Launch], dict[str, Any]]
    returns_caches: bool
    module: Callable[[], str]

    def check_supported(self, operands: Operands, parameters: Parameters) -> None:
        """Checks that the kernel takes every operand and option that is given.

        Raises:
          ValueError: it does not; the message names the argument.
        """
        for name in operands.given():
            if name not in self.tensors and name not in self.consumed:
                raise ValueError(
                    f"{name}: expected None for {self.description}, which does not take it, got "
                    "an array"
                )
        for option in OPTIONS:
            value = getattr(parameters, option.name)
            if option.arithmetic and option.name not in self.options and value != option.default:
                raise ValueError(
                    f"{option.name}: expected {option.default!r} for {self.description}, which "
                    f"does not take it, got {value!r}"
                )


def parameters_of(module: str, function: str = KERNEL_FUNCTION) -> tuple[str, ...]:
    """Names of a function's parameters, read from the module's source, which is not imported.

    Raises:
      ValueError: the module has no such function.
    """
    path = source_file(module)
    signature = path and signature_in(path, function)
    if not signature:
        raise ValueError(f"{module}: expected a function {function}, got none")
    return signature.names


_MODULE = "jax_tkg.kernels.transformer"


def _megakernel() -> KernelInterface:
    names = parameters_of(_MODULE)
    tensors = tuple(name for name in names if name in BY_NAME or name in PREPARED)
    static = tuple(name for name in names if name not in tensors)

    def static_arguments(launch: Launch) -> dict[str, Any]:
        return {name: launch.argument(name) for name in static}

    return KernelInterface(
        description="the Neuron kernel",
        tensors=tensors,
        consumed=CONSUMED,
        options=static,
        operands=functools.partial(kernel_operands, names=tensors),
        loops=layers_loop,
        static_arguments=static_arguments,
        returns_caches=True,
        module=lambda: _MODULE,
    )


MEGAKERNEL = _megakernel()
"""`jax_tkg.kernels.transformer.transformer_tkg`."""
