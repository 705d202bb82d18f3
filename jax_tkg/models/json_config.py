"""A model's sizes and constants from the `config.json` of Hugging Face transformers.

Keys that change the arithmetic are read, or must have their neutral value. Checkpoints also hold
keys of many tools, so an unknown key is ignored, unless its name contains a word such as "scale",
"rope" or "bias": then it is refused, so that no model is silently computed as another one.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from jax_tkg.models.config import CONTEXT_LENGTH, LIMITS, ROPE_FACTOR, ConfigError, LlamaConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.typed_keys import Range, TypedKeys
from jax_tkg.rope import Llama3Scaling

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
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "rope_scaling": "rope_scaling",
    "rope_factors": "rope_scaling",
}
"""The key of each field of `LlamaConfig`."""

_ALSO_READ = frozenset({"model_type", "architectures", "rope_parameters", "tie_word_embeddings"})

_NEUTRAL: dict[str, Any] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "activation": ("silu", "swish", "swiglu"),
    "attention_bias": False,
    "mlp_bias": False,
    "qkv_bias": False,
    "use_bias": False,
    "quantization_config": (),
    "quantization": (),
    "compression_config": (),
    "sliding_window": (),
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "attention_multiplier": (),
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "pruned_heads": {},
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "num_experts": 0,
    "num_local_experts": 0,
}
"""Keys that change the arithmetic, and the values with which they do not; () for none but null."""

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
    r"(?:^|[^a-z])(?:act|activation|alibi|bias|cap|capping|chunk|clamp|clip|experts?|gating|"
    r"interleaved?|layernorm|lora|moe|multiplier|norm|parallel|qk|quant|quantization|quantized|"
    r"residual|rope|rotary|router|scalar|scale|scaling|skip|softcap|softcapping|sparse|sparsity|"
    r"swiglu|tuning|windows?|yarn)(?:$|[^a-z])"
)
"""Words of the names of keys that change the arithmetic of some model."""

_OFF: tuple[Any, ...] = (False, 0, 1.0, {}, [], "", "none")
"""Values with which an unknown option is likely to be off."""

_ROPE_ALSO = frozenset({"rope_theta", "rope_type", "type"})
_ROPE_NEUTRAL: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "attention_factor": 1.0,
    "finetuned": (True, False),
}
_ORIGINAL_LENGTH = "original_max_position_embeddings"
_ROPE_KEYS = {
    "default": frozenset({_ORIGINAL_LENGTH}),
    "linear": frozenset({"factor", _ORIGINAL_LENGTH}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL_LENGTH}),
}
"""The kinds of RoPE that there are, and the keys that each has besides the common ones."""


def read_config(keys: TypedKeys) -> LlamaConfig:
    """The model's sizes and constants.

    Args:
      keys: of `config.json`.

    Raises:
      ModelError: another architecture than llama, a missing or impossible value, or a feature that
        `transformer_tkg` does not have.
    """
    keys.string("model_type", ("llama",))
    _check_architectures(keys)
    _check_arithmetic(keys)
    hidden_size, heads = _size(keys, "hidden_size"), _size(keys, "num_heads")
    head_size = _head_size(keys, hidden_size, heads)
    rope = _rope(keys, head_size)
    try:
        return LlamaConfig(
            num_layers=_size(keys, "num_layers"),
            hidden_size=hidden_size,
            intermediate_size=_size(keys, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=_size(keys, "num_kv_heads", default=heads),
            head_size=head_size,
            vocabulary_size=_size(keys, "vocabulary_size"),
            context_length=_size(keys, "context_length"),
            rope_theta=rope.theta,
            rms_norm_eps=keys.number(_KEYS["rms_norm_eps"], LIMITS["rms_norm_eps"]),
            rope_scaling=rope.scaling,
            rope_factors=rope.factors,
        )
    except ConfigError as error:
        raise ModelError(f"{keys.file}: {_KEYS[error.field]}: {error.reason}") from None


def ties_embeddings(keys: TypedKeys) -> bool | None:
    """Whether `config.json` says that the head is the embedding; None where it does not say."""
    key = "tie_word_embeddings"
    return keys.boolean(key) if key in keys else None


def stop_tokens(folder: ModelFolder) -> list[int]:
    """The ids that end a text, as the folder's configuration files give them.

    `generation_config.json` says it, and `config.json` where the former does not. The tokenizer's
    own end of text is to be added.

    Raises:
      ModelError: a value is no id of the vocabulary.
    """
    config = folder.optional_json(CONFIG)
    generation = folder.optional_json(GENERATION_CONFIG)
    size = _size(config, "vocabulary_size", default=int(LIMITS["vocabulary_size"].maximum))
    key = "eos_token_id"
    for keys in (generation, config):
        if key in keys:
            return keys.integer_or_integers(key, Range(0, size - 1))
    return []


def _check_architectures(keys: TypedKeys) -> None:
    """Refuses classes of transformers that share the model type and compute something else."""
    key = "architectures"
    # The second is the name in the earliest conversions.
    known = ("LlamaForCausalLM", "LLaMAForCausalLM")
    if key in keys and not set(keys.strings(key)) <= set(known):
        raise keys.error(key, f"[{known[0]!r}]")


def _check_arithmetic(keys: TypedKeys) -> None:
    """Refuses keys that would make it another model."""
    known = {*_KEYS.values(), *_ALSO_READ, *_HARMLESS}
    if "layer_types" in keys and set(keys.strings("layer_types")) != {"full_attention"}:
        raise keys.error("layer_types", "'full_attention' for each layer")
    for key in keys:
        if key in _NEUTRAL:
            keys.check_neutral(key, _NEUTRAL[key])
        elif key not in known and _ARITHMETIC.search(key.lower()):
            try:
                keys.check_neutral(key, _OFF)
            except ModelError:
                expected = "no such key, for it may change the arithmetic and is not known"
                raise keys.error(key, expected) from None


def _size(keys: TypedKeys, field: str, default: int | None = None) -> int:
    return keys.integer(_KEYS[field], LIMITS[field], default)


def _head_size(keys: TypedKeys, hidden_size: int, heads: int) -> int:
    key, limits = _KEYS["head_size"], LIMITS["head_size"]
    if key in keys:
        return keys.integer(key, limits)
    if hidden_size % heads or hidden_size // heads not in limits:
        raise keys.error(
            key,
            f"an integer from {limits} (without it {_KEYS['hidden_size']}, {hidden_size}, is split "
            f"over {heads} heads)",
        )
    return hidden_size // heads


@dataclasses.dataclass(frozen=True)
class _Rope:
    """Base of the RoPE frequencies, Llama 3's scaling, and divisors for each frequency."""

    theta: float
    scaling: Llama3Scaling | None = None
    factors: tuple[float, ...] | None = None


def _rope(keys: TypedKeys, head_size: int) -> _Rope:
    """RoPE as `rope_parameters` (transformers 5), `rope_scaling` (before), or neither says.

    Raises:
      ModelError: both say something, and not the same.
    """
    described = [
        _described_rope(keys, name, head_size)
        for name in ("rope_parameters", "rope_scaling")
        if list(keys.object(name))
    ]
    if len(described) == 2 and described[0] != described[1]:
        raise keys.error("rope_scaling", "the same as rope_parameters, which is there too")
    if described:
        return described[0]
    return _Rope(keys.number("rope_theta", LIMITS["rope_theta"], default=10000.0))


def _described_rope(keys: TypedKeys, name: str, head_size: int) -> _Rope:
    rope = keys.object(name)
    theta = rope.number("rope_theta", LIMITS["rope_theta"], default=_outer_theta(keys))
    if "rope_theta" in keys and theta != _outer_theta(keys):
        raise keys.error("rope_theta", f"{theta!r}, as in {name}")
    kinds = tuple(_ROPE_KEYS)
    kind = rope.string("rope_type", kinds, default=rope.string("type", kinds, default="default"))
    if rope.string("type", kinds, default=kind) != kind:
        raise rope.error("type", f"{kind!r}, as in rope_type")
    neutral = _ROPE_NEUTRAL | ({"factor": 1.0} if kind == "default" else {})
    for key in rope:
        if key in neutral:
            rope.check_neutral(key, neutral[key])
        elif key not in _ROPE_ALSO and key not in _ROPE_KEYS[kind]:
            raise rope.error(key, f"no such key with rope_type {kind!r}")
    if kind == "linear":
        factor = rope.number("factor", ROPE_FACTOR)
        return _Rope(theta, factors=(factor,) * (head_size // 2))
    if kind == "llama3":
        return _Rope(theta, scaling=_llama3(keys, rope))
    return _Rope(theta)


def _outer_theta(keys: TypedKeys) -> float:
    return keys.number("rope_theta", LIMITS["rope_theta"], default=10000.0)


def _llama3(keys: TypedKeys, rope: TypedKeys) -> Llama3Scaling:
    low, high = (rope.number(key, ROPE_FACTOR) for key in ("low_freq_factor", "high_freq_factor"))
    if not low < high:
        raise rope.error("low_freq_factor", f"a number below high_freq_factor, {high!r}")
    length = rope.integer(_ORIGINAL_LENGTH, CONTEXT_LENGTH)
    if keys.integer(_ORIGINAL_LENGTH, CONTEXT_LENGTH, default=length) != length:
        raise keys.error(_ORIGINAL_LENGTH, f"{length}, as with the other values of llama3 scaling")
    return Llama3Scaling(
        factor=rope.number("factor", ROPE_FACTOR),
        low_frequency_factor=low,
        high_frequency_factor=high,
        original_context_length=length,
    )
