"""The stages of `jax_tkg.reference.transformer` for many new tokens."""

from __future__ import annotations

import dataclasses
import functools

from jax_tkg.cpu import expert_groups, formulation, products
from jax_tkg.cpu import transformer as cpu
from jax_tkg.prefill.attended_keys import AttendedKeys
from jax_tkg.prefill.attention import attention
from jax_tkg.reference.stages import PLAIN, Stages

EXPERT_TOKENS = 32
"""Tokens that an expert is run on at once. Its last block is padded, on average by half of them."""


def stages_for(platform: str | None, windows: tuple[int | None, ...]) -> Stages:
    """The stages that a platform runs.

    Args:
      platform: "cpu", "neuron", or None for any.
      windows: of each kind of layers, or None.
    """
    # AWS's compiler wants to know how often a loop turns.
    fixed = platform == "neuron"
    base, own_dtype = PLAIN, False
    if platform == "cpu":
        own_dtype = formulation.has_bfloat16_products()
        base = dataclasses.replace(cpu.STAGES, multiply=products.multiply_many)
    return dataclasses.replace(
        base,
        attended_keys=AttendedKeys(windows, fixed),
        attention=functools.partial(attention, own_dtype=own_dtype),
        run_experts=base.run_experts
        if fixed
        else functools.partial(expert_groups.run_in_groups, EXPERT_TOKENS),
    )
