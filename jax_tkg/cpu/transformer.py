"""The layers of `jax_tkg.reference.transformer` with the stages of this room."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jax_tkg.call.arguments import Operands, Parameters, is_stacked
from jax_tkg.call.operand_table import BY_NAME
from jax_tkg.cpu import attention, blocks, cache_update, expert_groups, prepare, products, rope
from jax_tkg.cpu.stored_cache import StoredCache
from jax_tkg.cpu.stored_weight import StoredWeight
from jax_tkg.reference import masks
from jax_tkg.reference.stages import Stages
from jax_tkg.reference.transformer import transformer as transformer_of_stages

_STORED = {
    "weight": StoredWeight,
    "router": StoredWeight,
    "head": StoredWeight,
    "cache": StoredCache,
}
"""By an operand's kind, the form in which one layer's array is taken without copying it."""


def layer_operand(operands: Operands, name: str, layer: Any) -> Any:
    """One layer's weight or cache where it is stored; anything else as an array or None."""
    form = _STORED.get(BY_NAME[name].kind)
    if form is None:
        return operands.layer(name, layer)
    field = getattr(operands, name)
    if field is None or (not is_stacked(field) and field[layer] is None):
        return None
    return form(field, jnp.uint32(layer)) if is_stacked(field) else form(field[layer])


STAGES = Stages(
    layer_operand=layer_operand,
    expert_weight=StoredWeight.expert,
    multiply=products.multiply,
    rotation=rope.rotation,
    apply_rope=rope.apply_rope,
    attended_keys=masks.attended_keys,
    attention=attention.attention,
    gather_blocks=blocks.gather_blocks,
    run_experts=expert_groups.run_experts,
    write_caches=cache_update.write_caches,
)


def transformer(
    operands: Operands, parameters: Parameters, stages: Stages = STAGES
) -> tuple[Any, ...]:
    """As `jax_tkg.reference.transformer.transformer`, written for XLA:CPU; not differentiable."""
    prepared = prepare.with_bits(operands)
    hidden, K_caches, V_caches, *candidates = transformer_of_stages(prepared, parameters, stages)
    return (
        hidden,
        prepare.as_given(K_caches, operands.K_caches),
        prepare.as_given(V_caches, operands.V_caches),
        *candidates,
    )
