"""PartitionSpecs of every argument under tensor and data parallelism."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import PartitionSpec

from jax_tkg.call.operand_table import OPERANDS, Operand

Axis = str | tuple[str, ...] | None


_SpecFields: Any = dataclasses.make_dataclass(
    "_SpecFields",
    [*((row.name, PartitionSpec) for row in OPERANDS), ("hidden", PartitionSpec)],
    frozen=True,
)


class TransformerTkgSpecs(_SpecFields):
    """A PartitionSpec per array argument of `transformer_tkg`; of one layer if it is per layer.

    A spec stands for a whole list too: `jax.shard_map` takes it as the prefix of the list's pytree.
    `hidden` is the spec of the first result; the updated caches have those of the caches.
    """


def partition_specs(
    tensor_axis: Axis = "tp", data_axis: Axis = None, stacked: bool = False
) -> TransformerTkgSpecs:
    """PartitionSpecs that split heads and MLP columns over one axis and the batch over another.

    The arrays are the whole model's: W_qkv packed for the ranks by `jax_tkg.weights.pack_qkv`,
    masks over all query heads, caches over all KV heads (with their KV-head axis).

    Args:
      tensor_axis: mesh axis or axes over which heads and I are split; None for none.
      data_axis: mesh axis or axes over which B is split; None for none.
      stacked: whether per-layer arguments have a leading layer axis.

    Returns:
      A spec for every argument and for the hidden states.
    """

    def spec(row: Operand) -> PartitionSpec:
        axes: list[Any] = [None] * len(row.layout.axes)
        if row.batch_axis is not None:
            axes[row.batch_axis] = data_axis
        if row.tensor_axis is not None:
            axes[row.tensor_axis] = tensor_axis
        return PartitionSpec(None, *axes) if stacked and row.per_layer else PartitionSpec(*axes)

    specs = {row.name: spec(row) for row in OPERANDS}
    return TransformerTkgSpecs(**specs, hidden=specs["X"])
