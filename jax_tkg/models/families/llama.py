"""Llama 2 and 3, SmolLM2 and their like, Mistral and Mixtral."""

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


def _llama(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(read_rope(keys, sizes.head_size)),
        "activation": json_layers.activation(keys),
        **json_layers.biases(keys),
    }


def _mistral(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    rope = read_rope(keys, sizes.head_size)
    return {
        "layers": sizes.alike(rope, json_layers.window(keys, 4096)),
        "activation": json_layers.activation(keys),
    }


def _mixtral(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    rope = read_rope(keys, sizes.head_size, theta=1e6)
    return {
        "layers": sizes.alike(rope, json_layers.window(keys)),
        "activation": json_layers.activation(keys),
        "experts": json_layers.experts(keys, "intermediate_size", 2, normalize_weights=True),
    }


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return {
        "layers": sizes.alike(gguf_layers.read_rope(file, sizes)),
        "experts": gguf_layers.experts(file, normalize_weights=True),
        **gguf_layers.biases(file),
    }


LLAMA = JsonFamily(
    model_type="llama",
    # The second is the name in the earliest conversions.
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    storage=Storage(NAMES_IN_JSON),
    read=_llama,
    reads=frozenset({"attention_bias"}),
)
MISTRAL = JsonFamily(
    model_type="mistral",
    classes=("MistralForCausalLM",),
    storage=Storage(NAMES_IN_JSON),
    read=_mistral,
    reads=frozenset({"sliding_window"}),
)
MIXTRAL = JsonFamily(
    model_type="mixtral",
    classes=("MixtralForCausalLM",),
    storage=Storage(
        {
            **NAMES_IN_JSON,
            "router": "block_sparse_moe.gate.weight",
            "expert_gate": "block_sparse_moe.experts.{expert}.w1.weight",
            "expert_up": "block_sparse_moe.experts.{expert}.w3.weight",
            "expert_down": "block_sparse_moe.experts.{expert}.w2.weight",
        }
    ),
    read=_mixtral,
    reads=json_layers.READS_EXPERTS | {"sliding_window"},
)
LLAMA_GGUF = GgufFamily(
    # Also Mistral's, whose window llama.cpp does not know, and Mixtral's.
    architecture="llama",
    storage=Storage(NAMES_IN_GGUF, interleaved=True),
    read=_gguf,
    reads=gguf_layers.READS_EXPERTS,
)
