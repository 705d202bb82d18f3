"""Prompts in a few lengths, so that a few compiled programs read all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_tkg.caches import context_bucket


def padded_prompt(tokens: Sequence[int], capacity: int) -> np.ndarray:
    """A prompt and zeros after it, up to its context bucket.

    In flat caches padding needs no mark: new tokens attend each other causally, so it changes no
    real token, and it is written into slots beyond the sequence's length, where the tokens that
    follow take its place. (In rings it would take the place of tokens that are attended: give it
    negative `position_ids`, as `jax_tkg.kinds.prefill_inputs` does with `new_lengths`.)

    Args:
      tokens: [n] token ids.
      capacity: S_max, at least n.

    Returns:
      [context_bucket(n, capacity)] int32.

    Raises:
      ValueError: the prompt is longer than the capacity.
    """
    if len(tokens) > capacity:
        raise ValueError(f"tokens: expected at most {capacity} (the capacity), got {len(tokens)}")
    padded = np.zeros(context_bucket(len(tokens), capacity), np.int32)
    padded[: len(tokens)] = tokens
    return padded
