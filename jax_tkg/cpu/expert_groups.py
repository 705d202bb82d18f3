"""Experts run on blocks of the tokens that chose them, as many as there are such blocks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.cpu import formulation
from jax_tkg.cpu.loops import repeat
from jax_tkg.cpu.stored_weight import StoredWeight
from jax_tkg.reference import expert_runs
from jax_tkg.reference.expert_runs import RunExpert
from jax_tkg.reference.varying_axes import vary_with


def run_experts(
    run: RunExpert,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    held: int,
    weights: Any,
) -> jax.Array:
    """As `jax_tkg.reference.expert_runs.run_experts`, for the tokens of a step.

    Where there are as many pairs of a token and an expert as experts, a step of the loop is a pair,
    sorted by expert, so that a weight that several tokens need is still in the processor's caches.
    Otherwise a step has as many pairs as `formulation.experts_at_once` says.
    """
    T, k = chosen.shape
    if T > 1 and T * k >= held:
        return run_in_groups(1, run, rows, chosen, shares, held, weights)
    matrices = [each for each in jax.tree.leaves(weights, is_leaf=_is_stored) if _is_stored(each)]
    together = min((formulation.experts_at_once(T * k, each) for each in matrices), default=1)
    if together == 1:
        return expert_runs.run_experts(run, rows, chosen, shares, held, weights)
    return expert_runs.run_pairs(run, rows, chosen, shares, batch_size=together)


def _is_stored(node: Any) -> bool:
    return isinstance(node, StoredWeight)


def run_in_groups(
    size: int,
    run: RunExpert,
    rows: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    held: int,
    weights: Any,
) -> jax.Array:
    """As `jax_tkg.reference.expert_runs.run_experts`, with a block of tokens in each step.

    The pairs of a token and an expert are sorted by expert. A loop takes `size` of one expert's a
    turn, and turns as often as there are such blocks: an expert that no token chose is not read.

    Args:
      size: tokens that an expert is run on at once. Its last block is padded.
      run: runs one of the experts that this rank holds.
      rows: [T, H].
      chosen: [T, k] int32.
      shares: [T, k] f32.
      held: how many experts the rank holds.
      weights: pytree of what `run` reads beside its arguments.
    """
    T, H = rows.shape
    k = chosen.shape[1]
    size = min(size, T)
    # What has no share, because another rank holds it, comes last and is not run.
    expert = jnp.where(shares != 0, chosen, held).reshape(-1)
    order = jnp.argsort(expert, stable=True).astype(jnp.int32)
    each = jnp.arange(held, dtype=jnp.int32)
    counts = (expert[None] == each[:, None]).sum(axis=1, dtype=jnp.int32)
    firsts = jnp.cumsum(counts) - counts
    blocks = -(-counts // size)
    ends = jnp.cumsum(blocks)
    # Of every turn, before the loop: the expert, and which of its blocks.
    most = min(held, T * k) + T * k // size
    turns = jnp.arange(most, dtype=jnp.int32)
    numbers = (ends[None] <= turns[:, None]).sum(axis=1, dtype=jnp.int32)
    numbers = jnp.minimum(numbers, held - 1)
    done = (turns - (ends - blocks)[numbers]) * size

    def add(turn: jax.Array, total: jax.Array) -> jax.Array:
        number = numbers[turn]
        place = done[turn] + jnp.arange(size, dtype=jnp.int32)
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
