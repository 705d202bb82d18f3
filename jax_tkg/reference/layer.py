"""One layer of the forward pass: attention and MLP, each with its norm and its residual."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.reference.all_reduce import all_reduce
from jax_tkg.reference.context_ranks import ContextRanks, attention_over_ranks
from jax_tkg.reference.experts import ExpertWeights, layer_mlp
from jax_tkg.reference.float8_caches import UNSCALED, CacheScales, stored
from jax_tkg.reference.linear import linear
from jax_tkg.reference.mlp import MlpBiases, MlpWeights
from jax_tkg.reference.rms_norm import head_norms, rms_norm
from jax_tkg.reference.rope import Rotation
from jax_tkg.reference.stages import Stages


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerOperands:
    """One layer's operands, as `Stages.layer_operand` takes them; some may be absent."""

    K_cache: Any
    V_cache: Any
    W_qkv: Any
    W_out: Any
    W_gamma_qkv: jax.Array
    W_gamma_mlp: jax.Array
    mlp: MlpWeights | ExpertWeights
    bias_qkv: jax.Array | None = None
    bias_out: jax.Array | None = None
    W_gamma_q: jax.Array | None = None
    W_gamma_k: jax.Array | None = None
    W_gamma_post_attention: jax.Array | None = None
    W_gamma_post_mlp: jax.Array | None = None
    sinks: jax.Array | None = None
    scales: CacheScales = UNSCALED

    @classmethod
    def of(cls, K_cache: Any, V_cache: Any, take: Callable[[str], Any]) -> LayerOperands:
        """The operands of one layer.

        Args:
          K_cache: the layer's cache of keys.
          V_cache: the layer's cache of values.
          take: returns the layer's array of the operand with a given name, or None.
        """
        return cls(
            K_cache=K_cache,
            V_cache=V_cache,
            W_qkv=take("W_qkvs"),
            W_out=take("W_outs"),
            W_gamma_qkv=take("W_gamma_qkvs"),
            W_gamma_mlp=take("W_gamma_mlps"),
            mlp=_mlp_weights(take),
            bias_qkv=take("bias_qkvs"),
            bias_out=take("bias_outs"),
            W_gamma_q=take("W_gamma_qs"),
            W_gamma_k=take("W_gamma_ks"),
            W_gamma_post_attention=take("W_gamma_post_attentions"),
            W_gamma_post_mlp=take("W_gamma_post_mlps"),
            sinks=take("sinks"),
            scales=CacheScales(take("k_scales"), take("v_scales")),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedOperands:
    """What all layers of a kind read."""

    rotation: Rotation
    mask: Any
    block_tables: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerResult:
    """What a layer makes.

    Attributes:
      hidden: [B, S, H], the residual stream after it.
      key: [B, S, k, d], for the cache, as it holds it.
      value: [B, S, k, d], likewise.
    """

    hidden: jax.Array
    key: jax.Array
    value: jax.Array


@functools.partial(jax.jit, static_argnames=("dimensions", "parameters", "stages"))
def transformer_layer(
    hidden: jax.Array,
    own: LayerOperands,
    shared: SharedOperands,
    dimensions: Dimensions,
    parameters: Parameters,
    stages: Stages,
) -> LayerResult:
    """One layer.

    Jitted so that layers of equal shapes are traced and lowered once.

    Args:
      hidden: [B, S, H], the residual stream.
      own: the layer's operands.
      shared: those of its kind.
      dimensions: of its kind.
      parameters: of the call.
      stages: what the layer is made of.
    """
    B, S, q, k, d = dimensions.B, dimensions.S, dimensions.q, dimensions.k, dimensions.d
    normed = rms_norm(hidden, own.W_gamma_qkv, parameters.eps)
    projected = linear(normed, own.W_qkv, multiply=stages.multiply, bias=own.bias_qkv)
    projected = projected.astype(hidden.dtype).reshape(B, S, q + 2 * k, d)
    heads = head_norms(projected[:, :, : q + k], own.W_gamma_q, own.W_gamma_k, q, parameters.eps)
    rotated = stages.apply_rope(heads, shared.rotation)
    key, value = rotated[:, :, q:], projected[:, :, q + k :]
    K_cache, V_cache = own.K_cache, own.V_cache
    if shared.block_tables is not None:
        K_cache = stages.gather_blocks(K_cache, shared.block_tables, -1)
        V_cache = stages.gather_blocks(V_cache, shared.block_tables, -2)
    attend, ranks = stages.attention, ContextRanks.of(parameters)
    if ranks.count > 1:
        attend = functools.partial(attention_over_ranks, attend, ranks)
    attended = attend(
        query=rotated[:, :, :q],
        key=key,
        value=value,
        K_cache=K_cache,
        V_cache=V_cache,
        mask=shared.mask,
        sinks=own.sinks,
        scale=parameters.softmax_scale,
        softcap=parameters.attention_softcap,
        scales=own.scales,
    )
    attended = attended.reshape(B, S, q * d)
    attention_part = linear(attended, own.W_out, multiply=stages.multiply)
    update = all_reduce(attention_part, parameters)
    if own.bias_out is not None:
        update = update + own.bias_out.astype(jnp.float32)[None]
    hidden = _add(hidden, update, own.W_gamma_post_attention, parameters.eps)
    normed = rms_norm(hidden, own.W_gamma_mlp, parameters.eps)
    mlp_part = layer_mlp(normed, own.mlp, dimensions, parameters, stages)
    update = all_reduce(mlp_part, parameters)
    hidden = _add(hidden, update, own.W_gamma_post_mlp, parameters.eps)
    return LayerResult(
        hidden,
        stored(key, own.scales.key, own.K_cache.dtype),
        stored(value, own.scales.value, own.V_cache.dtype),
    )


def _add(residual: jax.Array, update: jax.Array, gain: jax.Array | None, eps: float) -> jax.Array:
    """The residual stream plus an f32 update, rounded once to the stream's dtype.

    The update is normalized first if it has a gain.
    """
    if gain is not None:
        update = rms_norm(update, gain, eps)
    return (residual.astype(jnp.float32) + update).astype(residual.dtype)


def _mlp_weights(take: Callable[[str], Any]) -> MlpWeights | ExpertWeights:
    """A layer's MLP or its experts; `take` is that of `LayerOperands.of`."""
    weights = MlpWeights(
        gate=take("W_gates"),
        up=take("W_ups"),
        down=take("W_downs"),
        gate_scale=take("W_gate_scales"),
        up_scale=take("W_up_scales"),
        down_scale=take("W_down_scales"),
    )
    router = take("W_routers")
    if router is None:
        return weights
    shared = [take(f"W_shared_{name}s") for name in ("gate", "up", "down")]
    return ExpertWeights(
        experts=weights,
        router=router,
        bias_router=take("bias_routers"),
        bias_selection=take("bias_selections"),
        biases=MlpBiases(take("bias_gates"), take("bias_ups"), take("bias_downs")),
        shared=None if shared[0] is None else MlpWeights(*shared),
    )
