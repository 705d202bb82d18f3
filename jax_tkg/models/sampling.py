"""Choosing the next token from logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.models.integers import as_integer, as_integers, as_number

SEED_IMPLEMENTATION = "threefry2x32"
"""Kind of the PRNG keys of seeds."""

MOST_CANDIDATES = 64
"""Largest top_k of which the likeliest tokens are taken from `transformer_tkg`."""

SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""Lower temperatures, which are not normal float32 numbers, are greedy, as 0 is."""

LARGEST_TEMPERATURE = 1 / SMALLEST_TEMPERATURE
"""Higher temperatures count as this one, whose reciprocal is a normal float32 number.

XLA multiplies by reciprocals: by 0, an infinite logit would be NaN.
"""

LARGEST_PENALTY = 1e30
"""Logits times this are far from float32's end, and far from all that are not penalized."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    The options apply in the order penalty, temperature, top_k, top_p, min_p, each to what the ones
    before it leave, as in transformers.

    Attributes:
      temperature: divides the logits, up to `LARGEST_TEMPERATURE`; 0, or less than
        `SMALLEST_TEMPERATURE`, takes the most likely token (greedy), for which top_k, top_p and
        min_p change nothing.
      top_p: tokens are drawn from the smallest set of likeliest ones whose probabilities reach
        top_p; 1 for all.
      top_k: tokens are drawn from the top_k likeliest ones, of equal ones those with the lowest
        ids; 0 for all.
      min_p: tokens are drawn from those whose probability is at least min_p times the likeliest
        one's; 0 for all.
      repetition_penalty: divides the positive logits of tokens in the prompt or the answer so far,
        and multiplies their negative ones (Keskar et al. 2019, section 4.1); 1 for no penalty.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ValueError: an option is out of its range; the message names it.
          TypeError: top_k is no integer, or another option no number.
        """
        # The class is frozen. Arrays of JAX, which cannot be hashed, could not be static under jit.
        object.__setattr__(self, "top_k", as_integer("top_k", self.top_k))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected 0 < top_p <= 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected a whole number >= 0, got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected 0 <= min_p <= 1, got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty: expected a finite number > 0, got {self.repetition_penalty}"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without drawing."""
        return self.temperature < SMALLEST_TEMPERATURE

    @property
    def nucleus(self) -> float:
        """top_p as a normal float32 number; less than 1 where top_p is."""
        below_one = 1 - float(np.finfo(np.float32).epsneg)
        nearest = min(max(self.top_p, float(np.finfo(np.float32).tiny)), below_one)
        return nearest if self.top_p < 1 else 1.0

    @property
    def penalty(self) -> float:
        """repetition_penalty, from 1 / `LARGEST_PENALTY` to `LARGEST_PENALTY`.

        Beyond, float32 logits would be infinite or NaN, and the same tokens would be chosen.
        """
        return min(max(self.repetition_penalty, 1 / LARGEST_PENALTY), LARGEST_PENALTY)

    @property
    def penalizes(self) -> bool:
        """Whether the tokens so far count."""
        return self.repetition_penalty != 1

    @property
    def candidates(self) -> int | None:
        """How many of the likeliest tokens are enough to choose from; None: all are needed."""
        if self.penalizes:
            return None
        if self.greedy:
            return 1
        return self.top_k if 0 < self.top_k <= MOST_CANDIDATES else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What a token is chosen from: the logits of all tokens, or of the likeliest ones. A pytree.

    Attributes:
      logits: [..., V] float32; or [..., n], the largest ones in descending order.
      ids: [..., n] int32, the tokens of these, of equal logits in ascending order; None with all.
    """

    logits: Any
    ids: Any = None

    def at(self, token: int) -> Scores:
        """Those [B, n] of one of the new tokens, of scores [B, S, n]."""
        return jax.tree.map(lambda scores: scores[:, token], self)


def seed_words(seeds: Sequence[int]) -> np.ndarray:
    """The words of the PRNG key of each seed, all of whose 64 bits count.

    `jax.random.key` takes 32 unless 64-bit types are enabled.

    Args:
      seeds: [B] integers, 0 <= seed < 2**64.

    Returns:
      [B, 2] uint32, for `jax.random.wrap_key_data` with `SEED_IMPLEMENTATION`.

    Raises:
      ValueError: a seed is out of range.
      TypeError: a seed is no integer.
    """
    words = []
    for index, seed in enumerate(as_integers("seeds", seeds)):
        if not 0 <= seed < 2**64:
            raise ValueError(f"seeds[{index}]: expected 0 <= seed < 2**64, got {seed}")
        words.append([seed >> 32, seed & 0xFFFFFFFF])
    return np.asarray(words, np.uint32).reshape(-1, 2)


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """[B] PRNG keys, one of each seed (0 <= seed < 2**64)."""
    return jax.random.wrap_key_data(jnp.asarray(seed_words(seeds)), impl=SEED_IMPLEMENTATION)


def typed_key(key: Any, batch: int, members: str) -> jax.Array:
    """A PRNG key, or [B] keys, as a typed array.

    Args:
      key: of `jax.random.key` or `jax.random.PRNGKey`; None for a fixed one.
      batch: B.
      members: what the batch consists of, for the message.

    Raises:
      ValueError: there are several keys, but not B.
      TypeError: it is no PRNG key.
    """
    if key is None:
        return jax.random.key(0)
    dtype = getattr(key, "dtype", None)
    words = jax.random.key_data(jax.random.key(0)).shape
    if dtype == np.uint32 and key.shape[-1:] == words:
        key = jax.random.wrap_key_data(jnp.asarray(key))
    elif dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        got = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
        raise TypeError(f"key: expected PRNG keys, as jax.random.key makes them, got {got}")
    if key.shape not in ((), (batch,)):
        raise ValueError(
            f"key: expected one PRNG key, or one for each of {batch} {members}, got shape "
            f"{key.shape}"
        )
    return key


def sample(
    logits: jax.Array, key: jax.Array, sampling: Sampling, seen: jax.Array | None = None
) -> jax.Array:
    """Draws one token per sequence.

    Args:
      logits: [B, V] float32.
      key: a PRNG key; or [B] keys, so that what a sequence draws does not depend on the others.
        Those of `jax.random.PRNGKey` are taken too.
      sampling: how to choose; static under jit.
      seen: [B, V] bool, the tokens in the prompt and the answer so far; needed where
        `sampling.penalizes`.

    Returns:
      [B] int32.

    Raises:
      ValueError: there are several keys, but not one for each sequence.
      TypeError: `key` is no PRNG key, or `seen` is missing.
    """
    vocabulary_size = logits.shape[-1]
    key = typed_key(key, logits.shape[0], "sequences")
    if not sampling.greedy and 0 < sampling.top_k < vocabulary_size:
        # XLA:CPU sorts the whole vocabulary where `filtered` asks for the last of the likeliest.
        likeliest = jax.lax.top_k(_penalized(logits, sampling, seen), sampling.top_k)
        return sample_candidates(Scores(*likeliest), key, sampling, vocabulary_size)
    logits = filtered(logits, sampling, seen)
    if sampling.greedy:
        return likeliest_token(logits)
    draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
    return draw(key, logits).astype(jnp.int32)


def likeliest_token(logits: jax.Array) -> jax.Array:
    """The token with the largest logit, of equal ones the first; NaN counts as the largest.

    XLA:CPU runs `jnp.argmax` an element at a time: one row of 150000 logits takes 0.7 ms, in two
    plain reductions 0.14.

    Args:
      logits: [..., V] float32.

    Returns:
      [...] int32.
    """
    V = logits.shape[-1]
    numbers = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    # Beside NaN, of which XLA:CPU's maximum may or may not be NaN, other logits come second.
    largest = jnp.max(logits, axis=-1, keepdims=True)
    second = jnp.where(logits == largest, V + numbers, 2 * V)
    first = jnp.min(jnp.where(jnp.isnan(logits), numbers, second), axis=-1)
    return jnp.where(first < V, first, first - V)


def sample_candidates(
    scores: Scores, key: jax.Array, sampling: Sampling, vocabulary_size: int
) -> jax.Array:
    """What `sample` draws with the same key, from the likeliest tokens.

    Args:
      scores: [B, n], of the likeliest tokens: n is top_k or, if that is less, V; greedy, any.
      key: as in `sample`.
      sampling: as in `sample`.
      vocabulary_size: V.

    Returns:
      [B] int32.
    """
    if sampling.greedy:
        return scores.ids[:, 0]
    scaled = _tempered(scores.logits, sampling)
    return draw_candidates(
        _from(_floor(scaled, sampling), scaled), scores.ids, key, vocabulary_size
    )


def draw_candidates(
    logits: jax.Array, ids: jax.Array, key: jax.Array, vocabulary_size: int
) -> jax.Array:
    """The tokens [B] that `jax.random.categorical` draws, given those logits that are not -inf.

    Noise is made for the whole vocabulary, so that the draw is the same as from all logits.

    Args:
      logits: [B, n] float32.
      ids: [B, n] int32, whose.
      key: as in `sample`.
      vocabulary_size: V.
    """
    if key.ndim:
        noise = jax.vmap(lambda own: jax.random.gumbel(own, (vocabulary_size,), jnp.float32))(key)
    else:
        noise = jax.random.gumbel(key, (logits.shape[0], vocabulary_size), jnp.float32)
    drawn = jnp.take_along_axis(noise, ids, axis=-1) + logits
    is_largest = drawn == jnp.max(drawn, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_largest, ids, vocabulary_size), axis=-1)


def filtered(logits: jax.Array, sampling: Sampling, seen: jax.Array | None = None) -> jax.Array:
    """[B, V]: the logits to draw from, up to a constant; -inf for what is not drawn.

    Where `sampling.greedy` they are penalized only, for the largest to be taken.

    Args:
      logits: as in `sample`.
      sampling: as in `sample`.
      seen: as in `sample`.
    """
    logits = _penalized(logits, sampling, seen)
    if sampling.greedy:
        return logits
    scaled = _tempered(logits, sampling)
    ordered = scaled
    if 0 < sampling.top_k < scaled.shape[-1]:
        ordered, ids = jax.lax.top_k(scaled, sampling.top_k)
        last, last_id = ordered[:, -1:], ids[:, -1:]
        numbers = jnp.arange(scaled.shape[-1])[None]
        scaled = jnp.where((scaled == last) & (numbers > last_id), -jnp.inf, _from(last, scaled))
    elif sampling.top_p < 1:
        ordered = jnp.sort(scaled, axis=-1, descending=True)
    return _from(_floor(ordered, sampling), scaled)


def _penalized(logits: jax.Array, sampling: Sampling, seen: jax.Array | None) -> jax.Array:
    """Logits after the repetition penalty."""
    if not sampling.penalizes:
        return logits
    if seen is None:
        raise TypeError(
            "seen: expected [B, V] bool with repetition_penalty = "
            f"{sampling.repetition_penalty}, got None"
        )
    penalty = sampling.penalty
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalized, logits)


def relative(logits: jax.Array) -> jax.Array:
    """Logits minus the largest of their row, so that over a small temperature none is +inf.

    Of logits that are +inf themselves, each counts as the largest float32 number.
    """
    logits = jnp.minimum(logits, float(np.finfo(np.float32).max))
    return logits - jnp.max(logits, axis=-1, keepdims=True)


def _tempered(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits relative to the largest, over the temperature."""
    return relative(logits) / min(sampling.temperature, LARGEST_TEMPERATURE)


def _from(floor: jax.Array | float, logits: jax.Array) -> jax.Array:
    """The logits from a floor on, -inf below it."""
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _floor(ordered: jax.Array, sampling: Sampling) -> jax.Array | float:
    """The smallest logit that top_p and min_p leave.

    Args:
      ordered: [B, n], what top_k leaves, from `_tempered`; with top_p in descending order.
      sampling: the options.

    Returns:
      [B, 1], or -inf.
    """
    # The likeliest one's logit is 0.
    floor: jax.Array | float = math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf
    if sampling.top_p < 1:
        # What min_p leaves out is counted here: it comes after top_p.
        floor = jnp.maximum(floor, _nucleus_floor(ordered, sampling.nucleus))
    return floor


def _nucleus_floor(ordered: jax.Array, top_p: float) -> jax.Array:
    """[B, 1]: the smallest logit of the nucleus (Holtzman et al. 2019, section 3.1)."""
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token is in while the likelier ones have not reached top_p: the likeliest always is.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    inside = before < top_p
    return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
