"""PartitionSpecs of every argument under tensor and data parallelism, and arrays placed by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jax_tkg.call.operand_table import BY_NAME, EXPERT_SPLITS, OPERANDS, Operand

Axis = str | tuple[str, ...] | None


_SpecFields: Any = dataclasses.make_dataclass(
    "_SpecFields",
    [
        *((row.name, Any) for row in OPERANDS),
        ("hidden", PartitionSpec),
        ("candidates", PartitionSpec),
    ],
    frozen=True,
)


class TransformerTkgSpecs(_SpecFields):
    """A PartitionSpec per array argument of `transformer_tkg`; of one layer if it is per layer.

    A spec stands for a whole list too: `jax.shard_map` takes it as the prefix of the list's pytree.
    Where only some layers have experts, the specs of what experts and dense layers both have are
    lists with an entry for each layer.
    `hidden` is the spec of the first result; the updated caches have those of the caches, and
    `candidates` is the spec of candidates' logits and ids, those of all ranks side by side.
    """


def partition_specs(
    tensor_axis: Axis = "tp",
    data_axis: Axis = None,
    stacked: bool = False,
    expert_split: str | None = None,
    expert_layers: Sequence[bool] | None = None,
) -> TransformerTkgSpecs:
    """PartitionSpecs that split heads and MLP columns over one axis and the batch over another.

    The arrays are the whole model's: W_qkv packed for the ranks by `jax_tkg.weights.pack_qkv`,
    masks over all query heads, caches over all KV heads (with their KV-head axis). Where ranks
    share a KV head, caches have a copy of it for each (`jax_tkg.weights.split_heads`).

    Args:
      tensor_axis: mesh axis or axes over which heads and I are split; None for none.
      data_axis: mesh axis or axes over which B is split; None for none.
      stacked: whether per-layer arguments have a leading layer axis.
      expert_split: how ranks split the experts of layers: "intermediate", I_expert, or "expert".
        None: layers have no experts.
      expert_layers: with `expert_split`, which layers have experts, of lists; None: all.

    Returns:
      A spec for every argument, for the hidden states and for candidates.

    Raises:
      ValueError: `expert_split` is none of these, or `expert_layers` are given without it or for
        stacked layers.
    """
    if expert_split not in (None, *EXPERT_SPLITS):
        known = ", ".join(map(repr, EXPERT_SPLITS))
        raise ValueError(f"expert_split: expected {known} or None, got {expert_split!r}")
    if expert_layers is not None and (stacked or expert_split is None):
        raise ValueError(
            "expert_layers: expected None for stacked layers and without expert_split, got "
            f"{expert_layers}"
        )

    def of_layer(row: Operand, has_experts: bool) -> PartitionSpec:
        of_experts = has_experts and (row.of_experts is not None or row.needs_experts)
        layout = (row.of_experts or row.layout) if of_experts else row.layout
        split = row.tensor_axis
        if of_experts:
            assert expert_split is not None
            split = row.tensor_axis_of_experts(expert_split)
        axes: list[Any] = [None] * len(layout.axes)
        if row.batch_axis is not None:
            axes[row.batch_axis] = data_axis
        if split is not None:
            axes[split] = tensor_axis
        return PartitionSpec(None, *axes) if stacked and row.per_layer else PartitionSpec(*axes)

    def spec(row: Operand) -> Any:
        if expert_layers is None or row.of_experts is None:
            return of_layer(row, expert_split is not None)
        return [of_layer(row, has_experts) for has_experts in expert_layers]

    specs = {row.name: spec(row) for row in OPERANDS}
    candidates = PartitionSpec(data_axis, None, tensor_axis)
    return TransformerTkgSpecs(**specs, hidden=specs["X"], candidates=candidates)


def place(
    arguments: Mapping[str, Any], mesh: jax.sharding.Mesh, specs: TransformerTkgSpecs
) -> dict[str, Any]:
    """Puts arguments of `transformer_tkg` on the devices of a mesh.

    Args:
      arguments: array arguments by name: whole arrays, `Bits`, or lists of them; None stays None.
      mesh: has the axes that the specs name.
      specs: from `partition_specs`, for the same form of arguments.

    Returns:
      The arguments, each with its sharding. What is sharded so already is not copied.

    Raises:
      ValueError: a name is none of an array argument.
    """

    def placed(name: str, arrays: Any) -> Any:
        if name not in BY_NAME:
            raise ValueError(
                f"arguments: expected array arguments of transformer_tkg, got {name!r}"
            )
        sharding = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            getattr(specs, name),
            is_leaf=lambda spec: isinstance(spec, PartitionSpec),
        )
        if arrays is None:
            return None
        if isinstance(sharding, list) and isinstance(arrays, tuple):
            # Layers may come in either container; `device_put` wants that of the arrays.
            sharding = tuple(sharding)
        return jax.device_put(arrays, sharding)

    return {name: placed(name, arrays) for name, arrays in arguments.items()}
