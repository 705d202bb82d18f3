"""What one call holds: its arrays and its static parameters, with fields from their tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg import limits
from jax_tkg.call.layer_kinds import LayerKinds, by_kind
from jax_tkg.call.operand_table import OPERANDS, Operand, names
from jax_tkg.call.options import OPTIONS, REQUIRED

PER_LAYER = names(per_layer=True)
PER_KIND = tuple(row.name for row in OPERANDS if row.per_kind)
PER_LAYER_CACHES = names("cache")
PER_LAYER_SCALES = names("scale")
PER_LAYER_WEIGHTS = names("weight", "router", "gain", "bias", "logit")

COMPUTE_DTYPES = tuple(jnp.dtype(name) for name in ("bfloat16", "float16", "float32"))
"""The dtypes X may have: compute and output dtype of the operation."""

FLOAT8_DTYPES = tuple(jnp.dtype(name) for name in ("float8_e4m3", "float8_e4m3fn", "float8_e5m2"))
"""The dtypes a quantized MLP weight may have."""

FLOAT8_CACHE_DTYPES = FLOAT8_DTYPES[:2]
"""The dtypes a quantized cache may have."""

MAX_NEW_TOKENS = limits.MAX_NEW_TOKENS
MAX_HEAD_SIZE = limits.MAX_HEAD_SIZE
PARTITIONS = limits.SIZE_MULTIPLE


def operand_fields(rows: Iterable[Operand], defaults: bool = False) -> list[Any]:
    """Fields for `dataclasses.make_dataclass`, one per operand.

    Args:
      rows: which operands.
      defaults: whether optional operands default to None; they must come last.
    """
    return [
        (row.name, Any, dataclasses.field(default=None))
        if defaults and row.optional
        else (row.name, Any)
        for row in rows
    ]


_OperandFields: Any = dataclasses.make_dataclass(
    "_OperandFields", operand_fields(OPERANDS), frozen=True
)


@jax.tree_util.register_dataclass
class Operands(_OperandFields):
    """The arrays of one call, a field per row of `operand_table.OPERANDS`; a pytree.

    A per-layer field is either a tuple of L arrays (scales: arrays or None) or one array with a
    leading layer axis of L or more. Caches always have their KV-head axis here; they may also be
    `KindStacks`. A per-kind field is an array, or a tuple with an array or None for each kind.
    """

    def layer(self, name: str, index: int) -> Any:
        """Array number `index` of the per-layer field `name`, or None where there is none."""
        field = getattr(self, name)
        return None if field is None else field[index]

    def layer_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one layer's array of a per-layer field; of abstract values too."""
        field = getattr(self, name)
        return tuple(field.shape[1:] if is_stacked(field) else field[0].shape)

    def layer_shapes(self, name: str) -> list[tuple[int, ...]]:
        """Shapes of the layers that have the per-layer operand; of a stack, of one layer."""
        field = getattr(self, name)
        if field is None or is_stacked(field):
            return [] if field is None else [tuple(field.shape[1:])]
        return [tuple(layer.shape) for layer in field if layer is not None]

    def of_kind(self, kind: int, kinds: LayerKinds) -> Operands:
        """The operands as the layers of a kind see them: one array in each per-kind field.

        Caches are those of the kind's layers, one after the other or stacked. Only one stack that
        holds the layers of all kinds stays as it is, as do weights.
        """
        own = {name: by_kind(getattr(self, name), kind) for name in PER_KIND}
        for name in PER_LAYER_CACHES:
            caches = getattr(self, name)
            if isinstance(caches, tuple):
                own[name] = tuple(caches[layer] for layer in kinds.layers(kind))
            else:
                own[name] = by_kind(caches, kind)
        return dataclasses.replace(self, **own)

    def given(self) -> tuple[str, ...]:
        """Names of the operands that are not None."""
        return tuple(row.name for row in OPERANDS if getattr(self, row.name) is not None)


_ParameterFields: Any = dataclasses.make_dataclass(
    "_ParameterFields",
    [
        (option.name, Any)
        if option.default is REQUIRED
        else (option.name, Any, dataclasses.field(default=option.default))
        for option in OPTIONS
    ],
    frozen=True,
)


class Parameters(_ParameterFields):
    """The static parameters of one call, a field per row of `options.OPTIONS`; hashable.

    Values are canonical: `axis_name` is a tuple of shard_map axes, `replica_groups` a tuple of
    tuples of ranks, or None for no all-reduce, `context_bucket` with `layer_kinds` a tuple with an
    entry for each kind, or None.
    """

    def bucket_of_kind(self, kind: int) -> int | None:
        """`context_bucket` of the layers of a kind."""
        return by_kind(self.context_bucket, kind)


def is_stacked(argument: Any) -> bool:
    """Whether a per-layer argument has a layer axis and is not a sequence of arrays."""
    return argument is not None and not isinstance(argument, Sequence)
