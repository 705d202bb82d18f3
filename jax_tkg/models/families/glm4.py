"""GLM-4 of 2025 (glm4), dense: half of each head turns, in adjacent pairs."""

from __future__ import annotations

from typing import Any

from jax_tkg.models.families import gguf_layers, json_layers
from jax_tkg.models.families.family import (
    NAMES_IN_GGUF,
    NAMES_IN_JSON,
    GgufFamily,
    JsonFamily,
    Sizes,
    with_fused,
)
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.typed_keys import TypedKeys


def _glm4(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(read_rope(keys, sizes.head_size, fraction=0.5)),
        "activation": json_layers.activation(keys),
        # Of queries, keys and values, not of attention's output.
        "projection_bias": keys.boolean("attention_bias", True),
        "post_norms": True,
    }


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(gguf_layers.read_rope(file, sizes)),
        "post_norms": True,
        **gguf_layers.biases(file),
    }


_JSON_NAMES = {
    **NAMES_IN_JSON,
    "post_attention_norm": "post_self_attn_layernorm.weight",
    "post_mlp_norm": "post_mlp_layernorm.weight",
}

GLM4 = JsonFamily(
    model_type="glm4",
    classes=("Glm4ForCausalLM",),
    storage=Storage(with_fused(_JSON_NAMES, gate_up="mlp.gate_up_proj.weight"), interleaved=True),
    read=_glm4,
    reads=frozenset({"attention_bias", "partial_rotary_factor"}),
    head_size=128,
)
GLM4_GGUF = GgufFamily(
    architecture="glm4",
    storage=Storage(with_fused(NAMES_IN_GGUF, gate_up="ffn_up.weight"), interleaved=True),
    read=_gguf,
    partial_rope=True,
)
