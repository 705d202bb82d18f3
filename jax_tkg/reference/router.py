"""The router of a layer with experts: which experts a token goes to, and with what weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Parameters


def route(
    x: jax.Array,
    router: jax.Array,
    bias: jax.Array | None,
    selection: jax.Array | None,
    parameters: Parameters,
) -> tuple[jax.Array, jax.Array]:
    """The experts of each token and their weights.

    Among equal values the lowest expert is chosen.

    Args:
      x: [T, H], already normalized.
      router: [H, E].
      bias: [1, E], added to the logits, or None.
      selection: [1, E], added to what "sigmoid_topk" chooses by, or None.
      parameters: whose `experts_per_token`, `routing`, `normalize_expert_weights` and
        `routed_scale` count.

    Returns:
      int32 [T, k], the chosen experts, and f32 [T, k], their weights.
    """
    logits = jnp.matmul(
        x.astype(jnp.float32),
        router.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    values, scores = logits, logits
    if parameters.routing == "softmax_topk":
        values = jax.nn.softmax(logits, axis=-1)
    elif parameters.routing == "sigmoid_topk":
        values = jax.nn.sigmoid(logits)
        scores = values if selection is None else values + selection.astype(jnp.float32)
    _, chosen = jax.lax.top_k(scores, parameters.experts_per_token)
    weights = jnp.take_along_axis(values, chosen, axis=-1)
    if parameters.routing == "topk_softmax":
        weights = jax.nn.softmax(weights, axis=-1)
    if parameters.normalize_expert_weights:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return chosen, weights * jnp.float32(parameters.routed_scale)
