"""The rotations that checkpoints ask for: frequencies of RoPE under each published scaling.

Every scaling comes down to the frequencies of the pairs of features that turn and to one factor for
their cosines and sines, so the operation knows nothing of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jax_tkg.rope import Llama3Scaling, rope_frequencies


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rotation of queries and keys in one kind of layer.

    Attributes:
      frequencies: radians per position of each pair of features that turns; a head's other pairs
        stay as they are. None turns if it is empty.
      concentration: factor of cosines and sines of the pairs that turn (YaRN, LongRoPE).
      long_frequencies: frequencies in place of `frequencies` if caches hold more than
        `original_length` tokens; empty if they are the same.
      original_length: context length of the pre-training in tokens, where it matters.
    """

    frequencies: tuple[float, ...]
    concentration: float = 1.0
    long_frequencies: tuple[float, ...] = ()
    original_length: int = 0

    def head_frequencies(self, head_size: int, capacity: int = 0) -> np.ndarray:
        """[head_size//2] float64, radians per position; 0 for pairs that do not turn.

        Args:
          head_size: d.
          capacity: tokens that the caches have room for.
        """
        turning = self.frequencies
        if self.long_frequencies and capacity > self.original_length:
            turning = self.long_frequencies
        frequencies = np.zeros(head_size // 2)
        frequencies[: len(turning)] = turning
        return frequencies

    def head_concentrations(self, head_size: int) -> np.ndarray | None:
        """[head_size//2] float64, factors of cosines and sines; None if all are 1."""
        if self.concentration == 1:
            return None
        factors = np.ones(head_size // 2)
        factors[: len(self.frequencies)] = self.concentration
        return factors


def plain(size: int, theta: float, factors: Sequence[float] | float = 1.0) -> Rope:
    """Frequencies theta ** (-2i / size), each divided by its factor.

    Args:
      size: features of a head that turn, even; 0 for none.
      theta: base of the frequencies.
      factors: one divisor, or one for each pair ("linear" scaling, `rope_freqs` in GGUF files).
    """
    if not size:
        return Rope(())
    frequencies = rope_frequencies(size, theta) / np.asarray(factors, np.float64)
    return Rope(tuple(frequencies.tolist()))


def llama3(size: int, theta: float, scaling: Llama3Scaling) -> Rope:
    """Llama 3.1's scaling of `size` features, 0 for none; see `jax_tkg.rope.Llama3Scaling`."""
    if not size:
        return Rope(())
    return Rope(tuple(rope_frequencies(size, theta, scaling).tolist()))


def yarn_concentration(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor of cosines and sines: 1 + weight * 0.1 * ln(factor), section 3.4 of the paper
    (arXiv:2309.00071)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def yarn(
    size: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    concentration: float | None = None,
) -> Rope:
    """YaRN (arXiv:2309.00071): slow pairs are stretched by `factor`, fast ones are left alone.

    Args:
      size: features of a head that turn, even.
      theta: base of the frequencies.
      factor: by how much the context is stretched.
      original_length: context length of the pre-training, in tokens.
      beta_fast: pairs that turn more often than this over `original_length` are left alone.
      beta_slow: pairs that turn less often are stretched fully; those between, in part.
      truncate: whether the two limits are widened to whole pairs.
      concentration: factor of cosines and sines; None: 1 + 0.1 * ln(factor).
    """

    def pair_that_turns(times: float) -> float:
        return size * math.log(original_length / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    # A width of 0.001 makes a step, as transformers and llama.cpp have it.
    width = last - first if last != first else 0.001
    stretched = np.clip((np.arange(size // 2) - first) / width, 0.0, 1.0)
    frequencies = rope_frequencies(size, theta) * (1 - stretched + stretched / factor)
    if concentration is None:
        concentration = yarn_concentration(factor)
    return Rope(tuple(frequencies.tolist()), concentration)


def longrope_concentration(factor: float, original_length: int) -> float:
    """LongRoPE's factor of cosines and sines, for a context `factor` times the original one."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_length))


def longrope(
    size: int,
    theta: float,
    *,
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    original_length: int,
    concentration: float,
) -> Rope:
    """LongRoPE (arXiv:2402.13753): a divisor for each pair, others where the context is long.

    Which of the two applies is decided once, by the capacity of the caches: keys in them must not
    be turned by both.
    """
    short = plain(size, theta, short_factors).frequencies
    long = plain(size, theta, long_factors).frequencies
    return Rope(short, concentration, long, original_length)
