"""Granite 3, dense: factors of embeddings, scores, residuals and logits."""

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


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(gguf_layers.read_rope(file, sizes)),
        "softmax_scale": gguf_layers.multiplier(file, "attention.scale"),
        "embedding_scale": gguf_layers.multiplier(file, "embedding_scale") or 1.0,
        "residual_scale": gguf_layers.multiplier(file, "residual_scale") or 1.0,
        "logit_scale": 1 / (gguf_layers.multiplier(file, "logit_scale") or 1.0),
        **gguf_layers.biases(file),
    }


GRANITE = JsonFamily(
    model_type="granite",
    classes=("GraniteForCausalLM",),
    storage=Storage(NAMES_IN_JSON),
    read=_granite,
    reads=frozenset(
        {
            "attention_bias",
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
        }
    ),
)
GRANITE_GGUF = GgufFamily(
    architecture="granite",
    storage=Storage(NAMES_IN_GGUF, interleaved=True),
    read=_gguf,
    reads=frozenset({"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}),
)
