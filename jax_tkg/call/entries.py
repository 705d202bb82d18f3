"""The arrays of an argument: those of its layers, of a kind of layers, or the argument itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax_tkg.call.arguments import PER_LAYER_CACHES, is_stacked
from jax_tkg.call.dimensions import in_blocks, of_experts
from jax_tkg.call.layer_kinds import LayerKinds
from jax_tkg.call.operand_table import BY_NAME, Operand


def holds_kind_stacks(value: Any) -> bool:
    """Whether caches are a sequence with a stack for each kind of layers: of five axes each."""
    if is_stacked(value) or not value:
        return False
    return len(getattr(value[0], "shape", ())) == len(BY_NAME[PER_LAYER_CACHES[0]].layout.axes) + 1


class _Layer:
    """Shape and dtype of one layer of a stacked argument."""

    def __init__(self, stacked: Any) -> None:
        self.shape = tuple(stacked.shape[1:])
        self.dtype = stacked.dtype


def entries(row: Operand, value: Any, kinds: LayerKinds, kind: int) -> list[tuple[str, Any]]:
    """Label and array of every given layer, or of the argument itself.

    Of caches, those of the layers of a kind; of an argument for each kind, the kind's. What does
    not belong to a kind is returned for all of them.
    """
    if value is None:
        return []
    if not row.per_layer:
        if row.per_kind and isinstance(value, Sequence):
            return [] if value[kind] is None else [(f"{row.name}[{kind}]", value[kind])]
        return [(row.name, value)]
    if is_stacked(value):
        return [(f"{row.name} (one layer)", _Layer(value))]
    if row.kind != "cache":
        layers: Sequence[int] = range(len(kinds.of_layers))
    elif holds_kind_stacks(value):
        return [(f"{row.name}[{kind}] (one layer)", _Layer(value[kind]))]
    else:
        layers = kinds.layers(kind)
    found = [(f"{row.name}[{index}]", value[index]) for index in layers]
    return [(label, entry) for label, entry in found if entry is not None]


def layer_of(name: str, value: Any, index: int) -> tuple[str, Any]:
    """Label and array of one layer, or None for an argument that is not given."""
    if value is None:
        return name, None
    if is_stacked(value):
        return f"{name} (one layer)", _Layer(value)
    return f"{name}[{index}]", value[index]


def is_in_blocks(arguments: Mapping[str, Any], kinds: LayerKinds, kind: int) -> bool:
    """Whether the caches of a kind are in blocks."""
    return bool(entries(BY_NAME["block_tables"], arguments["block_tables"], kinds, kind))


def row_of(
    row: Operand, arguments: Mapping[str, Any], kinds: LayerKinds, kind: int, value: Any
) -> Operand:
    """The row as it holds for an array of a kind."""
    if row.of_experts is not None and len(value.shape) == len(row.of_experts.axes):
        return of_experts(row)
    if row.in_blocks is not None and is_in_blocks(arguments, kinds, kind):
        return in_blocks(row)
    return row


def said_of_kind(kinds: LayerKinds, kind: int) -> str:
    """ " of kind 1" in a message, if there are several kinds; else nothing."""
    return f" of kind {kind}" if kinds.count > 1 else ""
