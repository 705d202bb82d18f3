"""HBM traffic by kind."""

from __future__ import annotations

from jax_tkg.lowering.kernel_interface import SCALES, WEIGHTS

KINDS = ("weights", "cache", "activations", "other")

_KIND_OF = {
    **dict.fromkeys((*WEIGHTS, *SCALES), "weights"),
    "K_caches": "cache",
    "V_caches": "cache",
    "RoPE_cos": "other",
    "RoPE_sin": "other",
    "mask_cache": "other",
    "prior_mask": "other",
    "active_mask": "other",
    "window_places": "other",
    "key_places": "other",
    "value_places": "other",
    "position_ids": "other",
}


def kind_of(name: str) -> str:
    """The kind of an HBM tensor, from its name: "W_gates[0]" is of the weights.

    What a kernel allocates for itself, and the hidden states, are activations.
    """
    return _KIND_OF.get(name.split("[")[0], "activations")
