"""Qwen2, Qwen2.5 and Qwen3, dense, and Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from jax_tkg.models.config import LayerKind
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


def _layers(keys: TypedKeys, sizes: Sizes) -> tuple[LayerKind, ...]:
    rope = read_rope(keys, sizes.head_size)
    windows = json_layers.window_from_a_layer_on(keys, sizes.num_layers)
    return tuple(sizes.kind(rope, window) for window in windows)


def _qwen2(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": _layers(keys, sizes),
        "activation": json_layers.activation(keys),
        "projection_bias": True,
    }


def _qwen3(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": _layers(keys, sizes),
        "activation": json_layers.activation(keys),
        "head_norms": True,
        **json_layers.biases(keys),
    }


def _qwen3_moe(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    slides = keys.boolean("use_sliding_window", False)
    window = json_layers.window(keys, 4096) if slides else None
    dense = json_layers.dense_layers(keys, sizes.num_layers)
    if len(dense) == sizes.num_layers:
        raise keys.error("mlp_only_layers", "a model of which some layer has experts")
    return {
        "layers": sizes.alike(read_rope(keys, sizes.head_size), window),
        "activation": json_layers.activation(keys),
        "head_norms": True,
        "experts": json_layers.experts(
            keys,
            "moe_intermediate_size",
            8,
            normalize_weights=keys.boolean("norm_topk_prob", False),
        ),
        "dense_layers": dense,
        **json_layers.biases(keys),
    }


def _qwen2_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(gguf_layers.read_rope(file, sizes)),
        **gguf_layers.biases(file),
    }


def _qwen3_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return _qwen2_gguf(file, sizes) | {"head_norms": True}


def _qwen3_moe_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    experts = gguf_layers.some_experts(file, normalize_weights=True)
    return _qwen3_gguf(file, sizes) | {"experts": experts}


QWEN2 = JsonFamily(
    model_type="qwen2",
    classes=("Qwen2ForCausalLM",),
    storage=Storage(NAMES_IN_JSON),
    read=_qwen2,
    reads=json_layers.READS_WINDOWS,
)
QWEN3 = JsonFamily(
    model_type="qwen3",
    classes=("Qwen3ForCausalLM",),
    storage=Storage(NAMES_IN_JSON),
    read=_qwen3,
    reads=json_layers.READS_WINDOWS | {"attention_bias"},
    head_size=128,
)
QWEN3_MOE = JsonFamily(
    model_type="qwen3_moe",
    classes=("Qwen3MoeForCausalLM",),
    storage=Storage(
        {
            **NAMES_IN_JSON,
            "router": "mlp.gate.weight",
            "expert_gate": "mlp.experts.{expert}.gate_proj.weight",
            "expert_up": "mlp.experts.{expert}.up_proj.weight",
            "expert_down": "mlp.experts.{expert}.down_proj.weight",
        }
    ),
    read=_qwen3_moe,
    reads=json_layers.READS_EXPERTS
    | {
        "attention_bias",
        "decoder_sparse_step",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "sliding_window",
        "use_sliding_window",
    },
)
QWEN2_GGUF = GgufFamily("qwen2", Storage(NAMES_IN_GGUF), _qwen2_gguf)
QWEN3_GGUF = GgufFamily("qwen3", Storage(NAMES_IN_GGUF), _qwen3_gguf)
QWEN3_MOE_GGUF = GgufFamily(
    "qwen3moe", Storage(NAMES_IN_GGUF), _qwen3_moe_gguf, gguf_layers.READS_EXPERTS
)
