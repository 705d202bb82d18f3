"""HBM traffic by kind."""

from __future__ import annotations

from jax_tkg.call.operand_table import OPERANDS, WEIGHT_KINDS
from jax_tkg.lowering.kernel_operands import PREPARED

KINDS = ("weights", "cache", "activations", "other")

_TRAFFIC = {**dict.fromkeys(WEIGHT_KINDS, "weights"), "cache": "cache", "activation": "activations"}

_KIND_OF = {
    **dict.fromkeys(PREPARED, "other"),
    **{row.name: _TRAFFIC.get(row.kind, "other") for row in OPERANDS},
}


def kind_of(name: str) -> str:
    """The kind of an HBM tensor, from its name: "W_gates[0]" is of the weights.

    What a kernel allocates for itself, and the hidden states, are activations.
    """
    return _KIND_OF.get(name.split("[")[0], "activations")
