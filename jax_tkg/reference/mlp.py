"""The gated MLP: down(activation(gate(x)) * up(x))."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

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


def _relu2(x: jax.Array) -> jax.Array:
    return jax.lax.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu2": _relu2,
}
"""The functions that the option `activation` names."""


def mlp(
    x: jax.Array,
    weights: MlpWeights,
    clamp_bound: float = 0.0,
    multiply: Multiply = multiply,
    activation: str = "silu",
) -> jax.Array:
    """This rank's part of the MLP's output.

    Args:
      x: [B, S, H], already normalized, in the compute dtype.
      weights: one layer's weights.
      clamp_bound: where positive, inputs of quantized products are clipped to +-clamp_bound.
      multiply: computes the products.
      activation: of the gate, a name in `ACTIVATIONS`.

    Returns:
      [B, S, H] f32, to be summed over the tensor-parallel ranks.
    """
    gate = linear(x, weights.gate, weights.gate_scale, clamp_bound, multiply)
    up = linear(x, weights.up, weights.up_scale, clamp_bound, multiply)
    intermediate = (ACTIVATIONS[activation](gate) * up).astype(x.dtype)
    return linear(intermediate, weights.down, weights.down_scale, clamp_bound, multiply)
