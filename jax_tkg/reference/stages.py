"""The stages of a forward pass that an implementation in jax.numpy may write its own way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jax_tkg.bits import without_bits
from jax_tkg.call.arguments import Operands
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.reference import attention, blocks, cache_update, expert_runs, linear, masks, rope


@dataclasses.dataclass(frozen=True)
class Stages:
    """Functions that `jax_tkg.reference.layer` and `.transformer` call; `PLAIN` defines them.

    Attributes:
      layer_operand: takes one layer's array out of a per-layer operand, given operands, name and
        layer (an int, or a uint32 scalar where the layers are a loop). What it returns for weights
        and caches is what `multiply` and `attention` take; all else is an array or None.
      expert_weight: takes an expert's matrix out of a weight of experts that `layer_operand`
        returned, given its number (int32 scalar), in the form that `multiply` takes.
      multiply: see `jax_tkg.reference.linear.multiply`.
      rotation: see `jax_tkg.reference.rope.rotation`.
      apply_rope: see `jax_tkg.reference.rope.apply_rope`; takes what `rotation` returns.
      attended_keys: see `jax_tkg.reference.masks.attended_keys`; what it returns is `attention`'s
        argument `mask`.
      attention: see `jax_tkg.reference.attention.attention`.
      gather_blocks: see `jax_tkg.reference.blocks.gather_blocks`; takes and returns caches as
        `layer_operand` returns them.
      run_experts: see `jax_tkg.reference.expert_runs.run_experts`.
      write_caches: see `jax_tkg.reference.cache_update.write_caches`; caches in the form in which
        they are passed to the operation.
    """

    layer_operand: Callable[[Operands, str, Any], Any]
    expert_weight: Callable[[Any, jax.Array], Any]
    multiply: linear.Multiply
    rotation: Callable[[jax.Array, jax.Array], rope.Rotation]
    apply_rope: Callable[[jax.Array, rope.Rotation], jax.Array]
    attended_keys: Callable[[Operands, Dimensions, int], Any]
    attention: Callable[..., jax.Array]
    gather_blocks: Callable[[Any, jax.Array, int], Any]
    run_experts: expert_runs.RunExperts
    write_caches: Callable[..., tuple[cache_update.Caches, cache_update.Caches]]


def layer_operand(operands: Operands, name: str, layer: Any) -> Any:
    """One layer's array, or None where there is none. `Bits` become arrays a layer at a time."""
    return without_bits(operands.layer(name, layer))


def expert_weight(weight: jax.Array, number: jax.Array) -> jax.Array:
    """Matrix `number` of a weight of experts, [E_held, n, m]."""
    return jax.lax.dynamic_index_in_dim(weight, number, keepdims=False)


PLAIN = Stages(
    layer_operand=layer_operand,
    expert_weight=expert_weight,
    multiply=linear.multiply,
    rotation=rope.rotation,
    apply_rope=rope.apply_rope,
    attended_keys=masks.attended_keys,
    attention=attention.attention,
    gather_blocks=blocks.gather_blocks,
    run_experts=expert_runs.run_experts,
    write_caches=cache_update.write_caches,
)
"""Plain jax.numpy, differentiable, for every platform."""
