"""The tiny llama as a folder of config.json and safetensors, in transformers' names and order."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.models.tiny import VOCABULARY, Tiny

INDEX = "model.safetensors.index.json"
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def config(shape: Tiny) -> dict[str, Any]:
    """The members of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "vocab_size": len(VOCABULARY),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": 1,
    }


def tensors(shape: Tiny, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of `Tiny.tensors` under transformers' names.

    A head's query and key rows, of which GGUF turns rows 2i and 2i + 1 as a pair, are put i and
    i + d/2 apart.
    """
    renamed = {}
    halves = [*range(0, shape.head_size, 2), *range(1, shape.head_size, 2)]
    for name, tensor in stored.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if layer is None:
            renamed[_OTHERS[name]] = tensor
            continue
        if layer[2] in ("attn_q", "attn_k"):
            heads = tensor.reshape(-1, shape.head_size, tensor.shape[1])
            tensor = np.ascontiguousarray(heads[:, halves]).reshape(tensor.shape)
        renamed[f"model.layers.{layer[1]}.{_NAMES[layer[2]]}.weight"] = tensor
    return renamed


def write(
    path: pathlib.Path,
    shape: Tiny | None = None,
    files: int = 1,
    changed: Mapping[str, np.ndarray | None] | None = None,
    **members: Any,
) -> dict[str, np.ndarray]:
    """Writes the folder's files.

    Args:
      path: the folder.
      shape: the model.
      files: how many files of tensors to write; with several there is an index.
      changed: tensors in place of, or besides, the model's; None leaves one out.
      members: of config.json, likewise.

    Returns:
      The model's tensors by their names in GGUF files.
    """
    shape = shape or Tiny()
    described = {k: v for k, v in (config(shape) | members).items() if v is not None}
    (path / "config.json").write_text(json.dumps(described))
    original = shape.tensors()
    stored = tensors(shape, original) | dict(changed or {})
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    if files == 1:
        save_file(kept, path / "model.safetensors")
        return original
    names = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    where = {tensor: names[index % files] for index, tensor in enumerate(kept)}
    for name in names:
        save_file({t: v for t, v in kept.items() if where[t] == name}, path / name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return original
