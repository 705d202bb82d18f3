"""Every field of transformers' configuration classes: it is read, refused, or known to be idle."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import json_config
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families.known import JSON_FAMILIES
from jax_tkg.models.typed_keys import TypedKeys

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

BASE: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": True},
    "qwen3": {"use_sliding_window": True},
    "qwen3_moe": {"use_sliding_window": True},
    "smollm3": {"use_sliding_window": True, "sliding_window": 64},
    "phi3": {
        "original_max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "short_factor": [1.0] * 48,
            "long_factor": [2.0] * 48,
        },
    },
}
"""Members of a family's configuration with which its other members matter."""

DERIVED = ("layer_types", "no_rope_layers")
"""Members that transformers makes of others, and writes out."""

IDLE = {
    # What files and classes are called, and how arrays are stored.
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version"),
    *("dtype", "torch_dtype", "use_cache", "serialize_explicit_per_layer_config"),
    # How the same is computed.
    *("_attn_implementation", "attn_implementation", "chunk_size_feed_forward", "pretraining_tp"),
    *("_experts_implementation", "experts_implementation"),
    "allow_global_per_layer_attribute_access",
    # Training.
    *("attention_dropout", "embd_pdrop", "resid_pdrop", "initializer_range"),
    *("router_aux_loss_coef", "router_jitter_noise"),
    # What else than logits a model returns, and classifiers.
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("id2label", "label2id", "num_labels", "problem_type"),
    # Tokens that the tokenizer's files say, or that only batches of unequal texts need.
    *("bos_token_id", "pad_token_id"),
    # Read by `json_config.ties_embeddings` and `json_config.stop_tokens`.
    *("tie_word_embeddings", "eos_token_id"),
}
"""Members that leave a model's `ModelConfig` as it is, in all families."""

IDLE_IN: dict[str, set[str]] = {
    # transformers has an activation of its own there.
    "gpt_oss": {"hidden_act"},
    # The layer types' own RoPE is stated in `rope_parameters`.
    "gemma3_text": {"rope_theta", "rope_local_base_freq"},
}
"""Such members of single families."""

SHAPES_TELL = "num_key_value_heads"
"""Where it is absent transformers has a default of each class; the tensors' shapes are checked."""


def _fields(config: Any) -> set[str]:
    """What a config.json may have: fields, properties, aliases, and what `__post_init__` takes."""
    names = set(config.to_dict()) | {field.name for field in dataclasses.fields(config)}
    for kind in type(config).__mro__[:-1]:
        found = vars(kind)
        names |= {n for n, v in found.items() if isinstance(v, property) and v.fset is not None}
        names |= set(found.get("attribute_map", {}))
        for name in ("__post_init__", "convert_rope_params_to_dict"):
            source = inspect.getsource(found[name]) if name in found else ""
            names |= set(re.findall(r"kwargs\.(?:pop|get|setdefault)\(\s*\"(\w+)\"", source))
    return names


def _others(value: Any) -> list[Any]:
    """Values that a field might have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, 2 * value + 1]
    if isinstance(value, str):
        return ["other"]
    if isinstance(value, list):
        return [other for other in (value[::-1], value[:-1], [*value, 3]) if other != value]
    if isinstance(value, dict):
        changed = [
            {**value, key: other} for key, member in value.items() for other in _others(member)
        ]
        return [*changed, {**value, "unknown": 2.5}]
    return [True, 3, 0.5, "other", [3], {"other": 3}]


def _read(members: dict[str, Any]) -> ModelConfig:
    return json_config.read_config(TypedKeys("config.json", members))


def _outcome(members: dict[str, Any]) -> ModelConfig | str:
    """The configuration, or the message of the refusal."""
    try:
        return _read(members)
    except ModelError as error:
        return str(error)


class ConfigFieldsTest(parameterized.TestCase):
    @parameterized.parameters(*JSON_FAMILIES)
    def test_every_field(self, model_type: str) -> None:
        """Each one changes the model or is refused, unless it is known to be idle."""
        config = transformers.AutoConfig.for_model(model_type, **BASE.get(model_type, {}))
        described = config.to_dict()
        base = _read(described)
        for name in DERIVED:
            described.pop(name, None)
        self.assertEqual(_read(described), base)
        fields = _fields(config)
        self.assertContainsSubset({"hidden_size", "per_layer_config", "rope_scaling"}, fields)
        idle = set()
        for name in fields:
            value = described.get(name)
            # The share of features that turn is in `rope_parameters` already.
            own = described["rope_parameters"].get(name)
            for other in _others(value):
                if other != own and _outcome({**described, name: other}) == base:
                    idle.add(name)
        self.assertEmpty(idle - IDLE - IDLE_IN.get(model_type, set()))

    @parameterized.parameters(*JSON_FAMILIES)
    def test_absent_fields(self, model_type: str) -> None:
        """An absent key means what transformers takes for it, or is refused by its name."""
        described = transformers.AutoConfig.for_model(model_type).to_dict()
        base = _read(described)
        for name in described:
            outcome = _outcome({key: value for key, value in described.items() if key != name})
            if isinstance(outcome, str):
                other = {"num_local_experts": "num_experts", "rope_parameters": "rope_scaling"}
                message = f"config.json: {other.get(name, name)}: .* but the key is missing$"
                self.assertRegex(outcome, message)
            elif name != SHAPES_TELL:
                self.assertEqual(outcome, base, name)


if __name__ == "__main__":
    absltest.main()
