"""The router of a layer with experts: which experts a token goes to, and with what weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Parameters
from jax_tkg.reference.linear import Multiply, multiply


def route(
    x: jax.Array,
    router: jax.Array,
    bias: jax.Array | None,
    selection: jax.Array | None,
    parameters: Parameters,
    multiply: Multiply = multiply,
) -> tuple[jax.Array, jax.Array]:
    """The experts of each token and their weights.

    Among equal values the lowest expert is chosen.

    Args:
      x: [T, H], already normalized.
      router: [H, E] in the form that `multiply` takes.
      bias: [1, E], added to the logits, or None.
      selection: [1, E], added to what "sigmoid_topk" chooses by, or None.
      parameters: whose `experts_per_token`, `routing`, `normalize_expert_weights` and
        `routed_scale` count.
      multiply: computes the product.

    Returns:
      int32 [T, k], the chosen experts, and f32 [T, k], their weights.
    """
    logits = multiply(x.astype(jnp.float32), router)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    routing, normalize = parameters.routing, parameters.normalize_expert_weights
    # Normalized, the softmax over all experts is that over the chosen ones.
    over_chosen = routing == "topk_softmax" or (routing == "softmax_topk" and normalize)
    values, scores = logits, logits
    if routing == "sigmoid_topk":
        values = jax.nn.sigmoid(logits)
        scores = values if selection is None else values + selection.astype(jnp.float32)
    elif not over_chosen:
        values = jax.nn.softmax(logits, axis=-1)
    largest, chosen = jax.lax.top_k(scores, parameters.experts_per_token)
    weights = largest if values is scores else jnp.take_along_axis(values, chosen, axis=-1)
    if over_chosen:
        weights = jax.nn.softmax(weights, axis=-1)
    elif normalize:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return chosen, weights * jnp.float32(parameters.routed_scale)
