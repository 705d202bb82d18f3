"""The gated MLP: down(activation(gate(x)) * up(x)), or what "swiglu_oai" makes of gate and up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.reference.linear import Multiply, linear, multiply


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MlpWeights:
    """One layer's MLP weights in the form that `multiply` takes.

    A scale is None where its weight is not quantized.

    Attributes:
      gate: [H, I].
      up: [H, I].
      down: [I, H].
      gate_scale: [128, I] or [1, I] f32, or None.
      up_scale: [128, I] or [1, I] f32, or None.
      down_scale: [128, H] or [1, H] f32, or None.
    """

    gate: Any
    up: Any
    down: Any
    gate_scale: jax.Array | None = None
    up_scale: jax.Array | None = None
    down_scale: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MlpBiases:
    """What is added to the products of an MLP: gate and up [1, I], down [1, H], each or None."""

    gate: jax.Array | None = None
    up: jax.Array | None = None
    down: jax.Array | None = None


NO_BIASES = MlpBiases()


def _relu2(x: jax.Array) -> jax.Array:
    return jax.lax.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu2": _relu2,
}
"""The functions of the gate that the option `activation` names."""


def gated(
    gate: jax.Array, up: jax.Array, activation: str, limit: float = 7.0, alpha: float = 1.702
) -> jax.Array:
    """The intermediate activation.

    Args:
      gate: f32, any shape.
      up: of the same shape.
      activation: a name in `ACTIVATIONS`, or "swiglu_oai":
        g * sigmoid(alpha * g) * (u + 1) with g = min(gate, limit), u = clip(up, -limit, limit).
      limit: the bound of "swiglu_oai".
      alpha: the factor of "swiglu_oai".
    """
    if activation == "swiglu_oai":
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)
    return ACTIVATIONS[activation](gate) * up


def mlp(
    x: jax.Array,
    weights: MlpWeights,
    clamp_bound: float = 0.0,
    multiply: Multiply = multiply,
    activation: str = "silu",
    activation_limit: float = 7.0,
    activation_alpha: float = 1.702,
    biases: MlpBiases = NO_BIASES,
) -> jax.Array:
    """This rank's part of the MLP's output.

    Args:
      x: [B, S, H], already normalized, in the compute dtype.
      weights: one layer's weights.
      clamp_bound: where positive, inputs of quantized products are clipped to +-clamp_bound.
      multiply: computes the products.
      activation: as `gated` takes it.
      activation_limit: the bound of "swiglu_oai".
      activation_alpha: the factor of "swiglu_oai".
      biases: added to the products.

    Returns:
      [B, S, H] f32, to be summed over the tensor-parallel ranks.
    """
    gate = linear(x, weights.gate, weights.gate_scale, clamp_bound, multiply, biases.gate)
    up = linear(x, weights.up, weights.up_scale, clamp_bound, multiply, biases.up)
    hidden = gated(gate, up, activation, activation_limit, activation_alpha).astype(x.dtype)
    return linear(hidden, weights.down, weights.down_scale, clamp_bound, multiply, biases.down)
