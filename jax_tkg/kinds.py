"""What a step of `transformer_tkg` is given for each kind of layers, made from lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.caches import block_slots, ring_slots
from jax_tkg.call.integers import as_int32
from jax_tkg.masks import active_mask, cache_mask, window_mask, window_ranges
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
    positions, written = _positions(lengths, S_tkg, new_lengths)
    rows = [_inputs(kind, lengths, positions, written, q, S_ctx, new_lengths) for kind in kinds]
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def prefill_inputs(
    kinds: Sequence[Kind],
    lengths: jax.Array,
    *,
    S: int,
    new_lengths: jax.Array | None = None,
) -> dict[str, tuple[Any, ...]]:
    """The per-kind arguments of `jax_tkg.prefill.transformer_prefill`; usable under `jax.jit`.

    Args:
      kinds: the kinds 0, 1 and so on of `layer_kinds`; their windows are its `windows`.
      lengths: [B] int32, tokens of each sequence before these.
      S: new tokens.
      new_lengths: [B] integers, how many of each sequence's new tokens are real; None: all. Padding
        is not written.

    Returns:
      `RoPE_cos`, `RoPE_sin`, `context_lengths`, `context_starts` and `position_ids`, each a tuple
      with an entry for each kind; `context_starts` are None for kinds without a window.
    """
    filled = as_int32(lengths, "lengths")
    positions, written = _positions(filled, S, new_lengths)
    inputs: dict[str, list[Any]] = {}
    for kind in kinds:
        cos, sin = _tables(positions, kind.frequencies, kind.concentrations)
        ends, starts, slots = filled, None, written
        if kind.window is not None:
            ends, starts = window_ranges(filled, kind.window, S, kind.S_max)
            slots = ring_slots(written, kind.S_max)
        own = {
            "RoPE_cos": cos,
            "RoPE_sin": sin,
            "context_lengths": ends,
            "context_starts": starts,
            "position_ids": slots,
        }
        for name, value in own.items():
            inputs.setdefault(name, []).append(value)
    return {name: tuple(entries) for name, entries in inputs.items()}


def decode_inputs(
    lengths: jax.Array,
    frequencies: np.ndarray,
    *,
    S_tkg: int = 1,
    new_lengths: jax.Array | None = None,
    window: int | None = None,
    S_max: int | None = None,
    block_tables: jax.Array | None = None,
    block_len: int | None = None,
    concentrations: np.ndarray | None = None,
    q: int | None = None,
) -> dict[str, Any]:
    """The arguments of one step of a model of equal layers, without masks; usable under `jax.jit`.

    Without `new_lengths` and `window` they are also those of
    `jax_tkg.prefill.transformer_prefill`, with S_tkg of any size.

    Args:
      lengths: [B] int32, tokens of each sequence before this step.
      frequencies: [d/2], radians per position (`jax_tkg.rope.rope_frequencies`).
      S_tkg: S, new tokens.
      new_lengths: [B] integers, how many of each sequence's new tokens are real; None: all. Padding
        is neither attended nor written.
      window: W, how many tokens a query attends, itself included; None: all.
      S_max: slots of the caches if they are rings, which need a window; else None.
      block_tables: [B, n], if the caches are in blocks; else None.
      block_len: slots of a block, with `block_tables`.
      concentrations: [d/2], factors of the cosines and sines; None: all are 1.
      q: query heads, over all ranks where masks are sharded. Needed with `new_lengths` and with a
        window of fewer tokens than are new: `mask_active` is not causal then.

    Returns:
      `RoPE_cos`, `RoPE_sin`, `mask_cache` (None), `mask_active`, `context_lengths`,
      `context_starts`, `block_tables` and `position_ids`, some of them None. `context_bucket` is
      the caller's to choose (`jax_tkg.caches.context_bucket`).

    Raises:
      ValueError: `S_max` without `window`, or a ring in blocks, or `block_tables` without
        `block_len`, or no `q` where it is needed.
    """
    if S_max is not None and (window is None or block_tables is not None):
        raise ValueError(
            "S_max: expected None without window and with block_tables (it is the size of a ring), "
            f"got {S_max}"
        )
    if (block_tables is None) != (block_len is None):
        raise ValueError(
            f"block_len: expected an integer with block_tables, and None without, got {block_len}"
        )
    filled = as_int32(lengths, "lengths")
    positions, written = _positions(filled, S_tkg, new_lengths)
    cos, sin = _tables(positions, frequencies, concentrations)
    ends, starts = filled, None
    if window is not None:
        ends, starts = window_ranges(filled, window, S_tkg, S_max)
    # Without padding, and with windows of more tokens than are new, it is causal.
    causal = new_lengths is None and (window is None or window >= S_tkg)
    active = None
    if not causal:
        if q is None:
            reason = f"window = {window} < S_tkg = {S_tkg}"
            if new_lengths is not None:
                reason = "new_lengths"
            raise ValueError(f"q: expected the number of query heads with {reason}, got None")
        active = active_mask(S_tkg, filled.shape[0], q, new_lengths, window=window)
    if block_tables is not None:
        slots = block_slots(written, block_tables, block_len or 1)
    elif S_max is not None:
        slots = ring_slots(written, S_max)
    else:
        # The first slot alone says that the others follow, which the kernel writes faster.
        slots = written[:, :1] if new_lengths is None else written
    return {
        "RoPE_cos": cos,
        "RoPE_sin": sin,
        "mask_cache": None,
        "mask_active": active,
        "context_lengths": ends,
        "context_starts": starts,
        "block_tables": block_tables,
        "position_ids": slots,
    }


def _positions(
    lengths: jax.Array, S_tkg: int, new_lengths: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """[B, S] each: positions of the new tokens, and of those that are written, else -1."""
    token = jnp.arange(S_tkg, dtype=jnp.int32)[None]
    positions = as_int32(lengths, "lengths")[:, None] + token
    if new_lengths is None:
        return positions, positions
    real = token < as_int32(new_lengths, "new_lengths")[:, None]
    return positions, jnp.where(real, positions, -1)


def _tables(
    positions: jax.Array, frequencies: np.ndarray, concentrations: np.ndarray | None
) -> tuple[jax.Array, jax.Array]:
    cos, sin = tables_of_frequencies(positions, frequencies)
    if concentrations is None:
        return cos, sin
    factors = jnp.asarray(concentrations, jnp.float32)[:, None, None]
    return cos * factors, sin * factors


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
    cos, sin = _tables(positions, kind.frequencies, kind.concentrations)
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
