"""HBM traffic by kind."""

from __future__ import annotations

from jax_tkg.call.operand_table import HEAD_KINDS, OPERANDS, WEIGHT_KINDS
from jax_tkg.lowering.kernel_operands import PREPARED

KINDS = ("weights", "router", "experts", "cache", "activations", "other")

LASTING = ("weights", "router", "experts", "cache")
"""Kinds of what is there before a step and after it."""

_TRAFFIC = {
    **dict.fromkeys((*WEIGHT_KINDS, *HEAD_KINDS), "weights"),
    "cache": "cache",
    "activation": "activations",
}

_ROUTER = ("W_routers", "bias_routers", "bias_selections")

_KIND_OF = {
    **dict.fromkeys(PREPARED, "other"),
    **{row.name: _TRAFFIC.get(row.kind, "other") for row in OPERANDS},
    **dict.fromkeys(_ROUTER, "router"),
}

_OF_EXPERTS = {
    row.name for row in OPERANDS if row.of_experts is not None or "E_held" in str(row.layout)
}


def kind_of(name: str, experts: bool = False) -> str:
    """The kind of an HBM tensor, from its name: "W_gates[0]" is of the weights.

    What a kernel allocates for itself, and the hidden states, are activations.

    Args:
      name: of the tensor.
      experts: whether layers have experts, to which "W_gates[0]" then belongs.
    """
    operand = name.split("[")[0]
    if experts and operand in _OF_EXPERTS:
        return "experts"
    return _KIND_OF.get(operand, "activations")
