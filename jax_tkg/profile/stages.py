"""The stage of the forward pass that an instruction of our kernel belongs to."""

from __future__ import annotations

from jax_tkg.simulator.machine.record import Instruction

NORM, QKV, ROPE, ATTENTION = "norm", "QKV", "RoPE", "attention, caches"
OUTPUT, ALL_REDUCE, MLP, HEAD = "output", "all-reduce, residual", "MLP or experts", "head"
WAITS = "swaps, barriers"
OTHER = "other"

STAGES = (NORM, QKV, ROPE, ATTENTION, OUTPUT, ALL_REDUCE, MLP, HEAD, WAITS, OTHER)
"""All stages, in the order of a layer. Swaps and barriers of the cores, in which other engines may
wait for them, are a stage of their own. Other is what a launch does before and after its layers."""

_OF_TENSOR = {
    **dict.fromkeys(("W_qkvs", "bias_qkvs"), QKV),
    **dict.fromkeys(("W_outs", "bias_outs"), OUTPUT),
    **dict.fromkeys(
        (
            *("W_gates", "W_ups", "W_downs", "W_gate_scales", "W_up_scales", "W_down_scales"),
            *("W_routers", "bias_routers", "bias_selections", "expert_order"),
            *("bias_gates", "bias_ups", "bias_downs"),
            *("W_shared_gates", "W_shared_ups", "W_shared_downs"),
        ),
        MLP,
    ),
    **dict.fromkeys(("W_head", "W_gamma_final"), HEAD),
    **dict.fromkeys(
        (
            *("W_gamma_qkvs", "W_gamma_mlps", "W_gamma_qs", "W_gamma_ks"),
            *("W_gamma_post_attentions", "W_gamma_post_mlps"),
        ),
        NORM,
    ),
    **dict.fromkeys(("RoPE_cos", "RoPE_sin"), ROPE),
    **dict.fromkeys(
        (
            *("K_caches", "V_caches", "k_scales", "v_scales", "sinks"),
            *("prior_mask", "active_mask", "context_ranges", "block_numbers"),
            *("window_offsets", "key_offsets", "value_offsets"),
        ),
        ATTENTION,
    ),
}
"""By the name of an HBM tensor: its loads belong to the stage that uses it, which may be a later
one than the stage that begins them."""

_OF_FILE = {
    "rms_norm": NORM,
    "rope": ROPE,
    **dict.fromkeys(
        (
            *("attention", "attention_blocks", "attention_loads", "attention_scores"),
            *("softmax", "masks", "blocks", "cache_scales", "cache_update"),
        ),
        ATTENTION,
    ),
    "all_reduce": ALL_REDUCE,
    **dict.fromkeys(("mlp", "experts", "router"), MLP),
}

_OF_FUNCTION = {
    "_heads": QKV,
    "_project_out": OUTPUT,
    # What these do themselves, here and in `LayerStart`, is to load the gains of norms.
    "transformer_layer": NORM,
    "__init__": NORM,
}
"""Of `layer.py`, where a layer is put together."""

_OF_OPCODE = {"all_reduce": ALL_REDUCE, "sendrecv": WAITS, "core_barrier": WAITS}


def stage_of(instruction: Instruction) -> str:
    """One of `STAGES`."""
    if any(file == "candidates" for file, _ in instruction.functions):
        return HEAD
    for access in instruction.accesses:
        if access.space == "hbm":
            stage = _OF_TENSOR.get(access.name.split("[")[0])
            if stage is not None:
                return stage
    if instruction.opcode in _OF_OPCODE:
        return _OF_OPCODE[instruction.opcode]
    for file, function in instruction.functions:
        if file in _OF_FILE:
            return _OF_FILE[file]
        if file == "layer" and function in _OF_FUNCTION:
            return _OF_FUNCTION[function]
    return OTHER
