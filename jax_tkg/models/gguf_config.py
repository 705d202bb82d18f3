"""A model's sizes and constants from the metadata of a GGUF file.

Keys that change the arithmetic are read, or must have their neutral value. Unknown keys of the
architecture are refused, so that no model is silently computed as another one. Defaults of absent
keys are llama.cpp's.
"""

from __future__ import annotations

from typing import Any

from jax_tkg.models.config import LIMITS, ConfigError, ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families import known
from jax_tkg.models.families.family import GgufFamily, Sizes
from jax_tkg.models.families.gguf_layers import FREQUENCY_FACTORS, READS_ROPE
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.typed_keys import TypedKeys

_KEYS = {
    "num_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_size": "attention.key_length",
    "vocabulary_size": "vocab_size",
    "context_length": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layers": FREQUENCY_FACTORS,
}
"""The key of each field of `ModelConfig`, without the architecture before it."""

_VALUE_SIZE, _ROTARY_SIZE = "attention.value_length", "rope.dimension_count"

_NEUTRAL: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.sliding_window": 0,
}
"""Keys that change the arithmetic, and the values with which they do not. A family that reads a key
takes other values."""

_HARMLESS = frozenset({"tensor_data_layout", "attention.layer_norm_epsilon"})
"""Keys that do not change the arithmetic of these families."""


def read_config(file: GgufFile) -> ModelConfig:
    """The model's sizes, constants and options.

    Raises:
      ModelError: an unknown family, a missing or impossible value, or a feature that the family's
        module or `transformer_tkg` does not have.
    """
    keys = file.metadata
    family = known.gguf_family(keys)
    keys.string("general.type", ("model",), default="model")
    _check_arithmetic(keys, family)
    reader = _Reader(keys, family.architecture)
    hidden_size, heads = reader.size("hidden_size"), reader.size("num_heads")
    head_size = reader.head_size(hidden_size, heads)
    reader.check_whole_heads(head_size, family.partial_rope)
    sizes = Sizes(
        num_layers=reader.size("num_layers"),
        hidden_size=hidden_size,
        num_heads=heads,
        head_size=head_size,
        context_length=reader.size("context_length"),
    )
    try:
        return ModelConfig(
            num_layers=sizes.num_layers,
            hidden_size=hidden_size,
            intermediate_size=reader.size("intermediate_size"),
            num_heads=heads,
            num_kv_heads=reader.size("num_kv_heads", default=heads),
            head_size=head_size,
            vocabulary_size=reader.vocabulary_size(),
            context_length=sizes.context_length,
            rms_norm_eps=keys.number(reader.key("rms_norm_eps"), LIMITS["rms_norm_eps"]),
            **family.read(file, sizes),
        )
    except ConfigError as error:
        raise ModelError(f"{keys.file}: {reader.key(error.field)}: {error.reason}") from None


def _check_arithmetic(keys: TypedKeys, family: GgufFamily) -> None:
    """Refuses keys of the architecture that change the arithmetic, or that are unknown."""
    read = {*_KEYS.values(), _VALUE_SIZE, _ROTARY_SIZE, *READS_ROPE, *_HARMLESS, *family.reads}
    prefix = f"{family.architecture}."
    for key in keys:
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in read:
            continue
        if name not in _NEUTRAL:
            raise keys.error(
                key,
                f"no such key, for what it does to a {family.architecture} model is not known",
            )
        keys.check_neutral(key, _NEUTRAL[name])


class _Reader:
    """Reads the sizes, which have the architecture before their keys."""

    def __init__(self, keys: TypedKeys, architecture: str):
        self._keys = keys
        self._architecture = architecture

    def key(self, field: str) -> str:
        """The key of a field of `ModelConfig`."""
        key = _KEYS[field]
        return key if key == FREQUENCY_FACTORS else f"{self._architecture}.{key}"

    def size(self, field: str, default: int | None = None) -> int:
        """A size that a file may give as one number or as one for each layer, all the same."""
        key = self.key(field)
        if default is not None and key not in self._keys:
            return default
        values = self._keys.integer_or_integers(key, LIMITS[field])
        if len(set(values)) != 1:
            raise self._keys.error(key, "the same number for all layers")
        return values[0]

    def head_size(self, hidden_size: int, heads: int) -> int:
        key, limits = self.key("head_size"), LIMITS["head_size"]
        if key in self._keys:
            size = self._keys.integer(key, limits)
            if size % 2:
                raise self._keys.error(key, "an even number")
            return size
        if hidden_size % (2 * heads) or hidden_size // heads not in limits:
            raise self._keys.error(
                key,
                f"an even integer from {limits} (without it {self.key('hidden_size')}, "
                f"{hidden_size}, is split over {heads} heads)",
            )
        return hidden_size // heads

    def check_whole_heads(self, head_size: int, partial_rope: bool) -> None:
        """Checks that keys and values have one size, and how many features RoPE turns."""
        for name in (_VALUE_SIZE, _ROTARY_SIZE):
            key = f"{self._architecture}.{name}"
            size = self._keys.integer(key, LIMITS["head_size"], default=head_size)
            if name == _ROTARY_SIZE and partial_rope:
                if size > head_size or size % 2:
                    raise self._keys.error(key, f"an even number up to a head's size, {head_size}")
            elif size != head_size:
                raise self._keys.error(key, f"the size of a whole head, {head_size}")

    def vocabulary_size(self) -> int:
        """Rows of the embedding; by default one for each token."""
        keys, key = self._keys, self.key("vocabulary_size")
        tokens = len(keys.strings("tokenizer.ggml.tokens"))
        if not tokens:
            raise keys.error("tokenizer.ggml.tokens", "at least one token")
        size = keys.integer(key, LIMITS["vocabulary_size"], default=tokens)
        if size < tokens:
            raise keys.error(key, f"at least {tokens}, the number of tokens")
        return size
