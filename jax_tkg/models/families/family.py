"""What a family is: how its configuration is read and its tensors are stored, in each format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax_tkg.models.config import LayerKind
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.layer_tensors import Storage
from jax_tkg.models.rope_scaling import Rope
from jax_tkg.models.typed_keys import TypedKeys

NAMES_IN_JSON: Mapping[str, str] = {
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "output_bias": "self_attn.o_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
}
"""The usual names of a layer's tensors in the format of Hugging Face transformers."""

NAMES_IN_GGUF: Mapping[str, str] = {
    "query": "attn_q.weight",
    "key": "attn_k.weight",
    "value": "attn_v.weight",
    "output": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "attention_norm": "attn_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "query_bias": "attn_q.bias",
    "key_bias": "attn_k.bias",
    "value_bias": "attn_v.bias",
    "output_bias": "attn_output.bias",
    "query_norm": "attn_q_norm.weight",
    "key_norm": "attn_k_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "post_mlp_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight",
    "expert_gate": "ffn_gate_exps.weight",
    "expert_up": "ffn_up_exps.weight",
    "expert_down": "ffn_down_exps.weight",
    "shared_gate": "ffn_gate_shexp.weight",
    "shared_up": "ffn_up_shexp.weight",
    "shared_down": "ffn_down_shexp.weight",
}
"""The names of a layer's tensors in GGUF files."""


def with_fused(names: Mapping[str, str], **fused: str) -> dict[str, str]:
    """Names with those of fused tensors in place of their parts'; see `layer_tensors.FUSED`."""
    parts = {"query_key_value": ("query", "key", "value"), "gate_up": ("gate", "up")}
    gone = {part for name in fused for part in parts[name]}
    return {field: name for field, name in names.items() if field not in gone} | fused


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a model that its options may depend on; see `ModelConfig`."""

    num_layers: int
    hidden_size: int
    num_heads: int
    head_size: int
    context_length: int

    def alike(self, rope: Rope, window: int | None = None) -> tuple[LayerKind, ...]:
        """Layers of one kind."""
        return (self.kind(rope, window),) * self.num_layers

    def kind(self, rope: Rope, window: int | None) -> LayerKind:
        """A kind of layer; a window that no sequence fills is none."""
        is_filled = window is not None and window < self.context_length
        return LayerKind(rope, window if is_filled else None)


@dataclasses.dataclass(frozen=True)
class JsonFamily:
    """A family in the format of Hugging Face transformers.

    Attributes:
      model_type: the value of that key in `config.json`.
      classes: values of `architectures`; the first one's name is in messages.
      storage: how tensors are stored.
      read: (keys, sizes) -> fields of `ModelConfig` besides the sizes.
      reads: keys that `read` reads, besides those of all families.
      head_size: head size if the file does not say it; None: hidden size over heads.
    """

    model_type: str
    classes: tuple[str, ...]
    storage: Storage
    read: Callable[[TypedKeys, Sizes], dict[str, Any]]
    reads: frozenset[str] = frozenset()
    head_size: int | None = None


@dataclasses.dataclass(frozen=True)
class GgufFamily:
    """A family in GGUF files, under llama.cpp's names.

    Attributes:
      architecture: the value of `general.architecture`, the prefix of its keys.
      storage: how tensors are stored.
      read: (file, sizes) -> fields of `ModelConfig` besides the sizes.
      reads: keys that `read` reads, without the prefix, besides those of all families.
      partial_rope: whether RoPE may turn a part of a head's features.
    """

    architecture: str
    storage: Storage
    read: Callable[[GgufFile, Sizes], dict[str, Any]]
    reads: frozenset[str] = frozenset()
    partial_rope: bool = False
