"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini, dense."""

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
from jax_tkg.models.families.gguf_layers import prefixed
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.typed_keys import Range, TypedKeys

_ALIASES = {"su": "longrope", "yarn": "longrope"}
"""What the first releases called LongRoPE."""


def _phi3(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    rope = read_rope(keys, sizes.head_size, fraction=1.0, aliases=_ALIASES, original_length=4096)
    return {
        "layers": sizes.alike(rope, json_layers.window(keys)),
        "activation": json_layers.activation(keys),
    }


def _gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    # 0 says none.
    limits = Range(0, int(json_layers.WINDOW.maximum))
    window = file.metadata.integer(prefixed(file, "attention.sliding_window"), limits, 0)
    return {"layers": sizes.alike(gguf_layers.read_rope(file, sizes), window or None)}


PHI3 = JsonFamily(
    model_type="phi3",
    classes=("Phi3ForCausalLM",),
    storage=Storage(
        with_fused(
            NAMES_IN_JSON,
            query_key_value="self_attn.qkv_proj.weight",
            gate_up="mlp.gate_up_proj.weight",
        )
    ),
    read=_phi3,
    reads=frozenset({"sliding_window", "partial_rotary_factor"}),
)
PHI3_GGUF = GgufFamily(
    architecture="phi3",
    storage=Storage(
        with_fused(NAMES_IN_GGUF, query_key_value="attn_qkv.weight", gate_up="ffn_up.weight")
    ),
    read=_gguf,
    reads=frozenset({"attention.sliding_window"}),
    partial_rope=True,
)
