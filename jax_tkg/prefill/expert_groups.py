"""Experts run on many tokens: each on blocks of the tokens that chose it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.cpu.loops import repeat
from jax_tkg.reference.expert_runs import RunExpert
from jax_tkg.reference.varying_axes import vary_with

BLOCK_TOKENS = 32
"""Tokens that an expert is run on at once. Its last block is padded, on average by half of them."""


def run_experts(
    run: RunExpert,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    held: int,
    weights: Any,
) -> jax.Array:
    """As `jax_tkg.reference.expert_runs.run_experts`.

    The pairs of a token and an expert are sorted by expert. A loop takes `BLOCK_TOKENS` of one
    expert's a turn, and turns as often as there are such blocks.
    """
    T, H = rows.shape
    k = chosen.shape[1]
    size = min(BLOCK_TOKENS, T)
    # What has no share, because another rank holds it, comes last and is not run.
    expert = jnp.where(shares != 0, chosen, held).reshape(-1)
    order = jnp.argsort(expert, stable=True)
    counts = jnp.zeros((held + 1,), jnp.int32).at[expert].add(1)[:held]
    firsts = jnp.cumsum(counts) - counts
    blocks = -(-counts // size)
    ends = jnp.cumsum(blocks)

    def add(turn: jax.Array, total: jax.Array) -> jax.Array:
        turn = turn.astype(jnp.int32)
        number = jnp.searchsorted(ends, turn, side="right").astype(jnp.int32)
        done = (turn - (ends[number] - blocks[number])) * size
        place = done + jnp.arange(size, dtype=jnp.int32)
        is_real = place < counts[number]
        pair = order[jnp.where(is_real, firsts[number] + place, 0)]
        token = pair // k
        share = jnp.where(is_real, shares.reshape(-1)[pair], 0)[:, None]
        result = jnp.where(is_real[:, None], share * run(rows[token], number), 0)
        # Each token chooses an expert once. Padding is put outside, each to a place of its own.
        nowhere = T + jnp.arange(size, dtype=token.dtype)
        at = jnp.where(is_real, token, nowhere)
        return total.at[at].add(result, mode="drop", unique_indices=True)

    zeros = vary_with(jnp.zeros((T, H), jnp.float32), rows, chosen, shares, weights)
    return repeat(ends[-1].astype(jnp.uint32), add, zeros)
