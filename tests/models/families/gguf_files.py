"""Models of transformers as GGUF files, with llama.cpp's names, keys and order of features.

Names come from the gguf package's own table; what converters do beyond that (llama.cpp's
`conversion` folder) is written anew here.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

import gguf
import numpy as np

from tests.models import tiny
from tests.models.families.tiny_families import longrope_concentration

_ADJACENT_PAIRS = ("llama", "smollm3", "granite", "granitemoe")
"""Architectures whose converter reorders the features of query and key heads."""


def write(path: pathlib.Path, model: Any, architecture: str) -> None:
    """Writes a model in float32."""
    metadata = _metadata(model.config, architecture)
    tokenizer = {
        key: value for key, value in tiny.Tiny().metadata().items() if key.startswith("tokenizer.")
    }
    count = model.config.vocab_size
    tokenizer["tokenizer.ggml.tokens"] = [f"t{index}" for index in range(count)]
    tokenizer["tokenizer.ggml.token_type"] = [1] * count
    fields = {f"{architecture}.{key}": value for key, value in metadata.items()}
    tiny.write(path, _tensors(model, architecture), fields | tokenizer, architecture)


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for projection, count in heads.items():
            if architecture in _ADJACENT_PAIRS and f".{projection}." in name:
                halves = values.reshape(count, 2, -1, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if ".experts." in name:
            layer, which = re.findall(r"layers\.(\d+)\..*experts\.(\w+)", name)[0]
            is_bias = which.endswith("_bias")
            if architecture == "gpt-oss" and not is_bias:
                values = values.swapaxes(1, 2)
            parts = {"down": values}
            if which.startswith("gate_up") and architecture == "gpt-oss":
                parts = {"gate": values[:, ::2], "up": values[:, 1::2]}
            elif which.startswith("gate_up"):
                gate, up = np.split(values, 2, axis=1)
                parts = {"gate": gate, "up": up}
            for part, matrices in parts.items():
                stored = f"blk.{layer}.ffn_{part}_exps.{'bias' if is_bias else 'weight'}"
                tensors[stored] = np.ascontiguousarray(matrices)
            continue
        if ".shared_mlp." in name:
            layer, which = re.findall(r"layers\.(\d+)\..*shared_mlp\.(\w+)_linear", name)[0]
            parts = {"down": values}
            if which == "input":
                parts = dict(zip(("gate", "up"), np.split(values, 2), strict=True))
            for part, matrix in parts.items():
                tensors[f"blk.{layer}.ffn_{part}_shexp.weight"] = np.ascontiguousarray(matrix)
            continue
        if name.endswith(".sinks"):
            name += ".weight"
        name = name.replace("block_sparse_moe", "mlp")
        stored = names.get_name(name, (".weight", ".bias"))
        assert stored is not None, name
        tensors[stored] = np.ascontiguousarray(values)
    rope = config.rope_parameters
    if architecture == "phi3":
        for which in ("long", "short"):
            factors = np.asarray(rope[f"{which}_factor"], np.float32)
            tensors[f"rope_factors_{which}.weight"] = factors
    if rope.get("rope_type") == "llama3":
        # The converter stores how much slower each pair turns.
        scaled = model.model.rotary_emb.inv_freq.numpy()
        size = config.head_dim
        plain = rope["rope_theta"] ** (-np.arange(0, size, 2) / size)
        tensors["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    return tensors


def _metadata(config: Any, architecture: str) -> dict[str, Any]:
    """Keys without the architecture."""
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    fields: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(full["rope_theta"]),
        "rope.dimension_count": int(head_size * full.get("partial_rotary_factor", 1.0)),
    }
    if full["rope_type"] == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    if architecture.startswith("gemma"):
        fields["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        fields["attn_logit_softcapping"] = config.attn_logit_softcapping
        fields["final_logit_softcapping"] = config.final_logit_softcapping
    if architecture == "gemma3":
        fields["attention.sliding_window_pattern"] = 3
        fields["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
    if full["rope_type"] == "yarn":
        fields |= {"rope.scaling.type": "yarn", "rope.scaling.factor": full["factor"]}
        original = full["original_max_position_embeddings"]
        fields["rope.scaling.original_context_length"] = original
    if architecture == "gpt-oss":
        fields["attention.sliding_window"] = config.sliding_window
        fields["expert_feed_forward_length"] = config.intermediate_size
    if getattr(config, "shared_intermediate_size", 0):
        fields["expert_shared_feed_forward_length"] = config.shared_intermediate_size
    if hasattr(config, "num_experts_per_tok"):
        fields["expert_count"] = config.num_local_experts
        fields["expert_used_count"] = config.num_experts_per_tok
    if hasattr(config, "moe_intermediate_size"):
        fields["expert_feed_forward_length"] = config.moe_intermediate_size
    if architecture == "phi3":
        original = config.original_max_position_embeddings
        fields["rope.scaling.original_context_length"] = original
        fields["rope.scaling.attn_factor"] = longrope_concentration(config)
        fields["attention.sliding_window"] = config.sliding_window or 0
    if architecture.startswith("granite"):
        fields["attention.scale"] = config.attention_multiplier
        fields["embedding_scale"] = config.embedding_multiplier
        fields["residual_scale"] = config.residual_multiplier
        fields["logit_scale"] = config.logits_scaling
    return fields
