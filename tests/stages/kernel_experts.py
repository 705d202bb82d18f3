"""The kernel's experts, run alone in a small simulated kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import nki.isa as nisa
import numpy as np

from jax_tkg.kernels import experts
from jax_tkg.kernels.layer_operands import LayerOperands
from jax_tkg.kernels.layer_tensor import LayerTensor, LoopLayer, Weight
from jax_tkg.kernels.rms_norm import Normed
from jax_tkg.kernels.router import Routing
from jax_tkg.kernels.sizes import Context
from tests.stages.kernel_stages import KernelStages
from tests.stages.small_kernels import TARGETS, load_share, store


@dataclasses.dataclass(frozen=True)
class RoutingCase:
    """How tokens are routed, and the experts of one rank: `held` of E from `first`."""

    chosen: int
    method: str
    normalize: bool
    scale: float
    E: int
    held: int
    first: int


def run_experts(
    stages: KernelStages,
    x: np.ndarray,
    arrays: dict[str, np.ndarray | None],
    case: RoutingCase,
    activation: str = "silu",
    clamp_bound: float = 0.0,
    layer: int | None = None,
) -> np.ndarray:
    """One rank's part of the experts' sum, [T, H].

    Args:
      stages: on one or two cores.
      x: [T, H].
      arrays: those of one layer by name (W_router, bias_router, bias_selection, W_gate, W_up,
        W_down, and the scales and biases of these), or None; with `layer` those of the experts have
        a leading layer axis, of which `layer` is run as a loop on the device would.
      case: how tokens are routed.
      activation: of the gate.
      clamp_bound: bound of the inputs of float8 products.
      layer: which layer of stacks, or None.
    """
    T, H = x.shape

    def body(context: Context, x: Any, order: Any, **given: Any) -> Any:
        place = None if layer is None else LoopLayer(nisa.register_alloc(layer), 0, 1, layer + 1)

        def tensor(name: str) -> Any:
            found = given.get(name)
            if found is None:
                return None
            of_experts = name not in ("W_router", "bias_router", "bias_selection")
            if place is None or not of_experts:
                return LayerTensor(found)
            return place.tensor(found)

        def weight(name: str) -> Weight:
            return Weight(
                tensor(f"W_{name}"), scale=tensor(f"{name}_scale"), bias=tensor(f"bias_{name}")
            )

        operands = LayerOperands(
            None,
            None,
            weight("gate"),
            weight("up"),
            weight("down"),
            None,
            None,
            W_router=weight("router"),
            bias_selection=tensor("bias_selection"),
        )
        routing = Routing(case.chosen, case.method, case.normalize, case.scale, case.held, 1, order)
        if routing.may_be_fewer(T):
            context.ring.clear()
        normed = Normed(load_share(x, context), None)
        chosen = experts.choose_experts(normed, operands, routing, context, number=place)
        return store(experts.run_experts(chosen, operands, routing, context), context)

    order = np.zeros((1, case.E), np.float32)
    order[0, case.first : case.first + case.held] = np.arange(case.held, 0, -1)
    target = max(
        TARGETS.get(array.dtype.name, "trn2") for array in arrays.values() if array is not None
    )
    given = {"x": stages.residual(x), "order": order, **arrays}
    numbers = {"B": T, "H": H, "activation": activation, "clamp_bound": clamp_bound}
    (out,) = stages.run(body, [given], target, **numbers, dtype=x.dtype.name)
    return stages.joined(out, H, x.dtype.name)
