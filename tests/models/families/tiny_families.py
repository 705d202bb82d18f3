"""A tiny random model of each family, made by transformers from the family's configuration class.

Every option of a family is active: biases and gains are random, windows are shorter than the texts,
head sizes differ from hidden size over heads where the family allows that, and there are several
layers of each kind.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, CONTEXT, WINDOW = 97, 512, 24

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    # Attention far from uniform, so that a wrong order of features shows.
    "initializer_range": 0.2,
}
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * index for index in range(6)],
    "long_factor": [1.0 + 0.7 * index for index in range(6)],
}


_GRANITE: dict[str, Any] = {
    "hidden_size": 96,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
_GRANITE_EXPERTS = {"num_local_experts": 7, "num_experts_per_tok": 3, "intermediate_size": 40}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family's model.

    Attributes:
      name: of the classes in transformers.
      changes: members of the configuration that differ from the common ones.
      architecture: in GGUF files; None where llama.cpp has none, or reads no such options.
    """

    name: str
    changes: dict[str, Any]
    architecture: str | None

    def model(self) -> Any:
        """The model, in float32."""
        sizes = _SIZES | {"rope_parameters": dict(_ROPE)} | self.changes
        config = getattr(transformers, f"{self.name}Config")(**sizes)
        # transformers fills these in where they are None.
        config.eos_token_id = config.bos_token_id = config.pad_token_id = None
        torch.manual_seed(5)
        classes = {"Gemma3Text": "Gemma3"}
        model_class = getattr(transformers, f"{classes.get(self.name, self.name)}ForCausalLM")
        model = model_class._from_config(config, attn_implementation="eager").eval()
        less_one = 1.0 if self.name.startswith("Gemma") else 0.0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.uniform_(0.5 - less_one, 1.5 - less_one)
                elif name.endswith((".bias", "_bias", "sinks")) or (
                    "embed_tokens" in name and self.name.startswith("Gemma")
                ):
                    parameter.normal_(0, 0.5)
        return model


FAMILIES = {
    "llama": Family(
        "Llama", {"attention_bias": True, "rope_parameters": _LLAMA3, "hidden_size": 96}, "llama"
    ),
    "nemo": Family("Mistral", {"sliding_window": None, "head_dim": 32}, "llama"),
    "mistral": Family("Mistral", {"sliding_window": WINDOW}, None),
    "qwen2": Family("Qwen2", {"tie_word_embeddings": True}, "qwen2"),
    # The hidden size is padded here, which the norms of heads must not notice.
    "qwen3": Family("Qwen3", {"hidden_size": 96, "head_dim": 32, "rms_norm_eps": 0.1}, "qwen3"),
    "mixtral": Family(
        "Mixtral",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 72},
        "llama",
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        {
            "hidden_size": 96,
            "num_experts": 9,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
        "qwen3moe",
    ),
    "qwen3_moe_in_part": Family(
        "Qwen3Moe",
        {
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
        },
        None,
    ),
    "granite_moe": Family("GraniteMoe", _GRANITE | _GRANITE_EXPERTS, "granitemoe"),
    "granite_moe_shared": Family(
        "GraniteMoeShared",
        _GRANITE | _GRANITE_EXPERTS | {"shared_intermediate_size": 56},
        "granitemoe",
    ),
    "gpt_oss": Family(
        "GptOss",
        {
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "intermediate_size": 72,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 8.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
        "gpt-oss",
    ),
    "gemma2": Family(
        "Gemma2",
        {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
            "tie_word_embeddings": True,
        },
        "gemma2",
    ),
    "gemma3": Family(
        "Gemma3Text",
        {
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "sliding_window_pattern": 3,
            "sliding_window": WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
            },
            "tie_word_embeddings": True,
        },
        "gemma3",
    ),
    "phi3": Family(
        "Phi3",
        {
            "hidden_size": 96,
            "rope_parameters": _LONGROPE,
            "original_max_position_embeddings": 64,
            "sliding_window": None,
        },
        "phi3",
    ),
    "smollm3": Family("SmolLM3", {"num_hidden_layers": 8}, "smollm3"),
    "granite": Family("Granite", _GRANITE, "granite"),
    "glm4": Family("Glm4", {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}}, "glm4"),
}
"""The tiny models by name."""


def tokens(count: int, seed: int = 3) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()


def longrope_concentration(config: Any) -> float:
    """What llama.cpp's converter writes for Phi-3."""
    original = config.original_max_position_embeddings
    factor = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original))
