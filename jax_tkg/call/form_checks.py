"""Checks of an argument's form: present, arrays, as many as there are layers or kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.bits import Bits, integers_of
from jax_tkg.call.arguments import PER_LAYER_CACHES, is_stacked
from jax_tkg.call.entries import holds_kind_stacks
from jax_tkg.call.layer_kinds import LayerKinds
from jax_tkg.call.operand_table import Operand

BITS_KINDS = ("weight", "router", "cache", "head")
"""Kinds of operands that may be given as `Bits`."""


def check_presence(row: Operand, value: Any, kinds: LayerKinds, named: bool) -> None:
    """Checks that an argument is there where it must be, in arrays, with enough layers.

    Args:
      row: of the argument.
      value: what is given.
      kinds: of the layers.
      named: whether `layer_kinds` is given.

    Raises:
      TypeError: it is missing or no array.
      ValueError: it has too few layers, or not a stack for each kind.
    """
    num_layers = len(kinds.of_layers)
    if value is None:
        if row.optional:
            return
        what = "an array or a sequence of arrays" if row.per_layer else "an array"
        raise TypeError(f"{row.name}: expected {what}, got None")
    if not row.per_layer:
        _check_is_array(row, row.name, value)
        return
    if row.kind == "cache" and holds_kind_stacks(value):
        if not named:
            raise ValueError(
                f"{row.name}: expected one stack, or an array for each layer (a stack for each "
                f"kind of layers needs layer_kinds), got a sequence with an array of shape "
                f"{list(value[0].shape)}"
            )
        _check_kind_stacks(row, value, kinds)
        return
    if is_stacked(value):
        if not hasattr(value, "shape"):
            raise TypeError(
                f"{row.name}: expected a sequence of arrays or one array with a leading layer "
                f"axis, got {type(value).__name__}"
            )
        _check_is_array(row, row.name, value)
        count = value.shape[0] if value.shape else 0
    else:
        count = len(value)
    if count < num_layers:
        raise ValueError(
            f"{row.name}: expected at least num_layers = {num_layers} layers, got {count}"
        )
    if isinstance(value, Sequence):
        for index, entry in enumerate(value[:num_layers]):
            if entry is not None or not row.optional:
                _check_is_array(row, f"{row.name}[{index}]", entry)


def check_kind_entries(
    row: Operand, value: Sequence[Any], layer_kinds: tuple[int, ...] | None
) -> None:
    """Checks an argument that is given for each kind of layers.

    Raises:
      TypeError: there are no kinds, or an entry is no array.
      ValueError: there is not one entry for each kind.
    """
    if layer_kinds is None:
        raise TypeError(
            f"{row.name}: expected an array (a tuple with an array for each kind of layers needs "
            f"layer_kinds), got {type(value).__name__}"
        )
    count = max(layer_kinds) + 1
    if len(value) != count:
        raise ValueError(
            f"{row.name}: expected one array, or a tuple with an entry for each of the {count} "
            f"kinds of layer_kinds, got {len(value)} entries"
        )
    for kind, entry in enumerate(value):
        if entry is not None or not row.optional:
            _check_is_array(row, f"{row.name}[{kind}]", entry)


def _check_kind_stacks(row: Operand, value: Sequence[Any], kinds: LayerKinds) -> None:
    if len(value) != kinds.count:
        raise ValueError(
            f"{row.name}: expected a stack for each of the {kinds.count} kinds of layer_kinds, got "
            f"{len(value)}"
        )
    for kind, stack in enumerate(value):
        label = f"{row.name}[{kind}]"
        _check_is_array(row, label, stack)
        count = len(kinds.layers(kind))
        wanted = len(row.layout.axes) + 1
        if len(stack.shape) != wanted:
            raise ValueError(
                f"{label}: expected {wanted} dimensions, a layer axis and {row.layout.text}, as "
                f"{row.name}[0] has, got {len(stack.shape)}: {list(stack.shape)}"
            )
        if stack.shape[0] < count:
            raise ValueError(
                f"{label}: expected at least the {count} layers of kind {kind} in layer_kinds, got "
                f"{stack.shape[0]}"
            )


def _check_is_array(row: Operand, label: str, value: Any) -> None:
    if isinstance(value, Bits):
        _check_bits(label, value)
        _check_is_static(label, value)
        if row.kind not in BITS_KINDS:
            raise TypeError(f"{label}: expected an array, got Bits, which hold weights and caches")
        return
    if value is None or not hasattr(value, "shape"):
        got = "None" if value is None else type(value).__name__
        raise TypeError(f"{label}: expected an array, got {got}")
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{label}: expected an array of JAX or NumPy, got {kind}")
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise TypeError(f"{label}: expected an array of numbers, got dtype {value.dtype}")
    if not value.dtype.isnative:
        raise TypeError(
            f"{label}: expected an array in the machine's byte order, got dtype {value.dtype.str!r}"
        )
    _check_is_static(label, value)


def _check_bits(label: str, value: Bits) -> None:
    wanted = integers_of(value.dtype)
    dtype = jnp.dtype(value.dtype).name
    if wanted is None:
        raise TypeError(f"{label}: expected Bits of a float dtype of 8 or 16 bits, got {dtype}")
    held = getattr(value.bits, "dtype", None)
    if held != wanted:
        got = type(value.bits).__name__ if held is None else held
        raise TypeError(
            f"{label}: expected Bits that hold {dtype} as an array of {wanted.name} "
            f"(jax_tkg.bits.as_bits makes them), got {got}"
        )


def _check_is_static(label: str, value: Any) -> None:
    if not all(isinstance(size, int) for size in value.shape):
        shape = ", ".join(map(str, value.shape))
        raise ValueError(
            f"{label}: expected a shape of integers (no symbolic dimensions), got [{shape}]"
        )


def check_cache_forms(arguments: Mapping[str, Any]) -> None:
    """Checks that keys and values come in one form, which what is given for each kind fits.

    Raises:
      ValueError: they do not.
    """
    first, *others = PER_LAYER_CACHES
    wanted = _cache_form(arguments[first])
    for name in others:
        got = _cache_form(arguments[name])
        if got != wanted:
            raise ValueError(f"{name}: expected the form of {first}, {wanted}, got {got}")
    for name in ("position_ids", "block_tables"):
        value = arguments[name]
        several = isinstance(value, Sequence) and any(entry is not None for entry in value)
        if several and is_stacked(arguments[first]):
            raise ValueError(
                f"{name}: expected one array for all kinds where {first} is one stack of all "
                "layers, got a sequence; give the caches as one stack for each kind"
            )


def _cache_form(value: Any) -> str:
    if is_stacked(value):
        return "one stacked array"
    return "a stack for each kind" if holds_kind_stacks(value) else "a sequence of arrays"
