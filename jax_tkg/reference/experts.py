"""The experts of a layer: MLPs, of which each token runs those that the router chooses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.reference.expert_ranks import first_expert, ranks_of
from jax_tkg.reference.mlp import NO_BIASES, MlpBiases, MlpWeights, mlp
from jax_tkg.reference.router import route
from jax_tkg.reference.stages import Stages


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertWeights:
    """One layer's router and experts; `experts` has a leading axis of the E_held experts.

    Attributes:
      experts: gate [E_held, H, I_expert], up, down [E_held, I_expert, H], and their scales
        [E_held, 1, ...], in the form that `Stages.expert_weight` takes.
      router: [H, E].
      bias_router: [1, E], or None.
      bias_selection: [1, E], or None.
      biases: of gate and up [E_held, I_expert] and of down [E_held, H], each or None.
      shared: the shared expert, or None.
    """

    experts: MlpWeights
    router: jax.Array
    bias_router: jax.Array | None
    bias_selection: jax.Array | None
    biases: MlpBiases
    shared: MlpWeights | None


def experts(
    x: jax.Array,
    weights: ExpertWeights,
    dimensions: Dimensions,
    parameters: Parameters,
    stages: Stages,
) -> jax.Array:
    """This rank's part of the weighted sum of the chosen experts' results.

    Experts of other ranks have weight 0.

    Args:
      x: [B, S, H], already normalized, in the compute dtype.
      weights: one layer's weights.
      dimensions: of the call.
      parameters: of the call.
      stages: which run experts, multiply, and take an expert's weights out of a layer's.

    Returns:
      [B, S, H] f32, to be summed over the tensor-parallel ranks.
    """
    B, S, H = x.shape
    held = dimensions.E_held
    rows = x.reshape(B * S, H)
    chosen, shares = route(
        rows,
        weights.router,
        weights.bias_router,
        weights.bias_selection,
        parameters,
        stages.multiply,
    )
    biases = weights.biases
    if held != dimensions.E:
        place = chosen - first_expert(parameters, held)
        is_held = (place >= 0) & (place < held)
        chosen, shares = jnp.where(is_held, place, 0), jnp.where(is_held, shares, 0)
    elif biases.down is not None:
        # All ranks have a part of each result and the whole bias, which counts once.
        once = biases.down.astype(jnp.float32) / ranks_of(parameters)
        biases = dataclasses.replace(biases, down=once)

    def run(tokens: jax.Array, number: jax.Array) -> jax.Array:
        """[n, H] f32: the result of an expert for tokens [n, H]."""
        own = _expert_of(weights.experts, number, stages)
        own_biases = jax.tree.map(
            lambda each: jax.lax.dynamic_slice_in_dim(each, number, 1), biases
        )
        return _mlp(tokens[None], own, parameters, stages, own_biases)[0]

    total = stages.run_experts(run, rows, chosen, shares, held, (weights.experts, biases))
    total = total.reshape(B, S, H)
    if weights.shared is not None:
        total = total + _mlp(x, weights.shared, parameters, stages)
    return total


def layer_mlp(
    x: jax.Array,
    weights: MlpWeights | ExpertWeights,
    dimensions: Dimensions,
    parameters: Parameters,
    stages: Stages,
) -> jax.Array:
    """This rank's part of a layer's dense MLP, as `mlp`, or of its experts, as `experts`."""
    if isinstance(weights, ExpertWeights):
        return experts(x, weights, dimensions, parameters, stages)
    return _mlp(x, weights, parameters, stages)


def _mlp(
    x: jax.Array,
    weights: MlpWeights,
    parameters: Parameters,
    stages: Stages,
    biases: MlpBiases = NO_BIASES,
) -> jax.Array:
    return mlp(
        x,
        weights,
        parameters.clamp_bound,
        stages.multiply,
        parameters.activation,
        parameters.activation_limit,
        parameters.activation_alpha,
        biases,
    )


def _expert_of(weights: MlpWeights, number: jax.Array, stages: Stages) -> MlpWeights:
    """The weights of one of the experts that the rank holds."""

    def scale(each: jax.Array | None) -> jax.Array | None:
        return None if each is None else jax.lax.dynamic_index_in_dim(each, number, keepdims=False)

    return MlpWeights(
        gate=stages.expert_weight(weights.gate, number),
        up=stages.expert_weight(weights.up, number),
        down=stages.expert_weight(weights.down, number),
        gate_scale=scale(weights.gate_scale),
        up_scale=scale(weights.up_scale),
        down_scale=scale(weights.down_scale),
    )
