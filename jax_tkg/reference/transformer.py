"""All layers of the forward pass of token generation, in plain jax.numpy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.arguments import PER_LAYER, Dimensions, Operands, Parameters, is_stacked
from jax_tkg.bits import Bits
from jax_tkg.reference import cache_update, prepare
from jax_tkg.reference.all_reduce import all_reduce
from jax_tkg.reference.attention import attention, attention_mask
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpWeights, mlp
from jax_tkg.reference.rms_norm import rms_norm
from jax_tkg.reference.rope import Rotation, apply_rope, rotation
from jax_tkg.reference.stored_weight import StoredWeight

Caches = tuple[jax.Array | Bits, ...] | jax.Array | Bits
"""One array per layer, or one array with a leading layer axis."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LayerWeights:
    """One layer's weights."""

    W_qkv: StoredWeight
    W_out: StoredWeight
    W_gamma_qkv: jax.Array
    W_gamma_mlp: jax.Array
    mlp: MlpWeights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What one layer hands to the next; the caches are its own [B, k, ...] or [L, B, k, ...]."""

    hidden: jax.Array
    K_caches: jax.Array | Bits
    V_caches: jax.Array | Bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Shared:
    """What every layer reads."""

    rotation: Rotation
    mask: jax.Array
    writes: cache_update.WritePlan | None


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
    slots, writes = None, None
    if operands.position_ids is not None:
        slots = cache_update.write_slots(operands.position_ids, dimensions.S, dimensions.S_max)
        writes = cache_update.plan_writes(slots, dimensions.S_max)
    shared = _Shared(
        rotation=rotation(operands.RoPE_cos, operands.RoPE_sin),
        mask=attention_mask(
            operands.mask_cache, operands.mask_active, dimensions.k, slots, dimensions.S_max
        ),
        writes=writes,
    )
    fields = [getattr(operands, name) for name in PER_LAYER]
    if all(is_stacked(field) for field in fields if field is not None):
        looped = _looped(operands, shared, dimensions, parameters, platform)
        if looped is not None:
            return looped
    return _unrolled(operands, shared, dimensions, parameters, platform)


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
    )


def _stored(operands: Operands, name: str, index: Any) -> StoredWeight:
    field = getattr(operands, name)
    if is_stacked(field):
        return StoredWeight(field, jnp.uint32(index))
    return StoredWeight(field[index])


@functools.partial(jax.jit, static_argnames=("dimensions", "parameters", "platform"))
def _layer(
    state: _State,
    layer: jax.Array | None,
    weights: _LayerWeights,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> _State:
    """One layer; `layer` says which entry of the state's caches is its own, if they have several.

    Jitted so that layers of equal shapes are traced and lowered once.
    """
    B, S, q, k, d = dimensions.B, dimensions.S, dimensions.q, dimensions.k, dimensions.d
    hidden = state.hidden
    normed = rms_norm(hidden, weights.W_gamma_qkv, parameters.eps)
    projected = linear(normed, weights.W_qkv, platform=platform)
    projected = projected.astype(hidden.dtype).reshape(B, S, q + 2 * k, d)
    rotated = apply_rope(projected[:, :, : q + k], shared.rotation)
    attended, K_caches, V_caches = attention(
        query=rotated[:, :, :q],
        key=rotated[:, :, q:],
        value=projected[:, :, q + k :],
        K_cache=state.K_caches,
        V_cache=state.V_caches,
        layer=layer,
        writes=shared.writes,
        mask=shared.mask,
        platform=platform,
    )
    attention_part = linear(attended.reshape(B, S, q * d), weights.W_out, platform=platform)
    hidden = _add(hidden, all_reduce(attention_part, parameters))
    normed = rms_norm(hidden, weights.W_gamma_mlp, parameters.eps)
    mlp_part = mlp(normed, weights.mlp, parameters.clamp_bound, platform)
    return _State(_add(hidden, all_reduce(mlp_part, parameters)), K_caches, V_caches)


def _add(residual: jax.Array, update: jax.Array) -> jax.Array:
    """The residual stream plus an f32 update, rounded once to the stream's dtype."""
    return (residual.astype(jnp.float32) + update).astype(residual.dtype)


def _looped(
    operands: Operands,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> tuple[jax.Array, Caches, Caches] | None:
    """The layers as a loop, or None where a layer changes the type of what it carries.

    That is so inside a shard_map whose weights vary over an axis that is not reduced over.
    """

    def body(index: jax.Array, state: _State) -> _State:
        layer = index.astype(jnp.uint32)
        weights = _layer_weights(operands, layer)
        return _layer(state, layer, weights, shared, dimensions, parameters, platform)

    state = _State(operands.X, operands.K_caches, operands.V_caches)
    carried = [jax.typeof(leaf) for leaf in jax.tree.leaves(state)]
    if list(jax.jit(body).trace(jnp.int32(0), state).jaxpr.out_avals) != carried:
        return None
    state = jax.lax.fori_loop(0, parameters.num_layers, body, state)
    return state.hidden, state.K_caches, state.V_caches


def _unrolled(
    operands: Operands,
    shared: _Shared,
    dimensions: Dimensions,
    parameters: Parameters,
    platform: str | None,
) -> tuple[jax.Array, Caches, Caches]:
    hidden = operands.X
    if is_stacked(operands.K_caches):
        state = _State(hidden, operands.K_caches, operands.V_caches)
        for index in range(parameters.num_layers):
            weights = _layer_weights(operands, index)
            state = _layer(
                state, jnp.uint32(index), weights, shared, dimensions, parameters, platform
            )
        return state.hidden, state.K_caches, state.V_caches
    K_caches, V_caches = [], []
    for index in range(parameters.num_layers):
        state = _State(hidden, operands.K_caches[index], operands.V_caches[index])
        weights = _layer_weights(operands, index)
        state = _layer(state, None, weights, shared, dimensions, parameters, platform)
        hidden = state.hidden
        K_caches.append(state.K_caches)
        V_caches.append(state.V_caches)
    return hidden, tuple(K_caches), tuple(V_caches)
