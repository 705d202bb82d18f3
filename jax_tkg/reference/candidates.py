"""What follows the layers: final norm, head, and the largest logits of each token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Parameters
from jax_tkg.reference.expert_ranks import place_in_group, ranks_of
from jax_tkg.reference.linear import Multiply, linear, multiply
from jax_tkg.reference.rms_norm import rms_norm

LOWEST = -3.0e38
"""What NaN and every lower logit count as."""


def candidates(
    hidden: jax.Array,
    gamma: jax.Array,
    W_head: Any,
    parameters: Parameters,
    multiply: Multiply = multiply,
) -> tuple[jax.Array, jax.Array]:
    """The largest logits of each token among those of a rank, and where they are.

    Args:
      hidden: [B, S, H] after the last layer.
      gamma: [1, H], gain of the final norm.
      W_head: [H, V] in the form that `multiply` takes.
      parameters: of the call.
      multiply: computes the product.

    Returns:
      [B, S, candidates_per_token] float32 logits in descending order, scaled and capped, and int32
      columns of `W_head`; of equal logits the lowest columns, in ascending order.
    """
    logits = linear(rms_norm(hidden, gamma, parameters.eps), W_head, multiply=multiply)
    # A comparison with NaN is false.
    logits = jnp.where(logits >= LOWEST, logits, jnp.float32(LOWEST))
    values, columns = jax.lax.top_k(logits, parameters.candidates_per_token)
    if parameters.logit_scale != 1.0:
        values = values * parameters.logit_scale
    if parameters.logit_softcap > 0.0:
        values = parameters.logit_softcap * jnp.tanh(values / parameters.logit_softcap)
    return values, columns.astype(jnp.int32)


def whole_vocabulary_ids(columns: jax.Array, V: int, parameters: Parameters) -> jax.Array:
    """Ids in the whole vocabulary, of columns of a rank's head.

    Args:
      columns: int32, of any shape.
      V: columns of each rank's head.
      parameters: of the call, inside the enclosing `jax.shard_map`.
    """
    if ranks_of(parameters) == 1:
        return columns
    return columns + place_in_group(parameters) * jnp.int32(V)
