"""Granite 3, dense and with experts: factors of embeddings, scores, residuals and logits."""

from __future__ import annotations

from typing import Any

from jax_tkg.models.config import SHARED_SIZE
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


def _granite(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(read_rope(keys, sizes.head_size)),
        "activation": json_layers.activation(keys),
        "softmax_scale": json_layers.multiplier(keys, "attention_multiplier"),
        "embedding_scale": json_layers.multiplier(keys, "embedding_multiplier"),
        "residual_scale": json_layers.multiplier(keys, "residual_multiplier"),
        "logit_scale": 1 / json_layers.multiplier(keys, "logits_scaling"),
        **json_layers.biases(keys),
    }


def _granite_moe(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    shared = 0
    if "shared_intermediate_size" in keys:
        shared = keys.integer("shared_intermediate_size", SHARED_SIZE)
    experts = json_layers.experts(
        keys, "intermediate_size", 2, routing="topk_softmax", shared_size=shared
    )
    return _granite(keys, sizes) | {"experts": experts}


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(gguf_layers.read_rope(file, sizes)),
        "softmax_scale": gguf_layers.multiplier(file, "attention.scale"),
        "embedding_scale": gguf_layers.multiplier(file, "embedding_scale") or 1.0,
        "residual_scale": gguf_layers.multiplier(file, "residual_scale") or 1.0,
        "logit_scale": 1 / (gguf_layers.multiplier(file, "logit_scale") or 1.0),
        **gguf_layers.biases(file),
    }


def _moe_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    keys, key = file.metadata, gguf_layers.prefixed(file, "expert_shared_feed_forward_length")
    shared = keys.integer(key, SHARED_SIZE, default=0)
    experts = gguf_layers.some_experts(file, routing="topk_softmax", shared_size=shared)
    return _gguf(file, sizes) | {"experts": experts}


_FACTORS = frozenset(
    {
        "attention_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
    }
)
_FACTORS_IN_GGUF = frozenset(
    {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}
)
_EXPERTS = {
    "router": "block_sparse_moe.router.layer.weight",
    "expert_gate_up": "block_sparse_moe.input_linear.weight",
    "expert_down": "block_sparse_moe.output_linear.weight",
    "shared_gate_up": "shared_mlp.input_linear.weight",
    "shared_down": "shared_mlp.output_linear.weight",
}

GRANITE = JsonFamily(
    model_type="granite",
    classes=("GraniteForCausalLM",),
    storage=Storage(NAMES_IN_JSON),
    read=_granite,
    reads=_FACTORS,
)
GRANITE_MOE = JsonFamily(
    model_type="granitemoe",
    classes=("GraniteMoeForCausalLM",),
    storage=Storage({**NAMES_IN_JSON, **_EXPERTS}),
    read=_granite_moe,
    reads=_FACTORS | json_layers.READS_EXPERTS,
)
GRANITE_MOE_SHARED = JsonFamily(
    model_type="granitemoeshared",
    classes=("GraniteMoeSharedForCausalLM",),
    storage=GRANITE_MOE.storage,
    read=_granite_moe,
    reads=GRANITE_MOE.reads | {"shared_intermediate_size"},
)
GRANITE_GGUF = GgufFamily(
    architecture="granite",
    storage=Storage(NAMES_IN_GGUF, interleaved=True),
    read=_gguf,
    reads=_FACTORS_IN_GGUF,
)
GRANITE_MOE_GGUF = GgufFamily(
    architecture="granitemoe",
    storage=GRANITE_GGUF.storage,
    read=_moe_gguf,
    reads=_FACTORS_IN_GGUF | gguf_layers.READS_EXPERTS | {"expert_shared_feed_forward_length"},
)
