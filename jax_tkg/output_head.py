"""From the last hidden states to logits: what a model computes after `transformer_tkg`.

`rms_norm` and `output_logits` are the operation's own stages, so that a decode loop's head is as
fast as its layers on every platform. `merge_candidates` is for a call that is given its head.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.integers import check_count
from jax_tkg.cpu.formulation import Form
from jax_tkg.cpu.products import multiply
from jax_tkg.cpu.stored_weight import StoredWeight
from jax_tkg.reference.linear import linear
from jax_tkg.reference.rms_norm import rms_norm

__all__ = ["merge_candidates", "output_logits", "rms_norm"]


def output_logits(hidden: jax.Array, W_head: Any, platform: str | None = None) -> jax.Array:
    """hidden @ W_head, accumulated in float32.

    Args:
      hidden: [B, S, H] normalized hidden states, in W_head's dtype.
      W_head: [H, V], an array or `jax_tkg.bits.Bits`. This order, not [V, H], is what a CPU reads
        at the speed of memory.
      platform: the platform lowered for, such as "cpu", where the program is for one device; it
        chooses how the product is written. None: a product that every platform and sharding takes.

    Returns:
      [B, S, V] float32.
    """
    # One dot elsewhere; of a single low-precision row, one that is fast on meshes of CPUs too.
    form = None if platform == "cpu" else Form.WHOLE
    product = functools.partial(multiply, form=form)
    return linear(hidden, StoredWeight(W_head), multiply=product)


def merge_candidates(
    candidate_logits: jax.Array, candidate_ids: jax.Array, count: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The largest logits of all ranks, of the candidates that each rank returned.

    The spec `jax_tkg.sharding.partition_specs().candidates` puts those side by side: the step reads
    a few numbers of each rank.

    Args:
      candidate_logits: [B, S, ranks * n] float32, those of each rank in descending order, ranks in
        the order of their parts of the vocabulary.
      candidate_ids: [B, S, ranks * n] int32, their ids.
      count: how many are wanted, at most n unless each rank returned all that it has: all of them
        may be one rank's.

    Returns:
      [B, S, count] logits in descending order, and their ids; of equal logits the lowest ids, in
      ascending order. Where a `logit_softcap` is so low that its tanh rounds different logits to
      the same, these may be others than those that one rank with all columns chooses.

    Raises:
      TypeError: `count` is no integer.
      ValueError: it is not positive, or larger than the number of candidates.
    """
    count, given = check_count("count", count), candidate_logits.shape[-1]
    if count > given:
        raise ValueError(f"count: expected at most the {given} candidates of a token, got {count}")
    if count == 1:
        # Plain reductions, which every compiler has.
        largest = jnp.max(candidate_logits, axis=-1, keepdims=True)
        none = jnp.iinfo(candidate_ids.dtype).max
        ids = jnp.where(candidate_logits == largest, candidate_ids, none)
        return largest, jnp.min(ids, axis=-1, keepdims=True)
    logits, places = jax.lax.top_k(candidate_logits, count)
    return logits, jnp.take_along_axis(candidate_ids, places, axis=-1)
