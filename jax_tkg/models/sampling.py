"""Choosing the next token from logits."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""Temperatures below this, which float32 has no normal number for, are greedy like 0."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
      temperature: divides the logits; 0, or less than `SMALLEST_TEMPERATURE`, takes the most
        likely token (greedy).
      top_p: tokens are drawn from the smallest set of likeliest ones whose probabilities reach
        top_p; 1 for all.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ValueError: temperature is negative or not finite, or top_p is not in (0, 1].
        """
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected 0 < top_p <= 1, got {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without drawing."""
        return self.temperature < SMALLEST_TEMPERATURE


def sample(logits: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws one token per sequence.

    Args:
      logits: [B, V] float32.
      key: a PRNG key.
      sampling: how to choose; static under jit.

    Returns:
      [B] int32.
    """
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Relative to the largest: a small temperature makes the others -inf, and none +inf.
    temperature = min(sampling.temperature, float(np.finfo(np.float32).max))
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    if sampling.top_p < 1:
        logits = jnp.where(logits >= _nucleus_floor(logits, sampling.top_p), logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _nucleus_floor(logits: jax.Array, top_p: float) -> jax.Array:
    """[B, 1]: the smallest logit of the nucleus (Holtzman et al. 2019, section 3.1)."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token is in while the likelier ones have not reached top_p: the likeliest always is.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = before < top_p
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
