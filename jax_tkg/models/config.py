"""Sizes and constants of a llama-architecture model, with the range that each may have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jax_tkg.limits import MAX_HEAD_SIZE
from jax_tkg.models.errors import ModelError
from jax_tkg.models.typed_keys import Range, shown
from jax_tkg.rope import Llama3Scaling, rope_frequencies

CONTEXT_LENGTH = Range(1, 1 << 24)
"""Positions are float32 in the RoPE tables, which hold integers exactly up to here."""

ROPE_FACTOR = Range(1e-3, 1e6)
"""Range of a divisor that scales all RoPE frequencies."""

ROPE_FACTORS = Range(1e-3, 1e38)
"""Range of the divisors of single RoPE frequencies; a huge one stops that pair from rotating."""

LIMITS: Mapping[str, Range] = {
    "num_layers": Range(1, 1 << 12),
    "hidden_size": Range(1, 1 << 20),
    "intermediate_size": Range(1, 1 << 24),
    "num_heads": Range(1, 1 << 16),
    "num_kv_heads": Range(1, 1 << 16),
    "head_size": Range(2, MAX_HEAD_SIZE),
    "vocabulary_size": Range(1, 1 << 24),
    "context_length": CONTEXT_LENGTH,
    # A base below 1 would let later pairs turn faster, without bound.
    "rope_theta": Range(1.0, 1e15),
    # A float32 below 1e-38 is zero on most devices, and gives NaN for features that are all zero.
    "rms_norm_eps": Range(1e-15, 1.0),
}
"""The range of each number in `LlamaConfig`, beyond which a file is damaged or hostile."""


class ConfigError(ModelError):
    """One of `LlamaConfig`'s fields does not fit; loaders put their key in its place.

    Attributes:
      field: the field's name.
      reason: what was expected and what came.
    """

    def __init__(self, field: str, reason: str):
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a model as its checkpoint states them, before any padding.

    Attributes:
      num_layers: transformer layers.
      hidden_size: features of a hidden state.
      intermediate_size: features inside the MLP.
      num_heads: query heads.
      num_kv_heads: key/value heads, a divisor of `num_heads`.
      head_size: features of one head, even and at most 256.
      vocabulary_size: tokens.
      context_length: longest sequence that the model was trained for, in tokens.
      rope_theta: base of the RoPE frequencies.
      rms_norm_eps: epsilon of every RMSNorm.
      rope_scaling: Llama 3's scaling of the frequencies, or None.
      rope_factors: [head_size//2] divisors of the frequencies, or None.

    Raises:
      ConfigError: a value is out of its range (`LIMITS`); the message names it.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    rope_scaling: Llama3Scaling | None = None
    rope_factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the values, which come from a file."""
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            is_size = isinstance(limits.minimum, int)
            if type(value) not in ((int,) if is_size else (int, float)) or value not in limits:
                kind = "an integer" if is_size else "a number"
                raise ConfigError(name, f"expected {kind} from {limits}, got {shown(value)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "num_kv_heads",
                f"expected a divisor of the {self.num_heads} query heads, got {self.num_kv_heads}",
            )
        if self.head_size % 2:
            raise ConfigError("head_size", f"expected an even number, got {self.head_size}")
        if self.rope_factors is not None:
            self._check_rope_factors(self.rope_factors)
        if self.rope_scaling is not None:
            self._check_rope_scaling(self.rope_scaling)

    def _check_rope_factors(self, factors: tuple[float, ...]) -> None:
        if len(factors) != self.head_size // 2:
            raise ConfigError(
                "rope_factors",
                f"expected {self.head_size // 2} numbers, one for each pair of a head's features, "
                f"got {len(factors)}",
            )
        for factor in factors:
            if factor not in ROPE_FACTORS:
                raise ConfigError(
                    "rope_factors", f"expected numbers from {ROPE_FACTORS}, got {factor!r}"
                )

    def _check_rope_scaling(self, scaling: Llama3Scaling) -> None:
        for factor in (scaling.factor, scaling.low_frequency_factor, scaling.high_frequency_factor):
            if factor not in ROPE_FACTOR:
                raise ConfigError(
                    "rope_scaling", f"expected factors from {ROPE_FACTOR}, got {factor!r}"
                )
        if scaling.original_context_length not in CONTEXT_LENGTH:
            raise ConfigError(
                "rope_scaling",
                f"expected an original context length from {CONTEXT_LENGTH}, got "
                f"{scaling.original_context_length!r}",
            )
        if not scaling.low_frequency_factor < scaling.high_frequency_factor:
            raise ConfigError(
                "rope_scaling",
                f"expected a low frequency factor below the high one, "
                f"{scaling.high_frequency_factor}, got {scaling.low_frequency_factor}",
            )

    def rope_frequencies(self) -> np.ndarray:
        """[head_size//2] float64, radians per position."""
        frequencies = rope_frequencies(self.head_size, self.rope_theta, self.rope_scaling)
        if self.rope_factors is None:
            return frequencies
        return frequencies / np.asarray(self.rope_factors, np.float64)
