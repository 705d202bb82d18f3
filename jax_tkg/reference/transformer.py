"""All layers of the forward pass of token generation, in plain jax.numpy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits
from jax_tkg.call.arguments import PER_LAYER, Operands, Parameters, is_stacked
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.reference import cache_update, prepare
from jax_tkg.reference.all_reduce import all_reduce
from jax_tkg.reference.attention import attention, attention_mask
from jax_tkg.reference.cache_update import Caches
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpWeights, mlp
from jax_tkg.reference.rms_norm import rms_norm
from jax_tkg.reference.rope import Rotation, apply_rope, rotation
from jax_tkg.reference.stored_weight import StoredWeight
from jax_tkg.reference.varying_axes import vary_over, varying_axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LayerWeights:
    """One layer's weights; those with a default may be absent."""

    W_qkv: StoredWeight
    W_out: StoredWeight
    W_gamma_qkv: jax.Array
    W_gamma_mlp: jax.Array
    mlp: MlpWeights
    bias_qkv: jax.Array | None = None
    bias_out: jax.Array | None = None
    W_gamma_q: jax.Array | None = None
    W_gamma_k: jax.Array | None = None
    W_gamma_post_attention: jax.Array | None = None
    W_gamma_post_mlp: jax.Array | None = None
    sinks: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Shared:
    """What every layer reads."""

    rotation: Rotation
    mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LayerResult:
    """What a layer makes.

    Attributes:
      hidden: [B, S, H], the residual stream after it.
      key: [B, S, k, d], for the cache.
      value: [B, S, k, d], likewise.
    """

    hidden: jax.Array
    key: jax.Array
    value: jax.Array


def transformer(
    operands: Operands, parameters: Parameters, platform: str | None = None
) -> tuple[jax.Array, Caches, Caches]:
    """The forward pass on checked operands.

    Where every per-layer operand is stacked, the layers run in a `lax.fori_loop`, so that tracing
    and compiling do not grow with depth; otherwise they are unrolled.

    Args:
      operands: the arrays; see `jax_tkg.transformer_tkg` for shapes and dtypes.
      parameters: the static parameters.
      platform: the platform lowered for, where it is one: how products are formulated depends on
        it (`jax_tkg.reference.formulation`), what they are does not.

    Returns:
      Hidden states [B, S, H] in X's dtype, and the updated caches in the form they came in.
    """
    if platform != "cpu":
        return _transformer(operands, parameters, platform)
    prepared = prepare.for_cpu(operands)
    hidden, K_caches, V_caches = _transformer(prepared, parameters, platform)
    return (
        hidden,
        prepare.as_given(K_caches, operands.K_caches),
        prepare.as_given(V_caches, operands.V_caches),
    )


def _transformer(
    operands: Operands, parameters: Parameters, platform: str | None
) -> tuple[jax.Array, Caches, Caches]:
    dimensions = Dimensions.of(operands)
    shared = _Shared(
        rotation=rotation(operands.RoPE_cos, operands.RoPE_sin),
        mask=attention_mask(operands.mask_cache, operands.mask_active, dimensions.k),
    )
    fields = [getattr(operands, name) for name in PER_LAYER]
    loops = all(is_stacked(field) for field in fields if field is not None)
    run = _looped if loops else _unrolled
    hidden, keys, values = run(operands, shared, dimensions, parameters, platform)
    if operands.position_ids is None:
        return hidden, operands.K_caches, operands.V_caches
    slots = cache_update.write_slots(operands.position_ids, dimensions.S, dimensions.S_max)
    plan = cache_update.plan_writes(slots, dimensions.S_max)
    updated = cache_update.write_caches(
        operands.K_caches, operands.V_caches, plan, keys, values, after=hidden
    )
    return hidden, *updated


def _layer_weights(operands: Operands, index: Any) -> _LayerWeights:
    return _LayerWeights(
        W_qkv=_stored(operands, "W_qkvs", index),
        W_out=_stored(operands, "W_outs", index),
        W_gamma_qkv=operands.layer("W_gamma_qkvs", index),
        W_gamma_mlp=operands.layer("W_gamma_mlps", index),
        mlp=MlpWeights(
            gate=_stored(operands, "W_gates", index),
            up=_stored(operands, "W_ups", index),
            down=_stored(operands, "W_downs", index),
            gate_scale=operands.layer("W_gate_scales", index),
            up_scale=operands.layer("W_up_scales", index),
            down_scale=operands.layer("W_down_scales", index),
        ),
        bias_qkv=operands.layer("bias_qkvs", index),
        bias_out=operands.layer("bias_outs", index),
        W_gamma_q=operands.layer("W_gamma_qs", index),
        W_gamma_k=operands.layer("W_gamma_ks", index),
        W_gamma_post_attention=operands.layer("W_gamma_post_attentions", index),
        W_gamma_post_mlp=operands.layer("W_gamma_post_mlps", index),
        sinks=operands.layer("sinks", index),
    )


def _stored(operands: Operands, name: str, index: Any) -> StoredWeight:
    field = getattr(operands, name)
    if is_stacked(field):
        return StoredWeight(field, jnp.uint32(index))
    return StoredWeight(field[index])


@functools.partial(jax.jit, static_argnames=("dimensions", "parameters", "platform"))
def _layer(
    hidden: jax.Array,
    K_cache: jax.Array | Bits,
    V_cache: jax.Array | Bits,
    layer: jax.Array | None,
    weights: _LayerWeights,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> _LayerResult:
    """One layer; `layer` says which entry of the caches is its own, if they have several.

    Jitted so that layers of equal shapes are traced and lowered once.
    """
    B, S, q, k, d = dimensions.B, dimensions.S, dimensions.q, dimensions.k, dimensions.d
    normed = rms_norm(hidden, weights.W_gamma_qkv, parameters.eps)
    projected = linear(normed, weights.W_qkv, platform=platform, bias=weights.bias_qkv)
    projected = projected.astype(hidden.dtype).reshape(B, S, q + 2 * k, d)
    heads = _head_norms(projected[:, :, : q + k], weights, q, parameters.eps)
    rotated = apply_rope(heads, shared.rotation)
    key, value = rotated[:, :, q:], projected[:, :, q + k :]
    attended = attention(
        query=rotated[:, :, :q],
        key=key,
        value=value,
        K_cache=K_cache,
        V_cache=V_cache,
        layer=layer,
        mask=shared.mask,
        platform=platform,
        sinks=weights.sinks,
        scale=parameters.softmax_scale,
        softcap=parameters.attention_softcap,
    )
    attention_part = linear(attended.reshape(B, S, q * d), weights.W_out, platform=platform)
    update = all_reduce(attention_part, parameters)
    if weights.bias_out is not None:
        update = update + weights.bias_out.astype(jnp.float32)[None]
    hidden = _add(hidden, update, weights.W_gamma_post_attention, parameters.eps)
    normed = rms_norm(hidden, weights.W_gamma_mlp, parameters.eps)
    mlp_part = mlp(normed, weights.mlp, parameters.clamp_bound, platform, parameters.activation)
    update = all_reduce(mlp_part, parameters)
    hidden = _add(hidden, update, weights.W_gamma_post_mlp, parameters.eps)
    return _LayerResult(hidden, key, value)


def _head_norms(heads: jax.Array, weights: _LayerWeights, q: int, eps: float) -> jax.Array:
    """The query heads and then the key heads, each kind normalized if it has a gain."""
    if weights.W_gamma_q is None and weights.W_gamma_k is None:
        return heads
    parts = (heads[:, :, :q], weights.W_gamma_q), (heads[:, :, q:], weights.W_gamma_k)
    normed = [part if gain is None else rms_norm(part, gain, eps) for part, gain in parts]
    return jnp.concatenate(normed, axis=2)


def _add(residual: jax.Array, update: jax.Array, gain: jax.Array | None, eps: float) -> jax.Array:
    """The residual stream plus an f32 update, rounded once to the stream's dtype.

    The update is normalized first if it has a gain.
    """
    if gain is not None:
        update = rms_norm(update, gain, eps)
    return (residual.astype(jnp.float32) + update).astype(residual.dtype)


def _looped(
    operands: Operands,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> tuple[jax.Array, Any, Any]:
    """The layers as a loop.

    Returns:
      Hidden states, and the new keys and values, [L, B, S, k, d].
    """

    def body(hidden: jax.Array, layer: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        weights = _layer_weights(operands, layer)
        caches = operands.K_caches, operands.V_caches
        result = _layer(hidden, *caches, layer, weights, shared, dimensions, parameters, platform)
        return result.hidden, (result.key, result.value)

    layers = jnp.arange(parameters.num_layers, dtype=jnp.uint32)
    # Inside a shard_map, layers may vary over axes that X does not vary over.
    after_one = jax.jit(body).trace(operands.X, layers[0]).jaxpr.out_avals[0]
    X = vary_over(operands.X, varying_axes(after_one))
    hidden, (keys, values) = jax.lax.scan(body, X, layers)
    return hidden, keys, values


def _unrolled(
    operands: Operands,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> tuple[jax.Array, Any, Any]:
    """The layers one after the other.

    Returns:
      Hidden states, and each layer's new keys and values, [B, S, k, d].
    """
    hidden = operands.X
    in_stacks = is_stacked(operands.K_caches)
    keys, values = [], []
    for index in range(parameters.num_layers):
        if in_stacks:
            caches, layer = (operands.K_caches, operands.V_caches), jnp.uint32(index)
        else:
            caches, layer = (operands.K_caches[index], operands.V_caches[index]), None
        weights = _layer_weights(operands, index)
        result = _layer(hidden, *caches, layer, weights, shared, dimensions, parameters, platform)
        hidden = result.hidden
        keys.append(result.key)
        values.append(result.value)
    return hidden, keys, values
