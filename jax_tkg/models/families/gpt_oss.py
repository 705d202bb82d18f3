"""gpt-oss: experts with biases, sinks, windows in every other layer, YaRN."""

from __future__ import annotations

from typing import Any

from jax_tkg.models.families import json_layers
from jax_tkg.models.families.family import NAMES_IN_JSON, JsonFamily, Sizes
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.typed_keys import TypedKeys


def _gpt_oss(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    # transformers takes its own activation, whatever `hidden_act` says.
    keys.check_neutral("swiglu_limit", 7.0)
    keys.check_neutral("swiglu_alpha", 1.702)
    rope, window = read_rope(keys, sizes.head_size), json_layers.window(keys, 128)
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
