"""What a step of `transformer_tkg` is given for each kind of layers, made from lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.caches import ring_slots
from jax_tkg.masks import active_mask, cache_mask, window_mask
from jax_tkg.rope import tables_of_frequencies


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """What the layers of a kind have in common.

    Attributes:
      S_max: capacity of their caches.
      frequencies: [d/2], radians per position (`jax_tkg.rope.rope_frequencies`); zeros for layers
        without RoPE.
      window: W, how many tokens a query attends, itself included, in caches that are rings (of
        `jax_tkg.caches.ring_capacity(W)` slots); None: all tokens.
      concentrations: [d/2], factors of the cosines and sines (YaRN, LongRoPE); None: all are 1.
    """

    S_max: int
    frequencies: np.ndarray
    window: int | None = None
    concentrations: np.ndarray | None = None


def step_inputs(
    kinds: Sequence[Kind],
    lengths: jax.Array,
    *,
    S_tkg: int,
    q: int,
    S_ctx: int | None = None,
    new_lengths: jax.Array | None = None,
) -> dict[str, tuple[Any, ...]]:
    """The per-kind arguments of one step; usable inside a jitted function.

    Args:
      kinds: the kinds 0, 1 and so on of `layer_kinds`.
      lengths: [B] int32, tokens of each sequence before this step.
      S_tkg: S, new tokens.
      q: query heads, over all ranks where the masks are sharded.
      S_ctx: context bucket, at least the largest of `lengths`; None: each kind's S_max. Rings that
        are shorter are covered whole.
      new_lengths: [B] integers, how many of each sequence's new tokens are real; None: all. Padding
        is neither attended nor written.

    Returns:
      `RoPE_cos`, `RoPE_sin`, `mask_cache`, `mask_active` and `position_ids`, each a tuple with an
      entry for each kind.
    """
    token = jnp.arange(S_tkg, dtype=jnp.int32)[None]
    positions = jnp.asarray(lengths, jnp.int32)[:, None] + token
    written = positions
    if new_lengths is not None:
        written = jnp.where(token < new_lengths[:, None], positions, -1)
    rows = [_inputs(kind, lengths, positions, written, q, S_ctx, new_lengths) for kind in kinds]
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def _inputs(
    kind: Kind,
    lengths: jax.Array,
    positions: jax.Array,
    written: jax.Array,
    q: int,
    S_ctx: int | None,
    new_lengths: jax.Array | None,
) -> dict[str, jax.Array]:
    """The arguments of one kind."""
    B, S = positions.shape
    context = kind.S_max if S_ctx is None else min(S_ctx, kind.S_max)
    cos, sin = tables_of_frequencies(positions, kind.frequencies)
    if kind.concentrations is not None:
        factors = jnp.asarray(kind.concentrations, jnp.float32)[:, None, None]
        cos, sin = cos * factors, sin * factors
    if kind.window is None:
        mask = cache_mask(lengths, context, q, S)
    else:
        mask = window_mask(lengths, kind.window, context, q, S, kind.S_max)
    # The first slot alone says that the others follow, which the kernel writes faster.
    follows = kind.window is None and new_lengths is None
    slots = written[:, :1] if follows else written
    return {
        "RoPE_cos": cos,
        "RoPE_sin": sin,
        "mask_cache": mask,
        "mask_active": active_mask(S, B, q, new_lengths, window=kind.window),
        "position_ids": slots if kind.window is None else ring_slots(slots, kind.S_max),
    }
