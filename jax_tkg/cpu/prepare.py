"""Operands in the form in which XLA:CPU moves them without converting them.

What `jax_tkg.bits` recommends to do once at load time is done here in every call where the caller
has not, and where leaving it out would cost more: a copy of the array then, but never one of the
up-cast array.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jax_tkg.bits import Bits, as_bits
from jax_tkg.call.arguments import FLOAT8_DTYPES, PER_LAYER_CACHES, Operands, is_stacked
from jax_tkg.call.operand_table import names
from jax_tkg.cpu.formulation import is_sliced_without_conversion


def with_bits(operands: Operands) -> Operands:
    """Operands with `Bits` in place of the arrays that XLA:CPU would convert to move them.

    Those are caches, layer-stacked weights, those of experts, and float8 weights. Lists of other
    bfloat16 weights are left alone: a copy of each costs more than multiplying it as it is.
    """
    caches = {name: _converted(getattr(operands, name)) for name in PER_LAYER_CACHES}
    matrices = names("weight", "router")
    weights = {name: _converted_weights(getattr(operands, name)) for name in matrices}
    return dataclasses.replace(operands, **caches, **weights)


def as_given(caches: Any, given: Any) -> Any:
    """Updated caches as arrays where they were given as arrays."""

    def restore(cache: Any, before: Any) -> Any:
        was_bits = isinstance(before, Bits)
        return cache.values() if isinstance(cache, Bits) and not was_bits else cache

    return jax.tree.map(restore, caches, given, is_leaf=_is_bits)


def _converted_weights(field: Any) -> Any:
    if field is None or is_stacked(field):
        return _converted(field)
    return tuple(
        _converted(weight)
        if weight is not None and (weight.dtype in FLOAT8_DTYPES or weight.ndim > 2)
        else weight
        for weight in field
    )


def _converted(field: Any) -> Any:
    """A field with bits in place of the arrays that do not move freely."""

    def convert(array: jax.Array | Bits) -> jax.Array | Bits:
        return array if is_sliced_without_conversion(array.dtype) else as_bits(array)

    return jax.tree.map(convert, field, is_leaf=_is_bits)


def _is_bits(node: Any) -> bool:
    return isinstance(node, Bits)
