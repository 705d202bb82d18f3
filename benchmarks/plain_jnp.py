"""The decode step as one would first write it in jax.numpy: a peer, not tuned in any way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.weights import TransformerWeights


def decode_step(
    x: jax.Array,
    weights: TransformerWeights,
    K_caches: list[jax.Array],
    V_caches: list[jax.Array],
    length: jax.Array,
    S_ctx: int,
    q: int,
    theta: float = 500000.0,
    eps: float = 1e-5,
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """One new token per sequence through all layers.

    Args:
      x: [B, H] embedded tokens.
      weights: lists of matrices, [in, out].
      K_caches: each [B, k, S_max, d].
      V_caches: each [B, k, S_max, d].
      length: int32 scalar, tokens in every sequence's cache.
      S_ctx: slots attended.
      q: query heads.
      theta: base of the rotary embedding.
      eps: RMSNorm epsilon.

    Returns:
      Hidden states [B, H] and the updated caches.
    """
    batch = x.shape[0]
    k, d = K_caches[0].shape[1], K_caches[0].shape[3]
    angles = length * theta ** (-jnp.arange(0, d, 2) / d)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    K_updated, V_updated = [], []
    for layer in range(len(K_caches)):
        one = {n: None if a is None else a[layer] for n, a in weights.arguments().items()}
        projected = _rms_norm(x, one["W_gamma_qkvs"], eps) @ one["W_qkvs"]
        query, key, value = jnp.split(projected.reshape(batch, q + 2 * k, 1, d), [q, q + k], axis=1)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        K_updated.append(jax.lax.dynamic_update_slice_in_dim(K_caches[layer], key, length, 2))
        V_updated.append(jax.lax.dynamic_update_slice_in_dim(V_caches[layer], value, length, 2))
        grouped = query.reshape(batch, k, q // k, d)
        scores = jnp.einsum("bkgd,bktd->bkgt", grouped, K_updated[-1][:, :, :S_ctx]) / d**0.5
        scores = jnp.where(jnp.arange(S_ctx) <= length, scores.astype(jnp.float32), -jnp.inf)
        attention = jax.nn.softmax(scores).astype(x.dtype)
        mixed = jnp.einsum("bkgt,bktd->bkgd", attention, V_updated[-1][:, :, :S_ctx])
        x = x + mixed.reshape(batch, q * d) @ one["W_outs"]
        normed = _rms_norm(x, one["W_gamma_mlps"], eps)
        gate = _matmul(normed, one["W_gates"], one["W_gate_scales"])
        up = _matmul(normed, one["W_ups"], one["W_up_scales"])
        x = x + _matmul(jax.nn.silu(gate) * up, one["W_downs"], one["W_down_scales"])
    return x, K_updated, V_updated


def _rms_norm(x: jax.Array, gamma: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (normed * gamma).astype(x.dtype)


def _rotate(heads: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(heads, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _matmul(x: jax.Array, weight: jax.Array, scale: Any) -> jax.Array:
    product = x @ weight.astype(x.dtype)
    return product if scale is None else (product * scale[:1]).astype(x.dtype)
