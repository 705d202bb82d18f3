"""PartitionSpecs of every argument under tensor and data parallelism."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import PartitionSpec

Axis = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class TransformerTkgSpecs:
    """A PartitionSpec per argument of `transformer_tkg`; of one layer where it is per layer.

    A spec stands for a whole list too: `jax.shard_map` takes it as the prefix of the list's pytree.
    `hidden` is the spec of the first result; the updated caches have those of the caches.
    """

    X: PartitionSpec
    W_qkvs: PartitionSpec
    W_outs: PartitionSpec
    W_gates: PartitionSpec
    W_ups: PartitionSpec
    W_downs: PartitionSpec
    W_gamma_qkvs: PartitionSpec
    W_gamma_mlps: PartitionSpec
    K_caches: PartitionSpec
    V_caches: PartitionSpec
    RoPE_cos: PartitionSpec
    RoPE_sin: PartitionSpec
    mask_cache: PartitionSpec
    mask_active: PartitionSpec
    position_ids: PartitionSpec
    W_gate_scales: PartitionSpec
    W_up_scales: PartitionSpec
    W_down_scales: PartitionSpec
    hidden: PartitionSpec


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
    tp, dp = tensor_axis, data_axis

    def per_layer(*axes: Any) -> PartitionSpec:
        return PartitionSpec(None, *axes) if stacked else PartitionSpec(*axes)

    columns, rows = per_layer(None, tp), per_layer(tp, None)
    replicated, caches = per_layer(None, None), per_layer(dp, tp, None, None)
    tokens, rope = PartitionSpec(dp, None, None), PartitionSpec(None, dp, None)
    mask = PartitionSpec(None, dp, tp, None)
    return TransformerTkgSpecs(
        X=tokens,
        W_qkvs=columns,
        W_outs=rows,
        W_gates=columns,
        W_ups=columns,
        W_downs=rows,
        W_gamma_qkvs=replicated,
        W_gamma_mlps=replicated,
        K_caches=caches,
        V_caches=caches,
        RoPE_cos=rope,
        RoPE_sin=rope,
        mask_cache=mask,
        mask_active=mask,
        position_ids=PartitionSpec(dp, None),
        W_gate_scales=columns,
        W_up_scales=columns,
        W_down_scales=replicated,
        hidden=tokens,
    )
