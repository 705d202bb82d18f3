"""A model's sizes and constants from the `config.json` of Hugging Face transformers.

Keys that change the arithmetic are read, or must have their neutral value. Checkpoints also hold
keys of many tools, so an unknown key is ignored, unless its name contains a word such as "scale",
"rope" or "bias": then it is refused, so that no model is silently computed as another one.
"""

from __future__ import annotations

import re
from typing import Any

from jax_tkg.models.config import LIMITS, ConfigError, ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families import known
from jax_tkg.models.families.family import JsonFamily, Sizes
from jax_tkg.models.float8_tensors import read_float8
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.json_rope import ORIGINAL_LENGTH
from jax_tkg.models.typed_keys import Range, TypedKeys

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "vocabulary_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "layers": "rope_scaling",
}
"""The key of each field of `ModelConfig`."""

_ALSO_READ = frozenset(
    {
        "model_type",
        "architectures",
        "hidden_act",
        "rope_theta",
        "rope_parameters",
        "tie_word_embeddings",
        "quantization_config",
        ORIGINAL_LENGTH,
    }
)

_NEUTRAL: dict[str, Any] = {
    "hidden_activation": ("silu", "swish"),
    "activation": ("silu", "swish", "swiglu"),
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": False,
    "lm_head_bias": False,
    "use_bias": False,
    "quantization": (),
    "compression_config": (),
    "sliding_window": (),
    "rope_interleaved": False,
    "use_mrope": False,
    "position_embedding_type": "rope",
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "attention_multiplier": (),
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "pruned_heads": {},
    # Values that other keys have in single layers (transformers 5).
    "per_layer_config": {},
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "num_experts": 0,
    "num_local_experts": 0,
    # Layers without experts among those that have some.
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "shared_intermediate_size": 0,
}
"""Keys that change the arithmetic of some family, and the values with which they do not; () for
none but null. A family that reads a key takes other values."""

_HARMLESS = frozenset(
    {
        # They matter in training only, or choose a way to compute the same.
        "attention_dropout",
        "attn_implementation",
        "attn_pdrop",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "initializer_range",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "chunk_size_feed_forward",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "output_router_logits",
        "scale_attn_weights",
        "use_flash_attention",
        "use_flash_attn",
        "_flash_attn_2_enabled",
        "use_sliding_window",
        "cross_attention_hidden_size",
        "norm_reduce_in_fp32",
        # Only models that use windows read it.
        "max_window_layers",
    }
)
"""Keys whose names speak of arithmetic that they do not change."""

_ARITHMETIC = re.compile(
    r"(?:^|[^a-z])(?:act|activation|alibi|altup|bias|bidirectional|cap|capping|chunk|clamp|clip|"
    r"conv|experts?|gating|interleaved?|laurel|layernorm|linear|lora|mamba|moe|mrope|multiplier|"
    r"nope|norm|parallel|qk|quant|quantization|quantized|residual|rope|rotary|router|scalar|scale|"
    r"scaling|shared|sinks?|skip|softcap|softcapping|sparse|sparsity|swiglu|tuning|windows?|yarn)"
    r"(?:$|[^a-z])"
)
"""Words in the names of keys that change the arithmetic of some model."""

_OFF: tuple[Any, ...] = (False, 0, {}, [], "", "none")
"""Values with which an unknown option is likely to be off."""

_FACTOR = re.compile(r"(?:^|[^a-z])(?:factor|multiplier|scalar|scale|scaling|tp)(?:$|[^a-z])")
"""Words of the names of factors and divisors, which are off at 1 too: 1 of anything else is one."""


def read_config(keys: TypedKeys) -> ModelConfig:
    """The model's sizes and constants.

    Args:
      keys: of `config.json`.

    Raises:
      ModelError: an unknown family, a missing or impossible value, or a feature that the family's
        module or `transformer_tkg` does not have.
    """
    family = known.json_family(keys)
    _check_architectures(keys, family)
    _check_arithmetic(keys, family)
    read_float8(keys)
    hidden_size, heads = _size(keys, "hidden_size"), _size(keys, "num_heads")
    sizes = Sizes(
        num_layers=_size(keys, "num_layers"),
        hidden_size=hidden_size,
        num_heads=heads,
        head_size=_head_size(keys, hidden_size, heads, family.head_size),
        context_length=_size(keys, "context_length"),
    )
    try:
        return ModelConfig(
            num_layers=sizes.num_layers,
            hidden_size=hidden_size,
            intermediate_size=_size(keys, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=_size(keys, "num_kv_heads", default=heads),
            head_size=sizes.head_size,
            vocabulary_size=_size(keys, "vocabulary_size"),
            context_length=sizes.context_length,
            rms_norm_eps=keys.number(_KEYS["rms_norm_eps"], LIMITS["rms_norm_eps"]),
            **family.read(keys, sizes),
        )
    except ConfigError as error:
        raise ModelError(f"{keys.file}: {_KEYS[error.field]}: {error.reason}") from None


def ties_embeddings(keys: TypedKeys) -> bool | None:
    """Whether `config.json` says that the head is the embedding; None where it does not say."""
    key = "tie_word_embeddings"
    return keys.boolean(key) if key in keys else None


def stop_tokens(folder: ModelFolder) -> list[int]:
    """The ids that end a text, as the folder's configuration files give them.

    `generation_config.json` lists them, or `config.json` if the former lists none. The caller adds
    the end of text that the tokenizer names.

    Raises:
      ModelError: a value is no id of the vocabulary.
    """
    config = folder.optional_json(CONFIG)
    generation = folder.optional_json(GENERATION_CONFIG)
    size = _size(config, "vocabulary_size", default=int(LIMITS["vocabulary_size"].maximum))
    key = "eos_token_id"
    for keys in (generation, config):
        if key in keys and (ids := keys.integer_or_integers(key, Range(0, size - 1))):
            return ids
    return []


def _check_architectures(keys: TypedKeys, family: JsonFamily) -> None:
    """Refuses classes of transformers that share the model type and compute something else."""
    key = "architectures"
    if key in keys and not set(keys.strings(key)) <= set(family.classes):
        raise keys.error(key, f"[{family.classes[0]!r}] with model_type {family.model_type!r}")


def _check_arithmetic(keys: TypedKeys, family: JsonFamily) -> None:
    """Refuses keys that change the arithmetic and that the family does not read."""
    read = {*_KEYS.values(), *_ALSO_READ, *family.reads}
    layer_types = "layer_types"
    if layer_types in keys and layer_types not in read:
        types = set(keys.strings(layer_types))
        if types != {"full_attention"}:
            raise keys.error(layer_types, "'full_attention' for each layer")
    for key in keys:
        if key in read or key == layer_types:
            continue
        if key in _NEUTRAL:
            keys.check_neutral(key, _NEUTRAL[key])
        elif key not in _HARMLESS and _ARITHMETIC.search(key.lower()):
            try:
                is_factor = _FACTOR.search(key.lower()) is not None
                keys.check_neutral(key, (*_OFF, 1) if is_factor else _OFF)
            except ModelError:
                expected = "no such key, for it may change the arithmetic and is not known"
                raise keys.error(key, expected) from None


def _size(keys: TypedKeys, field: str, default: int | None = None) -> int:
    return keys.integer(_KEYS[field], LIMITS[field], default)


def _head_size(keys: TypedKeys, hidden_size: int, heads: int, default: int | None) -> int:
    key, limits = _KEYS["head_size"], LIMITS["head_size"]
    if key in keys or default is not None:
        size = keys.integer(key, limits, default)
        if size % 2:
            raise keys.error(key, "an even number")
        return size
    if hidden_size % (2 * heads) or hidden_size // heads not in limits:
        raise keys.error(
            key,
            f"an even integer from {limits} (without it {_KEYS['hidden_size']}, {hidden_size}, is "
            f"split over {heads} heads)",
        )
    return hidden_size // heads
