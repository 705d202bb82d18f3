"""All layers of the forward pass of token generation, in plain jax.numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call.arguments import PER_LAYER, Operands, Parameters, is_stacked
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.integers import as_int32
from jax_tkg.call.layer_kinds import KindStacks, LayerKinds
from jax_tkg.reference.cache_update import Caches, write_slots
from jax_tkg.reference.candidates import candidates, whole_vocabulary_ids
from jax_tkg.reference.context_ranks import ContextRanks, own_context
from jax_tkg.reference.layer import (
    LayerOperands,
    LayerResult,
    SharedOperands,
    transformer_layer,
)
from jax_tkg.reference.stages import PLAIN, Stages
from jax_tkg.reference.varying_axes import vary_over, varying_axes


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The layers of one kind.

    Attributes:
      operands: as these layers see them.
      shared: what they read.
      dimensions: their sizes.
      stages: what they are made of.
    """

    operands: Operands
    shared: SharedOperands
    dimensions: Dimensions
    stages: Stages

    @classmethod
    def of(cls, operands: Operands, parameters: Parameters, kind: int, stages: Stages) -> _Kind:
        """The kind of a number."""
        kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
        own = operands.of_kind(kind, kinds)
        ranks = ContextRanks.of(parameters)
        dimensions = ranks.dimensions(own, parameters.bucket_of_kind(kind))
        own = own_context(own, dimensions, ranks)
        shared = SharedOperands(
            rotation=stages.rotation(own.RoPE_cos, own.RoPE_sin),
            mask=stages.attended_keys(own, ranks.of_rank(dimensions), kind),
            block_tables=None if own.block_tables is None else as_int32(own.block_tables),
        )
        return cls(own, shared, dimensions, stages)

    def updated_caches(self, keys: Any, values: Any, after: jax.Array) -> tuple[Caches, Caches]:
        """The caches with new columns; `after` depends on everything that was read from them."""
        operands, D = self.operands, self.dimensions
        if operands.position_ids is None:
            return operands.K_caches, operands.V_caches
        caches = operands.K_caches, operands.V_caches
        if D.block_len:
            capacity = D.blocks * D.block_len
            slots = write_slots(operands.position_ids, D.S, capacity, D.block_len)
        else:
            slots = write_slots(operands.position_ids, D.S, D.S_max)
        by_block = D.block_len > 0
        return self.stages.write_caches(
            *caches, slots, keys, values, after=after, by_block=by_block
        )


def transformer(
    operands: Operands, parameters: Parameters, stages: Stages = PLAIN
) -> tuple[Any, ...]:
    """The forward pass on checked operands.

    Where every per-layer operand is stacked, the layers run in a loop over the pattern of their
    kinds, so that tracing and compiling do not grow with depth; otherwise they are unrolled.

    Args:
      operands: the arrays; see `jax_tkg.transformer_tkg` for shapes and dtypes.
      parameters: the static parameters.
      stages: what a layer is made of.

    Returns:
      Hidden states [B, S, H] in X's dtype, and the updated caches in the form they came in. With a
      head also logits and ids of candidates.
    """
    model = _Model.of(operands, parameters, stages)
    fields = [getattr(operands, name) for name in PER_LAYER]
    loops = all(is_stacked(field) for field in fields if field is not None)
    hidden, keys, values = model.looped() if loops else model.unrolled()
    results = (hidden, *model.updated_caches(keys, values, after=hidden))
    if operands.W_head is None:
        return results
    return *results, *_candidates(hidden, operands, parameters, stages)


def _candidates(
    hidden: jax.Array, operands: Operands, parameters: Parameters, stages: Stages
) -> tuple[jax.Array, jax.Array]:
    """[B, S, candidates_per_token] logits of this rank, and their ids in the whole vocabulary."""
    # In the form that the stages multiply with, as a list of one layer's.
    listed = dataclasses.replace(operands, W_head=(operands.W_head,))
    W_head = stages.layer_operand(listed, "W_head", 0)
    logits, columns = candidates(
        hidden, operands.W_gamma_final, W_head, parameters, multiply=stages.multiply
    )
    V = operands.W_head.shape[1]
    return logits, whole_vocabulary_ids(columns, V, parameters)


@dataclasses.dataclass(frozen=True)
class _Model:
    """All layers, by kind.

    Columns are new keys or values, by kind: of each layer [B, S, k, d], one after the other or
    stacked.
    """

    operands: Operands
    kinds: tuple[_Kind, ...]
    layer_kinds: LayerKinds
    parameters: Parameters
    stages: Stages

    @classmethod
    def of(cls, operands: Operands, parameters: Parameters, stages: Stages) -> _Model:
        layer_kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
        kinds = tuple(
            _Kind.of(operands, parameters, kind, stages) for kind in range(layer_kinds.count)
        )
        return cls(operands, kinds, layer_kinds, parameters, stages)

    def run_layer(self, hidden: jax.Array, kind: int, layer: Any, place: Any) -> LayerResult:
        """A layer, given its number and its place among the layers of its kind."""
        of_kind = self.kinds[kind]
        caches = self.operands.K_caches
        in_one_stack = is_stacked(caches) and not isinstance(caches, KindStacks)
        own = self._layer_operands(of_kind.operands, layer, layer if in_one_stack else place)
        return transformer_layer(
            hidden, own, of_kind.shared, of_kind.dimensions, self.parameters, self.stages
        )

    def _layer_operands(self, of_kind: Operands, layer: Any, cache: Any) -> LayerOperands:
        """A layer's operands; its caches are number `cache` of those of its kind."""

        def take(name: str) -> Any:
            return self.stages.layer_operand(self.operands, name, layer)

        return LayerOperands.of(
            self.stages.layer_operand(of_kind, "K_caches", cache),
            self.stages.layer_operand(of_kind, "V_caches", cache),
            take,
        )

    def unrolled(self) -> tuple[jax.Array, list[Any], list[Any]]:
        """The layers one after the other: hidden states, and the columns of keys and of values."""
        return self._unrolled_from(0, self.operands.X)

    def _unrolled_from(
        self, first: int, hidden: jax.Array
    ) -> tuple[jax.Array, list[Any], list[Any]]:
        keys: list[Any] = [[] for _ in self.kinds]
        values: list[Any] = [[] for _ in self.kinds]
        of_layers = self.layer_kinds.of_layers
        for layer in range(first, len(of_layers)):
            kind = of_layers[layer]
            result = self.run_layer(hidden, kind, layer, self.layer_kinds.place(layer))
            hidden = result.hidden
            keys[kind].append(result.key)
            values[kind].append(result.value)
        return hidden, keys, values

    def looped(self) -> tuple[jax.Array, list[Any], list[Any]]:
        """The same as a loop over the pattern of kinds; layers after its last whole turn follow."""
        layer_kinds = self.layer_kinds
        pattern = layer_kinds.pattern
        turns = len(layer_kinds.of_layers) // len(pattern)
        counts = [pattern.count(kind) for kind in range(layer_kinds.count)]

        def body(hidden: jax.Array, turn: jax.Array) -> tuple[jax.Array, Any]:
            keys: list[Any] = [[] for _ in counts]
            values: list[Any] = [[] for _ in counts]
            for index, kind in enumerate(pattern):
                layer = _number(turn, len(pattern), index)
                place = _number(turn, counts[kind], layer_kinds.place(index))
                result = self.run_layer(hidden, kind, layer, place)
                hidden = result.hidden
                keys[kind].append(result.key)
                values[kind].append(result.value)
            return hidden, (list(map(_joined, keys)), list(map(_joined, values)))

        numbers = jnp.arange(turns, dtype=jnp.uint32)
        # Inside a shard_map, layers may vary over axes that X does not vary over.
        after_one = jax.jit(body).trace(self.operands.X, numbers[0]).jaxpr.out_avals[0]
        X = vary_over(self.operands.X, varying_axes(after_one))
        hidden, columns = jax.lax.scan(body, X, numbers)
        hidden, *rest = self._unrolled_from(turns * len(pattern), hidden)
        keys, values = (
            [_with_rest(*each) for each in zip(turned, after, strict=True)]
            for turned, after in zip(columns, rest, strict=True)
        )
        return hidden, keys, values

    def updated_caches(self, keys: list[Any], values: list[Any], after: jax.Array) -> Any:
        """Key and value caches with the new columns; `after` depends on all that was read."""
        operands, layer_kinds = self.operands, self.layer_kinds
        given = operands.K_caches
        if is_stacked(given) and not isinstance(given, KindStacks):
            return self.kinds[0].updated_caches(
                _in_order_of_layers(keys, layer_kinds),
                _in_order_of_layers(values, layer_kinds),
                after,
            )
        by_kind = [
            kind.updated_caches(keys[number], values[number], after)
            for number, kind in enumerate(self.kinds)
        ]
        if isinstance(given, KindStacks):
            return tuple(KindStacks(stacks) for stacks in zip(*by_kind, strict=True))
        return tuple(
            tuple(
                caches[kind][layer_kinds.place(layer)]
                for layer, kind in enumerate(layer_kinds.of_layers)
            )
            for caches in zip(*by_kind, strict=True)
        )


def _number(turn: jax.Array, count: int, index: int) -> jax.Array:
    """The number of the layer `index` of a turn of `count` layers."""
    return turn if count == 1 else turn * jnp.uint32(count) + jnp.uint32(index)


def _joined(columns: list[jax.Array]) -> jax.Array:
    return columns[0] if len(columns) == 1 else jnp.stack(columns)


def _with_rest(turned: jax.Array, rest: list[jax.Array]) -> jax.Array:
    """[n, B, S, k, d]: the columns of all turns, [turns, ..., B, S, k, d], then the rest."""
    columns = turned.reshape(-1, *turned.shape[-4:])
    return jnp.concatenate([columns, jnp.stack(rest)]) if rest else columns


def _in_order_of_layers(columns: list[Any], layer_kinds: LayerKinds) -> jax.Array:
    """[L, B, S, k, d] of the columns of each kind."""
    if len(columns) == 1:
        return columns[0]
    together = jnp.concatenate([own if is_stacked(own) else jnp.stack(own) for own in columns])
    order = [layer for kind in range(layer_kinds.count) for layer in layer_kinds.layers(kind)]
    return together[np.argsort(order)]
