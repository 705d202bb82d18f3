"""Which tokens each expert is run on, and the sum of what the experts of a token make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.reference.varying_axes import vary_with

RunExpert = Callable[[jax.Array, jax.Array], jax.Array]
"""Runs an expert, given tokens [n, H] and its number (int32 scalar): [n, H] f32."""

RunExperts = Callable[[RunExpert, jax.Array, jax.Array, jax.Array, int, Any], jax.Array]
"""The type of `run_experts`."""


def run_experts(
    run: RunExpert,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    held: int,
    weights: Any,
) -> jax.Array:
    """The sum of the chosen experts' results, each times its share.

    Where few experts are chosen, each pair of a token and an expert is a step that reads that
    expert; otherwise each expert is a step, on all tokens.

    Args:
      run: runs one of the experts that this rank holds.
      rows: [T, H].
      chosen: [T, k] int32, the experts of each token.
      shares: [T, k] f32; 0 for an expert that the rank does not hold.
      held: how many experts the rank holds.
      weights: pytree of what `run` reads beside its arguments.

    Returns:
      [T, H] f32.
    """
    T, H = rows.shape
    k = chosen.shape[1]
    if T * k < held:
        return run_pairs(run, rows, chosen, shares)

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        share = jnp.where(chosen == number, shares, 0).sum(axis=1, keepdims=True)
        return total + share * run(rows, number), None

    zeros = vary_with(jnp.zeros((T, H), jnp.float32), rows, chosen, shares, weights)
    return jax.lax.scan(add, zeros, jnp.arange(held, dtype=jnp.int32))[0]


def run_pairs(
    run: RunExpert,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    batch_size: int | None = None,
) -> jax.Array:
    """As `run_experts`, a step of a loop for each pair of a token and an expert.

    Args:
      run: as there, for one token.
      rows: [T, H].
      chosen: [T, k] int32.
      shares: [T, k] f32.
      batch_size: how many pairs a step runs side by side, by `jax.vmap`; None: one, without it.
    """
    T, k = chosen.shape
    pairs = (jnp.repeat(rows[:, None], k, axis=0), chosen.reshape(-1), shares.reshape(-1))
    parts = jax.lax.map(
        lambda pair: pair[2] * run(pair[0], pair[1])[0], pairs, batch_size=batch_size
    )
    return parts.reshape(T, k, -1).sum(axis=1)
