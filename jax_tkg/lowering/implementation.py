"""The type of an implementation of the operation. `registry` lists all implementations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jax_tkg.bits import Bits, as_bits, without_bits
from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.lowering.kernel_interface import KernelInterface

Results = tuple[Any, ...]
"""Hidden states, and the updated caches as `Operands` holds them; with a head logits and ids of
candidates too."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute the operation.

    Attributes:
      name: the value of the argument `implementation`.
      description: what it is, in messages.
      platforms: the platforms that it can be lowered for, each alone. Empty: all of them, also
        several at once.
      available: given a platform, says why the implementation cannot run on this machine, in one
        line, or None if it can.
      check: given operands (or their abstract values), parameters and a platform, raises
        ValueError if this call is beyond the implementation's limits; the message names the
        argument, what was expected and what came.
      run: given operands, parameters and a platform (None: several), computes the results.
      kernel: returns the kernel that runs a call. None for implementations without a kernel.
      calls_host: whether programs call Python on the host. Its exceptions reach the caller.
    """

    name: str
    description: str
    platforms: tuple[str, ...]
    available: Callable[[str], str | None]
    check: Callable[[Operands, Parameters, str], None]
    run: Callable[[Operands, Parameters, str | None], Results]
    kernel: Callable[[Operands], KernelInterface] | None = None
    calls_host: bool = False


def on_plain_arrays(
    run: Callable[[Operands, Parameters], Results],
) -> Callable[[Operands, Parameters, str | None], Results]:
    """Runs an implementation that takes plain arrays. Caches passed as `Bits` come back as `Bits`.

    Args:
      run: takes operands without `Bits`.
    """

    def on_operands(operands: Operands, parameters: Parameters, platform: str | None) -> Results:
        del platform  # A kernel knows where it runs.
        hidden, K_caches, V_caches, *candidates = run(without_bits(operands), parameters)
        return (
            hidden,
            _in_form_of(operands.K_caches, K_caches),
            _in_form_of(operands.V_caches, V_caches),
            *candidates,
        )

    return on_operands


def _in_form_of(given: Any, results: Any) -> Any:
    return jax.tree.map(
        lambda before, after: as_bits(after) if isinstance(before, Bits) else after,
        given,
        results,
        is_leaf=lambda node: isinstance(node, Bits),
    )
