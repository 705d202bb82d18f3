"""Containers and packing of per-layer weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from jax_tkg.call.arguments import is_stacked, operand_fields
from jax_tkg.call.operand_table import BY_NAME, WEIGHT_KINDS, names

_WeightFields: Any = dataclasses.make_dataclass(
    "_WeightFields",
    operand_fields((BY_NAME[name] for name in names(*WEIGHT_KINDS)), defaults=True),
    frozen=True,
)


@jax.tree_util.register_dataclass
class TransformerWeights(_WeightFields):
    """All weights of a call; a pytree whose fields are keyword arguments of `transformer_tkg`.

    Every field is a list with an entry per layer or one array with a leading layer axis. Optional
    fields, such as the scales, are None by default.
    """

    def arguments(self) -> dict[str, Any]:
        """The fields by name: `transformer_tkg(X, **weights.arguments(), ...)`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def map_matrices(self, convert: Callable[[Any], Any]) -> TransformerWeights:
        """The weights with `convert` applied to each matrix, of each layer or stacked."""

        def converted(field: Any) -> Any:
            if isinstance(field, list | tuple):
                return [converted(matrix) for matrix in field]
            return None if field is None else convert(field)

        matrices = {name: converted(getattr(self, name)) for name in names("weight", "router")}
        return dataclasses.replace(self, **matrices)


jax.export.register_pytree_node_serialization(
    TransformerWeights,
    serialized_name="jax_tkg.weights.TransformerWeights",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)


def stack_layers(weights: TransformerWeights) -> TransformerWeights:
    """Weights with one array per field in place of a list, layers along the first axis.

    Raises:
      ValueError: layers differ in shape or dtype, as when only some are quantized.
    """

    def stack(name: str, layers: Any) -> Any:
        if layers is None or hasattr(layers, "shape"):
            return layers
        kinds = {None if layer is None else (layer.shape, str(layer.dtype)) for layer in layers}
        if len(kinds) != 1 or kinds == {None}:
            if kinds == {None}:
                return None
            raise ValueError(
                f"{name}: expected layers of one shape and dtype to stack, got "
                f"{sorted(map(str, kinds))}"
            )
        return jnp.stack(list(layers))

    return TransformerWeights(**{name: stack(name, v) for name, v in weights.arguments().items()})


def unstack_layers(weights: TransformerWeights) -> TransformerWeights:
    """Weights with lists of arrays in place of arrays with a leading layer axis.

    Lists stay as they are; of NumPy arrays the layers are views.
    """

    def unstack(layers: Any) -> Any:
        if not is_stacked(layers):
            return layers
        return [layers[index] for index in range(layers.shape[0])]

    return TransformerWeights(**{name: unstack(v) for name, v in weights.arguments().items()})


@dataclasses.dataclass(frozen=True)
class HeadSplit:
    """How the heads of attention are split over tensor-parallel ranks; see `split_heads`.

    Attributes:
      ranks: how many there are.
      q: query heads of a rank.
      k: KV heads of a rank.
      copies: ranks that hold each KV head; 1 unless there are more ranks than KV heads.
    """

    ranks: int
    q: int
    k: int
    copies: int

    @property
    def kv_heads(self) -> int:
        """KV heads over all ranks, copies included: the KV-head axis of caches before the split."""
        return self.ranks * self.k


def split_heads(heads: int, kv_heads: int, ranks: int, name: str = "ranks") -> HeadSplit:
    """The heads of each rank: query heads in order, and the KV heads that these attend.

    With more ranks than KV heads, `ranks // kv_heads` neighboring ranks hold a copy of the same KV
    head, in W_qkv and in the caches. Each writes its own, so the copies stay equal.

    Args:
      heads: query heads of the model.
      kv_heads: KV heads of the model, a divisor of `heads`.
      ranks: tensor-parallel ranks: a divisor of `heads`, and a divisor or a multiple of `kv_heads`.
      name: what an error calls `ranks`.

    Raises:
      ValueError: the heads do not split evenly.
    """
    if ranks < 1:
        raise ValueError(f"{name}: expected at least 1, got {ranks}")
    if heads % ranks:
        raise ValueError(
            f"{name}: expected a divisor of the {heads} query heads, got {ranks} "
            f"({heads} % {ranks} = {heads % ranks})"
        )
    if kv_heads % ranks and ranks % kv_heads:
        raise ValueError(
            f"{name}: expected a divisor or a multiple of the {kv_heads} KV heads, got {ranks}"
        )
    copies = max(1, ranks // kv_heads)
    return HeadSplit(ranks, q=heads // ranks, k=kv_heads * copies // ranks, copies=copies)


def pack_qkv(
    W_query: jax.Array, W_key: jax.Array, W_value: jax.Array, d_head: int, ranks: int = 1
) -> jax.Array:
    """Packs one layer's query, key and value projections into W_qkv.

    Biases [1, heads*d] are packed into bias_qkv in the same way.

    Args:
      W_query: [H, heads*d], columns by query head, heads = ranks*q.
      W_key: [H, kv_heads*d], columns by KV head, kv_heads = ranks*k; or fewer, of which each is
        copied to several ranks (`split_heads`).
      W_value: [H, kv_heads*d].
      d_head: d.
      ranks: tensor-parallel ranks the columns will be sharded over.

    Returns:
      [H, ranks*(q + 2k)*d]: for each rank its query, key and value heads side by side, so that an
      even split of the columns gives each rank its own W_qkv. Query head h of the model stays with
      KV head h // (q // k).

    Raises:
      ValueError: columns do not divide into heads, or heads into ranks.
    """
    for name, weight in (("W_query", W_query), ("W_key", W_key), ("W_value", W_value)):
        if weight.ndim != 2 or not weight.shape[1] or weight.shape[1] % d_head:
            raise ValueError(
                f"{name}: expected [H, heads*d] with heads*d a multiple of d = {d_head}, "
                f"got {list(weight.shape)}"
            )
    if W_key.shape != W_value.shape:
        raise ValueError(
            f"W_value: expected the shape of W_key, {list(W_key.shape)}, got {list(W_value.shape)}"
        )
    hidden = W_query.shape[0]
    split = split_heads(W_query.shape[1] // d_head, W_key.shape[1] // d_head, ranks)

    def copied(weight: jax.Array) -> jax.Array:
        return jnp.repeat(weight.reshape(hidden, -1, d_head), split.copies, axis=1)

    parts = (W_query, copied(W_key), copied(W_value))
    by_rank = [weight.reshape(hidden, ranks, -1) for weight in parts]
    return jnp.concatenate(by_rank, axis=2).reshape(hidden, -1)
