"""Gemma 2, and Gemma 3's text models."""

from __future__ import annotations

import math
from typing import Any

from jax_tkg.models.config import ROPE_THETA, LayerKind
from jax_tkg.models.families import gguf_layers, json_layers
from jax_tkg.models.families.family import (
    NAMES_IN_GGUF,
    NAMES_IN_JSON,
    GgufFamily,
    JsonFamily,
    Sizes,
)
from jax_tkg.models.families.gguf_layers import prefixed
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.json_rope import read_rope, read_rope_of
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.rope_scaling import Rope, plain
from jax_tkg.models.typed_keys import Range, TypedKeys

_PERIOD = Range(1, 1 << 12)
_SCALAR = Range(1e-3, 1e6)
_BIG_GEMMA2_LAYERS, _BIG_GEMMA3_LAYERS = 46, 62
"""Layers of the 27B models, whose scores are scaled by (hidden size / heads)**-0.5. GGUF files do
not say it; llama.cpp goes by the layers too."""


def _common(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    """What Gemma 2 and 3 share. The checkpoint's `hidden_act` is of no effect in transformers."""
    scalar = keys.number("query_pre_attn_scalar", _SCALAR, 256.0)
    return {
        "activation": json_layers.activation(keys, "hidden_activation", "gelu_pytorch_tanh"),
        "softmax_scale": scalar**-0.5,
        "post_norms": True,
        "embedding_scale": math.sqrt(sizes.hidden_size),
        **json_layers.biases(keys),
    }


def _kinds(
    sizes: Sizes, sliding: list[bool], window: int | None, local: Rope, everywhere: Rope
) -> tuple[LayerKind, ...]:
    kinds = {True: sizes.kind(local, window), False: sizes.kind(everywhere, None)}
    return tuple(kinds[slides] for slides in sliding)


def _every(period: int, num_layers: int) -> list[bool]:
    """Windows in all layers but each `period`-th."""
    return [bool((index + 1) % period) for index in range(num_layers)]


def _gemma2(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    window = json_layers.window(keys, 4096)
    size_key = "sliding_window_size"
    if size_key in keys and keys.raw(size_key) != window:
        raise keys.error(size_key, f"{window}, as sliding_window")
    rope = read_rope(keys, sizes.head_size)
    sliding = json_layers.are_sliding(keys, _every(2, sizes.num_layers))
    return _common(keys, sizes) | {
        "layers": _kinds(sizes, sliding, window, rope, rope),
        "attention_softcap": json_layers.soft_cap(keys, "attn_logit_softcapping", 50.0),
        "logit_softcap": json_layers.soft_cap(keys, "final_logit_softcapping", 30.0),
    }


def _gemma3(keys: TypedKeys, sizes: Sizes) -> dict[str, Any]:
    # Gemma3Attention knows the cap of scores and leaves it out.
    keys.check_neutral("attn_logit_softcapping", ())
    period = keys.integer("sliding_window_pattern", _PERIOD, 6)
    if "layer_types" not in keys:
        # transformers writes this beside `layer_types`, and does not read it.
        keys.check_neutral("_sliding_window_pattern", period)
    sliding = json_layers.are_sliding(keys, _every(period, sizes.num_layers))
    local, everywhere = _gemma3_ropes(keys, sizes.head_size)
    return _common(keys, sizes) | {
        "layers": _kinds(sizes, sliding, json_layers.window(keys, 4096), local, everywhere),
        "head_norms": True,
        "logit_softcap": json_layers.soft_cap(keys, "final_logit_softcapping", 0.0),
    }


def _gemma3_ropes(keys: TypedKeys, head_size: int) -> tuple[Rope, Rope]:
    """RoPE of the layers with windows, and of the others, in transformers 5's form or before."""
    local = keys.number("rope_local_base_freq", ROPE_THETA, 10000.0)
    theta = keys.number("rope_theta", ROPE_THETA, 1e6)
    described = keys.object("rope_parameters")
    names = (json_layers.SLIDING, json_layers.FULL)
    if not set(described) & set(names):
        return plain(head_size, local), read_rope(keys, head_size, theta)
    keys.check_neutral("rope_scaling", ())
    for key in described:
        if key not in names:
            raise described.error(key, "no such key beside those of layer types")
    sliding, full = (
        read_rope_of(keys, described.object(name), name, head_size, base)
        for name, base in zip(names, (local, theta), strict=True)
    )
    return sliding, full


def _softmax_scale(sizes: Sizes, big: bool) -> float:
    return (sizes.hidden_size / sizes.num_heads if big else sizes.head_size) ** -0.5


def _common_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    return {
        "activation": "gelu_tanh",
        "post_norms": True,
        "embedding_scale": math.sqrt(sizes.hidden_size),
        **gguf_layers.biases(file),
    }


def _gguf_window(file: GgufFile, default: int) -> int:
    return file.metadata.integer(
        prefixed(file, "attention.sliding_window"), json_layers.WINDOW, default
    )


def _gemma2_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    rope = gguf_layers.read_rope(file, sizes)
    window = _gguf_window(file, 4096)
    caps = {
        field: file.metadata.number(prefixed(file, key), Range(0.0, 1e6), default)
        for field, key, default in (
            ("attention_softcap", "attn_logit_softcapping", 50.0),
            ("logit_softcap", "final_logit_softcapping", 30.0),
        )
    }
    return _common_gguf(file, sizes) | {
        "layers": _kinds(sizes, _every(2, sizes.num_layers), window, rope, rope),
        "softmax_scale": _softmax_scale(sizes, sizes.num_layers == _BIG_GEMMA2_LAYERS),
        **caps,
    }


def _gemma3_gguf(file: GgufFile, sizes: Sizes) -> dict[str, Any]:
    keys = file.metadata
    period = keys.integer(prefixed(file, "attention.sliding_window_pattern"), _PERIOD, 6)
    base = keys.number(prefixed(file, "rope.freq_base_swa"), ROPE_THETA, 10000.0)
    # Linear scaling of the larger models holds for the layers without windows only.
    everywhere = gguf_layers.read_rope(file, sizes)
    local = plain(gguf_layers.rotary_size(file, sizes.head_size), base)
    sliding = _every(period, sizes.num_layers)
    return _common_gguf(file, sizes) | {
        "layers": _kinds(sizes, sliding, _gguf_window(file, 1024), local, everywhere),
        "softmax_scale": _softmax_scale(sizes, sizes.num_layers == _BIG_GEMMA3_LAYERS),
        "head_norms": True,
        "logit_softcap": gguf_layers.multiplier(file, "final_logit_softcapping") or 0.0,
    }


_JSON_NAMES = {
    **NAMES_IN_JSON,
    "post_attention_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
_READS = frozenset(
    {
        "attention_bias",
        "hidden_act",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "layer_types",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    }
)

GEMMA2 = JsonFamily(
    model_type="gemma2",
    classes=("Gemma2ForCausalLM",),
    storage=Storage(_JSON_NAMES, gains_less_one=True),
    read=_gemma2,
    reads=_READS | {"sliding_window_size"},
    head_size=256,
)
GEMMA3 = JsonFamily(
    model_type="gemma3_text",
    classes=("Gemma3ForCausalLM",),
    storage=Storage(_JSON_NAMES, gains_less_one=True),
    read=_gemma3,
    reads=_READS | {"sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"},
    head_size=256,
)
GEMMA2_GGUF = GgufFamily(
    architecture="gemma2",
    storage=Storage(NAMES_IN_GGUF),
    read=_gemma2_gguf,
    reads=frozenset(
        {"attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}
    ),
)
GEMMA3_GGUF = GgufFamily(
    architecture="gemma3",
    storage=Storage(NAMES_IN_GGUF),
    read=_gemma3_gguf,
    reads=frozenset(
        {
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "rope.freq_base_swa",
            "final_logit_softcapping",
        }
    ),
)
