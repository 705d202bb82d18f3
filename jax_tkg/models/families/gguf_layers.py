"""Parts of a GGUF file's metadata that several families have: RoPE, biases, factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax_tkg.models import rope_scaling
from jax_tkg.models.config import (
    CONTEXT_LENGTH,
    EXPERT_COUNT,
    LIMITS,
    MULTIPLIER,
    ROPE_CONCENTRATION,
    ROPE_FACTOR,
    ROPE_FACTORS,
    ROPE_THETA,
    Experts,
)
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families.family import Sizes
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.rope_scaling import Rope
from jax_tkg.models.typed_keys import Range, TypedKeys

FREQUENCY_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
OTHER_TENSORS = (
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    FREQUENCY_FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
)
"""Tensors that belong to no layer."""

_LINEAR_FACTORS = ("rope.scaling.factor", "rope.scale_linear")
"""The factor of linear scaling, by its name and by its old name."""

READS_ROPE = frozenset(
    {
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_log_multiplier",
        *_LINEAR_FACTORS,
    }
)
"""Keys that `read_rope` reads, without the architecture."""


def prefixed(file: GgufFile, key: str) -> str:
    """A key with the file's architecture before it."""
    return f"{file.metadata.raw('general.architecture')}.{key}"


def biases(file: GgufFile) -> dict[str, bool]:
    """Which biases there are: llama.cpp adds those that it finds."""
    return {
        "projection_bias": "blk.0.attn_q.bias" in file.tensor_names,
        "output_bias": "blk.0.attn_output.bias" in file.tensor_names,
    }


def experts(file: GgufFile, **options: Any) -> Experts | None:
    """The experts of each layer; None for a file that says 0 or nothing.

    Args:
      file: an open file.
      **options: fields of `Experts` that the family has.
    """
    keys, count_key = file.metadata, prefixed(file, "expert_count")
    if keys.is_neutral(count_key, 0):
        return None
    count = keys.integer(count_key, EXPERT_COUNT)
    size_key = prefixed(file, "expert_feed_forward_length")
    if size_key not in keys:
        size_key = prefixed(file, "feed_forward_length")
    return Experts(
        count=count,
        per_token=keys.integer(
            prefixed(file, "expert_used_count"), Range(EXPERT_COUNT.minimum, count)
        ),
        intermediate_size=keys.integer(size_key, LIMITS["intermediate_size"]),
        **options,
    )


def some_experts(file: GgufFile, **options: Any) -> Experts:
    """The same for a family whose layers all have experts.

    Raises:
      ModelError: the file says 0 or nothing.
    """
    found = experts(file, **options)
    if found is None:
        raise file.metadata.error(prefixed(file, "expert_count"), "at least 1")
    return found


READS_EXPERTS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
"""Keys that `experts` reads, without the architecture."""


def multiplier(file: GgufFile, key: str) -> float | None:
    """A positive factor; None if it is 0 or absent."""
    keys, key = file.metadata, prefixed(file, key)
    if keys.is_neutral(key, 0):
        return None
    return keys.number(key, MULTIPLIER)


def read_rope(file: GgufFile, sizes: Sizes, theta: float = 10000.0, truncate: bool = True) -> Rope:
    """RoPE as llama.cpp reads it.

    A factor without a type is one of linear scaling; with type "none" a factor has no effect.
    Factors in tensors multiply the others.

    Args:
      file: an open file.
      sizes: the model's.
      theta: the base, if the file does not say it.
      truncate: whether YaRN widens its limits to whole pairs; files do not say it.

    Raises:
      ModelError: a value is not as expected.
    """
    keys = file.metadata
    theta = keys.number(prefixed(file, "rope.freq_base"), ROPE_THETA, theta)
    return _scaled(file, sizes, rotary_size(file, sizes.head_size), theta, truncate)


def rotary_size(file: GgufFile, head_size: int) -> int:
    """The features of a head that turn."""
    return file.metadata.integer(
        prefixed(file, "rope.dimension_count"), Range(2, head_size), default=head_size
    )


def _scaled(file: GgufFile, sizes: Sizes, size: int, theta: float, truncate: bool) -> Rope:
    keys = file.metadata
    type_key = prefixed(file, "rope.scaling.type")
    kind = keys.string(type_key, ("none", "linear", "yarn", "longrope"), default="linear")
    names = [prefixed(file, name) for name in _LINEAR_FACTORS]
    stated = [keys.number(name, ROPE_FACTOR) for name in names if name in keys]
    concentration_key = prefixed(file, "rope.scaling.attn_factor")
    concentration = keys.number(concentration_key, ROPE_CONCENTRATION, 1.0)
    if LONG_FACTORS in file.tensor_names or SHORT_FACTORS in file.tensor_names:
        if kind == "yarn" or (stated and stated[0] != 1 and kind != "none"):
            raise keys.error(type_key, f"'longrope' beside the tensor {LONG_FACTORS}")
        return rope_scaling.longrope(
            size,
            theta,
            short_factors=_factors(file, SHORT_FACTORS, size),
            long_factors=_factors(file, LONG_FACTORS, size),
            original_length=_original_length(file, sizes),
            concentration=concentration,
        )
    if kind == "longrope":
        raise ModelError(
            f"{file.path}: tensor {LONG_FACTORS}: expected with {type_key} 'longrope', but it is "
            f"missing"
        )
    if kind in ("linear", "yarn") and type_key in keys and not stated:
        raise keys.error(names[0], f"a number from {ROPE_FACTOR}")
    _check_yarn_keys(file, keys)
    if kind == "yarn":
        return _yarn(file, sizes, size, theta, stated[0], truncate)
    keys.check_neutral(concentration_key, 1.0)
    factor = stated[0] if stated and kind == "linear" else 1.0
    if FREQUENCY_FACTORS in file.tensor_names:
        stored = _factors(file, FREQUENCY_FACTORS, size)
        return rope_scaling.plain(size, theta, [factor * divisor for divisor in stored])
    return rope_scaling.plain(size, theta, factor)


def _check_yarn_keys(file: GgufFile, keys: TypedKeys) -> None:
    """Refuses parts of YaRN that no model of these families uses."""
    keys.check_neutral(prefixed(file, "rope.scaling.yarn_ext_factor"), (1.0, -1.0))
    keys.check_neutral(prefixed(file, "rope.scaling.yarn_attn_factor"), 1.0)
    keys.check_neutral(prefixed(file, "rope.scaling.yarn_log_multiplier"), 0.0)


def _yarn(
    file: GgufFile, sizes: Sizes, size: int, theta: float, factor: float, truncate: bool
) -> Rope:
    keys = file.metadata
    if FREQUENCY_FACTORS in file.tensor_names:
        raise keys.error(
            prefixed(file, "rope.scaling.type"), f"no 'yarn' beside the tensor {FREQUENCY_FACTORS}"
        )
    if theta == 1:
        raise keys.error(prefixed(file, "rope.freq_base"), "a number above 1 with 'yarn'")
    # llama.cpp multiplies YaRN's own concentration by this.
    stated = keys.number(prefixed(file, "rope.scaling.attn_factor"), ROPE_CONCENTRATION, 1.0)
    beta = Range(1e-3, 1e6)
    slow = keys.number(prefixed(file, "rope.scaling.yarn_beta_slow"), beta, 1.0)
    fast_key = prefixed(file, "rope.scaling.yarn_beta_fast")
    fast = keys.number(fast_key, beta, 32.0)
    length = _original_length(file, sizes)
    # Beyond these limits llama.cpp's and transformers' definitions differ.
    if fast < slow:
        raise keys.error(fast_key, f"at least yarn_beta_slow, {slow!r}")
    if length <= 2 * math.pi * slow:
        raise keys.error(
            prefixed(file, "rope.scaling.original_context_length"),
            f"a context in which a pair turns {slow!r} times (yarn_beta_slow)",
        )
    return rope_scaling.yarn(
        size,
        theta,
        factor=factor,
        original_length=length,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
        concentration=stated * rope_scaling.yarn_concentration(factor),
    )


def _original_length(file: GgufFile, sizes: Sizes) -> int:
    key = prefixed(file, "rope.scaling.original_context_length")
    return file.metadata.integer(key, CONTEXT_LENGTH, default=sizes.context_length)


def _factors(file: GgufFile, name: str, size: int) -> Sequence[float]:
    """Divisors of the frequencies that a tensor holds."""
    factors = file.tensor(name, (size // 2,)).tolist()
    for factor in factors:
        if factor not in ROPE_FACTORS:
            raise ModelError(
                f"{file.path}: {name}: expected numbers from {ROPE_FACTORS}, got {factor!r}"
            )
    return factors
