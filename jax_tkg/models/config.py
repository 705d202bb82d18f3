"""What a llama-architecture checkpoint says of its model."""

from __future__ import annotations

import dataclasses

import numpy as np

from jax_tkg.rope import Llama3Scaling, rope_frequencies


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a model as its checkpoint gives them, before any padding.

    Attributes:
      num_layers: transformer layers.
      hidden_size: features of a hidden state.
      intermediate_size: features inside the MLP.
      num_heads: query heads.
      num_kv_heads: key/value heads.
      head_size: features of one head.
      vocabulary_size: tokens.
      context_length: longest sequence the model was made for, in tokens.
      rope_theta: base of the RoPE frequencies.
      rms_norm_eps: epsilon of every RMSNorm.
      rope_scaling: Llama 3's scaling of the frequencies, or None.
      rope_factors: [head_size//2] divisors of the frequencies, or None.
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

    def rope_frequencies(self) -> np.ndarray:
        """[head_size//2] float64, radians per position."""
        frequencies = rope_frequencies(self.head_size, self.rope_theta, self.rope_scaling)
        if self.rope_factors is None:
            return frequencies
        return frequencies / np.asarray(self.rope_factors, np.float64)
