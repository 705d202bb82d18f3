"""gpt-oss: experts with biases, sinks, windows in every other layer, YaRN."""

from __future__ import annotations

from typing import Any

from jax_tkg.models.families import gguf_layers, json_layers
from jax_tkg.models.families.family import (
    NAMES_IN_GGUF,
    NAMES_IN_JSON,
    GgufFamily,
    JsonFamily,
    Sizes,
)
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.typed_keys import TypedKeys


def _gpt_oss(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    # transformers takes its own activation, whatever `hidden_act` says.
    keys.check_neutral("swiglu_limit", 7.0)
    keys.check_neutral("swiglu_alpha", 1.702)
    if "rope_parameters" not in keys:
        # Without either key transformers takes the published YaRN, which every file states.
        keys.object("rope_scaling", required=True)
    rope = read_rope(keys, sizes.head_size, theta=150000.0)
    window = json_layers.window(keys, 128)
    sliding = json_layers.are_sliding(keys, [index % 2 == 0 for index in range(sizes.num_layers)])
    experts = json_layers.experts(keys, "intermediate_size", 4, routing="topk_softmax", biases=True)
    keys.check_neutral("experts_per_token", experts.per_token)
    return {
        "layers": tuple(sizes.kind(rope, window if slides else None) for slides in sliding),
        "activation": "swiglu_oai",
        "sinks": True,
        "experts": experts,
        **json_layers.biases(keys, True),
    }


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    # Its own YaRN leaves the limits between pairs. llama.cpp, whose files do not say it, widens
    # them to whole pairs.
    rope = gguf_layers.read_rope(file, sizes, theta=150000.0, truncate=False)
    key = gguf_layers.prefixed(file, "attention.sliding_window")
    window = file.metadata.integer(key, json_layers.WINDOW)
    return {
        "layers": tuple(
            sizes.kind(rope, None if index % 2 else window) for index in range(sizes.num_layers)
        ),
        "activation": "swiglu_oai",
        "sinks": True,
        "experts": gguf_layers.some_experts(file, routing="topk_softmax", biases=True),
        **gguf_layers.biases(file),
    }


_NAMES_IN_GGUF = {
    **{name: stored for name, stored in NAMES_IN_GGUF.items() if not name.startswith("post_")},
    "mlp_norm": "post_attention_norm.weight",
    "sinks": "attn_sinks.weight",
    "router_bias": "ffn_gate_inp.bias",
    "expert_gate_bias": "ffn_gate_exps.bias",
    "expert_up_bias": "ffn_up_exps.bias",
    "expert_down_bias": "ffn_down_exps.bias",
}

GPT_OSS = JsonFamily(
    model_type="gpt_oss",
    classes=("GptOssForCausalLM",),
    storage=Storage(
        {
            **NAMES_IN_JSON,
            "sinks": "self_attn.sinks",
            "router": "mlp.router.weight",
            "router_bias": "mlp.router.bias",
            "expert_gate_up": "mlp.experts.gate_up_proj",
            "expert_gate_up_bias": "mlp.experts.gate_up_proj_bias",
            "expert_down": "mlp.experts.down_proj",
            "expert_down_bias": "mlp.experts.down_proj_bias",
        },
        experts_by_column=True,
    ),
    read=_gpt_oss,
    reads=json_layers.READS_EXPERTS
    | {
        "attention_bias",
        "experts_per_token",
        "layer_types",
        "sliding_window",
        "swiglu_alpha",
        "swiglu_limit",
    },
    head_size=64,
)
GPT_OSS_GGUF = GgufFamily(
    architecture="gpt-oss",
    storage=Storage(_NAMES_IN_GGUF),
    read=_gguf,
    reads=gguf_layers.READS_EXPERTS | {"attention.sliding_window"},
)
