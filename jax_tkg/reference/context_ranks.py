"""The context of a KV head, shared out over ranks: what each rank holds, and what they exchange.

Slot s of a sequence is slot s // c of rank s % c, for c ranks. So each rank has an even share of
every context, and a range of slots is a range on each rank.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.integers import as_int32, by_token
from jax_tkg.call.replica_groups import Groups, current_mesh
from jax_tkg.masks import active_mask
from jax_tkg.reference.cache_update import write_slots
from jax_tkg.reference.expert_ranks import place_in_group
from jax_tkg.reference.softmax import merged_softmax
from jax_tkg.reference.varying_axes import vary_over


@dataclasses.dataclass(frozen=True)
class ContextRanks:
    """The ranks that share out the context of their KV head.

    If the parameters name no ranks, as when one rank of many is profiled, all are like this one,
    which is the first.

    Attributes:
      parameters: of the call, whose `context_parallel` is `count`.
      count: c, how many they are; 1 for a rank that has the whole context.
    """

    parameters: Parameters
    count: int

    @classmethod
    def of(cls, parameters: Parameters) -> ContextRanks:
        """Those of a call."""
        return cls(parameters, parameters.context_parallel)

    def place(self) -> jax.Array:
        """int32 scalar: this rank's place among them."""
        if self.parameters.replica_groups is None:
            return jnp.int32(0)
        return place_in_group(self.parameters) % jnp.int32(self.count)

    def gather(self, array: jax.Array) -> jax.Array:
        """[c, ...]: the arrays of all of them, in their order."""
        if self.parameters.replica_groups is None:
            return jnp.stack([array] * self.count)
        axes, groups = self._groups()
        array = vary_over(array, frozenset(axes))
        return jax.lax.all_gather(array, axes, axis_index_groups=groups)

    def exchange(self, array: jax.Array, axis: int) -> jax.Array:
        """[c, ...], of arrays that have c entries along an axis, one for each rank.

        Returns:
          What all of them have for this rank, in their order, without that axis.
        """
        axes, groups = self._groups()
        by_rank = jnp.moveaxis(vary_over(array, frozenset(axes)), axis, 0)
        return jax.lax.all_to_all(by_rank, axes, 0, 0, axis_index_groups=groups, tiled=True)

    def _groups(self) -> tuple[tuple[str, ...], Groups | None]:
        """Axes of the mesh, and groups of numbers along them; None for all of the axes."""
        axes, groups = self.parameters.axis_name, self.parameters.replica_groups
        assert groups is not None
        if axes:
            # Each group in the order of the axes.
            groups = (tuple(range(len(groups[0]))),)
        else:
            axes = tuple(current_mesh().axis_names)
        parts = tuple(
            group[first : first + self.count]
            for group in groups
            for first in range(0, len(group), self.count)
        )
        whole = len(parts) == 1 and parts[0] == tuple(range(self.count))
        return axes, None if whole else parts

    def dimensions(self, operands: Operands, bucket: int | None) -> Dimensions:
        """The sizes of one kind of layers, with the S_ctx of all of the ranks together.

        Args:
          operands: as these layers see them.
          bucket: their `context_bucket`.
        """
        sizes = Dimensions.of(operands, bucket)
        if operands.mask_cache is None and bucket is None:
            return dataclasses.replace(sizes, S_ctx=self.count * sizes.S_max)
        return sizes

    def of_rank(self, sizes: Dimensions) -> Dimensions:
        """The sizes of attention on a rank: the query heads of all ranks, a part of the slots."""
        return dataclasses.replace(
            sizes, q=self.count * sizes.q, S_ctx=slots_of_rank(sizes.S_ctx, self.count)
        )


def slots_of_rank(slots: int, count: int) -> int:
    """How many slots of a sequence a rank has, at most."""
    return -(-slots // count)


def own_context(operands: Operands, sizes: Dimensions, ranks: ContextRanks) -> Operands:
    """A rank's own part of masks, lengths and slots.

    Args:
      operands: as the layers of one kind see them.
      sizes: of the kind, with the S_ctx of all ranks.
      ranks: that share it out.

    Returns:
      Operands whose masks, context lengths, starts and position ids are about the slots of this
      rank's caches, for the query heads of all of the ranks. The first rank alone attends the new
      keys.
    """
    if ranks.count == 1:
        return operands
    D, place = sizes, ranks.place()
    cache, active = operands.mask_cache, operands.mask_active
    if cache is not None and active is None:
        cache, active = cache[: D.S_ctx - D.S], cache[D.S_ctx - D.S :]
    if active is None:
        # Alike on all ranks, so nothing is gathered where there are lengths.
        active = active_mask(D.S, D.B, ranks.count * D.q)
    else:
        active = _of_all_heads(active, ranks)
    own: dict[str, Any] = {
        "mask_active": active & (place == 0),
        "mask_cache": None if cache is None else _own_rows(_of_all_heads(cache, ranks), ranks),
    }
    if cache is None:
        ends = jnp.maximum(by_token(as_int32(operands.context_lengths)), 0)
        own["context_lengths"] = _slots_below(ends, place, ranks.count)
        if operands.context_starts is not None:
            starts = jnp.maximum(by_token(as_int32(operands.context_starts)), 0)
            lengths, own_starts = jnp.broadcast_arrays(
                own["context_lengths"], _slots_below(starts, place, ranks.count)
            )
            # Where a range wraps and leaves out none of this rank's slots, all are attended.
            whole = (starts > ends) & (own_starts == lengths)
            own["context_lengths"] = jnp.where(whole, jnp.int32(D.S_max), lengths)
            own["context_starts"] = jnp.where(whole, jnp.int32(0), own_starts)
    if operands.position_ids is not None:
        block_len = D.block_len * ranks.count
        capacity = D.blocks * block_len if block_len else D.S_max * ranks.count
        slots = write_slots(operands.position_ids, D.S, capacity, block_len or None)
        is_own = (slots < capacity) & (slots % ranks.count == place)
        own["position_ids"] = jnp.where(is_own, slots // ranks.count, -1)
    return dataclasses.replace(operands, **own)


def _slots_below(slots: jax.Array, place: jax.Array, count: int) -> jax.Array:
    """How many slots below these a rank has."""
    return slots // count + (slots % count > place)


def _of_all_heads(mask: jax.Array, ranks: ContextRanks) -> jax.Array:
    """[n, B, q, S] of each rank as [n, B, c * q, S] bool."""
    n, batch, q, tokens = mask.shape
    if n == 0:
        return jnp.zeros((0, batch, ranks.count * q, tokens), jnp.bool_)
    gathered = ranks.gather(mask.astype(jnp.bool_))
    return gathered.transpose(1, 2, 0, 3, 4).reshape(n, batch, ranks.count * q, tokens)


def _own_rows(mask: jax.Array, ranks: ContextRanks) -> jax.Array:
    """The rows of this rank's slots, of [n, B, q, S]; there is no slot behind rows that are
    added."""
    rows = slots_of_rank(mask.shape[0], ranks.count)
    padding = [(0, rows * ranks.count - mask.shape[0]), (0, 0), (0, 0), (0, 0)]
    by_rank = jnp.pad(mask, padding).reshape(rows, ranks.count, *mask.shape[1:])
    return jax.lax.dynamic_index_in_dim(by_rank, ranks.place(), axis=1, keepdims=False)


def attention_over_ranks(
    attend: Any, ranks: ContextRanks, query: jax.Array, sinks: jax.Array | None, **arguments: Any
) -> jax.Array:
    """Attention whose keys are on several ranks, of this rank's query heads.

    Args:
      attend: the stage `attention`, which attends this rank's keys.
      ranks: that share out the context.
      query: [B, S, q, d], this rank's heads.
      sinks: [1, q] f32 of these, or None.
      **arguments: further ones of the stage.

    Returns:
      [B, S, q, d] in the compute dtype.
    """
    B, S, q, d = query.shape
    heads = ranks.gather(query).transpose(1, 2, 0, 3, 4).reshape(B, S, ranks.count * q, d)
    part = attend(query=heads, partial=True, **arguments)
    parts = ranks.exchange(part.reshape(B, S, ranks.count, q, 2 + d), axis=2)
    sink = None if sinks is None else sinks.astype(jnp.float32).reshape(1, 1, q, 1)
    return merged_softmax(parts, sink).astype(query.dtype)
