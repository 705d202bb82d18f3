"""A model's sizes and constants from the metadata of a GGUF file.

Keys that change the arithmetic are read, or must have their neutral value. Unknown keys of the
architecture are refused, so that no model is silently computed as another one. Defaults of absent
keys are llama.cpp's.
"""

from __future__ import annotations

from typing import Any

from jax_tkg.models.config import LIMITS, ROPE_FACTOR, ConfigError, LlamaConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.typed_keys import TypedKeys

_ARCHITECTURE = "llama"
_FREQUENCY_FACTORS = "rope_freqs.weight"
_SCALING_TYPE = "llama.rope.scaling.type"
_SCALING_FACTORS = ("llama.rope.scaling.factor", "llama.rope.scale_linear")
"""The factor of linear scaling, by its name and by its old name."""

_KEYS = {
    "num_layers": "llama.block_count",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_heads": "llama.attention.head_count",
    "num_kv_heads": "llama.attention.head_count_kv",
    "head_size": "llama.attention.key_length",
    "vocabulary_size": "llama.vocab_size",
    "context_length": "llama.context_length",
    "rope_theta": "llama.rope.freq_base",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_factors": _FREQUENCY_FACTORS,
}
"""The key of each field of `LlamaConfig`."""

_OF_WHOLE_HEADS = ("llama.attention.value_length", "llama.rope.dimension_count")
"""Keys that must equal the size of a head: values as large as keys, and RoPE on all features."""

_NEUTRAL: dict[str, Any] = {
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.use_parallel_residual": False,
    "llama.logit_scale": (0.0, 1.0),
    "llama.residual_scale": (0.0, 1.0),
    "llama.embedding_scale": (0.0, 1.0),
    "llama.attn_logit_softcapping": 0.0,
    "llama.final_logit_softcapping": 0.0,
    "llama.attention.causal": True,
    "llama.attention.scale": 0.0,
    "llama.attention.clamp_kqv": 0.0,
    "llama.attention.max_alibi_bias": 0.0,
    "llama.attention.sliding_window": 0,
    "llama.rope.scaling.attn_factor": 1.0,
}
"""Keys that change the arithmetic, and the values with which they do not."""

_HARMLESS = frozenset(
    {
        "llama.tensor_data_layout",
        "llama.attention.layer_norm_epsilon",
        "llama.rope.scaling.finetuned",
        # These are for YaRN, which is refused by its type.
        "llama.rope.scaling.original_context_length",
        "llama.rope.scaling.yarn_log_multiplier",
        "llama.rope.scaling.yarn_ext_factor",
        "llama.rope.scaling.yarn_attn_factor",
        "llama.rope.scaling.yarn_beta_fast",
        "llama.rope.scaling.yarn_beta_slow",
    }
)
"""Keys that do not change the arithmetic of a llama model, or are read elsewhere."""


def read_config(file: GgufFile) -> LlamaConfig:
    """The model's sizes and constants.

    Raises:
      ModelError: another architecture than llama, a missing or impossible value, or a feature that
        `transformer_tkg` does not have.
    """
    keys = file.metadata
    keys.string("general.architecture", (_ARCHITECTURE,))
    keys.string("general.type", ("model",), default="model")
    _check_arithmetic(keys)
    hidden_size, heads = _size(keys, "hidden_size"), _size(keys, "num_heads")
    head_size = _head_size(keys, hidden_size, heads)
    for key in _OF_WHOLE_HEADS:
        if keys.integer(key, LIMITS["head_size"], default=head_size) != head_size:
            raise keys.error(key, f"the size of a whole head, {head_size}")
    try:
        return LlamaConfig(
            num_layers=_size(keys, "num_layers"),
            hidden_size=hidden_size,
            intermediate_size=_size(keys, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=_size(keys, "num_kv_heads", default=heads),
            head_size=head_size,
            vocabulary_size=_vocabulary_size(keys),
            context_length=_size(keys, "context_length"),
            rope_theta=keys.number(_KEYS["rope_theta"], LIMITS["rope_theta"], default=10000.0),
            rms_norm_eps=keys.number(_KEYS["rms_norm_eps"], LIMITS["rms_norm_eps"]),
            rope_factors=_rope_factors(file, head_size),
        )
    except ConfigError as error:
        raise ModelError(f"{keys.file}: {_KEYS[error.field]}: {error.reason}") from None


def _check_arithmetic(keys: TypedKeys) -> None:
    """Refuses keys of the architecture that would make it another model, or that nobody knows."""
    known = {*_KEYS.values(), *_OF_WHOLE_HEADS, *_SCALING_FACTORS, _SCALING_TYPE, *_HARMLESS}
    for key in keys:
        if key in _NEUTRAL:
            keys.check_neutral(key, _NEUTRAL[key])
        elif key.startswith(f"{_ARCHITECTURE}.") and key not in known:
            raise keys.error(key, "no such key, for what it does to a llama model is not known")


def _size(keys: TypedKeys, field: str, default: int | None = None) -> int:
    """A size that a file may give as one number or as one for each layer, all the same."""
    key = _KEYS[field]
    if default is not None and key not in keys:
        return default
    values = keys.integer_or_integers(key, LIMITS[field])
    if len(set(values)) != 1:
        raise keys.error(key, "the same number for all layers")
    return values[0]


def _head_size(keys: TypedKeys, hidden_size: int, heads: int) -> int:
    key = _KEYS["head_size"]
    if key in keys:
        return keys.integer(key, LIMITS["head_size"])
    if hidden_size % heads or hidden_size // heads not in LIMITS["head_size"]:
        raise keys.error(
            key,
            f"an integer from {LIMITS['head_size']} (without it {_KEYS['hidden_size']}, "
            f"{hidden_size}, is split over {heads} heads)",
        )
    return hidden_size // heads


def _vocabulary_size(keys: TypedKeys) -> int:
    """The number of rows of the embedding: that of the tokens, if the file does not say it."""
    key = _KEYS["vocabulary_size"]
    tokens = len(keys.strings("tokenizer.ggml.tokens"))
    if not tokens:
        raise keys.error("tokenizer.ggml.tokens", "at least one token")
    size = keys.integer(key, LIMITS["vocabulary_size"], default=tokens)
    if size < tokens:
        raise keys.error(key, f"at least {tokens}, the number of tokens")
    return size


def _rope_factors(file: GgufFile, head_size: int) -> tuple[float, ...] | None:
    """Divisors of the RoPE frequencies: a tensor's (Llama 3) times that of linear scaling.

    As in llama.cpp, a factor without a type is one of linear scaling, and a factor is nothing where
    the type is "none".
    """
    keys = file.metadata
    kind = keys.string(_SCALING_TYPE, ("none", "linear"), default="linear")
    stated = [keys.number(key, ROPE_FACTOR) for key in _SCALING_FACTORS if key in keys]
    linear = stated[0] if stated and kind == "linear" else 1.0
    if kind == "linear" and _SCALING_TYPE in keys and not stated:
        raise keys.error(_SCALING_FACTORS[0], f"a number from {ROPE_FACTOR}")
    if _FREQUENCY_FACTORS in file.tensor_names:
        stored = file.tensor(_FREQUENCY_FACTORS, (head_size // 2,))
        return tuple(linear * factor for factor in stored.tolist())
    return None if linear == 1 else (linear,) * (head_size // 2)
