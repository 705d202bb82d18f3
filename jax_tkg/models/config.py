"""What a llama-architecture checkpoint says of its model."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jax_tkg.call.arguments import MAX_HEAD_SIZE
from jax_tkg.models.errors import ModelError
from jax_tkg.rope import Llama3Scaling, rope_frequencies


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a model as its checkpoint gives them, before any padding.

    Attributes:
      num_layers: transformer layers.
      hidden_size: features of a hidden state.
      intermediate_size: features inside the MLP.
      num_heads: query heads.
      num_kv_heads: key/value heads, a divisor of `num_heads`.
      head_size: features of one head, even and at most 128.
      vocabulary_size: tokens.
      context_length: longest sequence the model was made for, in tokens.
      rope_theta: base of the RoPE frequencies.
      rms_norm_eps: epsilon of every RMSNorm.
      rope_scaling: Llama 3's scaling of the frequencies, or None.
      rope_factors: [head_size//2] divisors of the frequencies, or None.

    Raises:
      ModelError: a value is out of its range; the message names it.
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
        for field in dataclasses.fields(self)[:8]:
            size = getattr(self, field.name)
            if not isinstance(size, int) or size < 1:
                raise ModelError(f"{field.name}: expected a positive integer, got {size!r}")
        for name, value in (("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)):
            if not 0 < value < math.inf:
                raise ModelError(f"{name}: expected a positive number, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_heads: expected a multiple of num_kv_heads = {self.num_kv_heads}, got "
                f"{self.num_heads}"
            )
        if self.head_size % 2 or self.head_size > MAX_HEAD_SIZE:
            raise ModelError(
                f"head_size: expected an even number up to {MAX_HEAD_SIZE}, got {self.head_size}"
            )
        if self.rope_factors is not None and not all(0 < f < math.inf for f in self.rope_factors):
            raise ModelError(f"rope_factors: expected positive numbers, got {self.rope_factors}")

    def rope_frequencies(self) -> np.ndarray:
        """[head_size//2] float64, radians per position."""
        frequencies = rope_frequencies(self.head_size, self.rope_theta, self.rope_scaling)
        if self.rope_factors is None:
            return frequencies
        return frequencies / np.asarray(self.rope_factors, np.float64)
