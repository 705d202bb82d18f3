"""Attention that converts low-precision caches a few heads at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_tkg.cpu import formulation
from jax_tkg.cpu.loops import repeat
from jax_tkg.cpu.stored_cache import StoredCache
from jax_tkg.reference.attention import heads_of_tokens, rows_by_head
from jax_tkg.reference.float8_caches import UNSCALED, CacheScales
from jax_tkg.reference.softmax import joint_softmax, partial_softmax
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import opaque_zero


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    K_cache: StoredCache,
    V_cache: StoredCache,
    mask: jax.Array,
    sinks: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    scales: CacheScales = UNSCALED,
    partial: bool = False,
) -> jax.Array:
    """As `jax_tkg.reference.attention.attention`, but takes caches where they are stored."""
    context = mask.shape[-1] - query.shape[1]
    rows = rows_by_head(query, key, value, mask, sinks)
    heads = rows.query.shape[0]
    count = formulation.attention_heads(K_cache, heads, context)
    # Nothing else tells XLA to copy or convert this layer's cache when it is this layer's turn,
    # instead of all layers' caches before the first layer.
    zero = opaque_zero(query)

    softmax = partial_softmax if partial else joint_softmax

    def attend(start: jax.Array) -> jax.Array:
        def mine(array: jax.Array) -> jax.Array:
            if count == heads:
                return array
            return jax.lax.dynamic_slice_in_dim(array, start, count)

        return softmax(
            jax.tree.map(mine, rows),
            K_cache.slots(-1, context, start, count, zero),
            V_cache.slots(-2, context, start, count, zero),
            scale,
            softcap,
            scales,
        )

    def add(turn: jax.Array, output: jax.Array) -> jax.Array:
        start = turn * jnp.uint32(count)
        return jax.lax.dynamic_update_slice_in_dim(output, attend(start), start, 0)

    if count == heads:
        output = attend(jnp.uint32(0))
    else:
        output = jnp.zeros_like(rows.query)
        if partial:
            output = jnp.zeros((*output.shape[:-1], 2 + output.shape[-1]), jnp.float32)
        output = vary_with(output, rows, K_cache, V_cache)
        output = repeat(heads // count, add, output)
    return heads_of_tokens(output, *query.shape[:3])
