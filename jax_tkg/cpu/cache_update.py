"""Writing the new keys and values of all layers in one loop over the tokens that are written.

Attention is defined on the caches as they were passed in, and XLA copies a buffer that is read and
then updated, unless the update depends on what was read. So the columns of all layers are written
by one loop at the end of a step, and how often that loop turns depends on the step's result.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits, as_bits
from jax_tkg.call.arguments import is_stacked
from jax_tkg.cpu.loops import repeat
from jax_tkg.reference.cache_update import Caches
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import opaque_zero


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WritePlan:
    """Where the columns of new tokens go: the same for every layer, so made once.

    Attributes:
      slots: [B, S] int32, from `jax_tkg.reference.cache_update.write_slots`.
      count: uint32 scalar, how many tokens are written.
      tokens: [B*S] uint32, of which the first `count` are the numbers b*S + s of those tokens, in
        rising order.
      starts: [B*S] uint32, the slots of `tokens`.
      rows: [B*S] uint32, the sequences of `tokens`; or their blocks, in which `starts` then are.
    """

    slots: jax.Array
    count: jax.Array
    tokens: jax.Array
    starts: jax.Array
    rows: jax.Array


def plan_writes(slots: jax.Array, capacity: int, block_len: int | None = None) -> WritePlan:
    """What every layer's update has in common.

    Args:
      slots: [B, S] int32, from `jax_tkg.reference.cache_update.write_slots`.
      capacity: S_max, or blocks * block_len.
      block_len: of caches in blocks; else None.
    """
    flat = slots.reshape(-1)
    written = flat < capacity
    tokens = jnp.argsort(~written, stable=True)
    starts, tokens = flat[tokens].astype(jnp.uint32), tokens.astype(jnp.uint32)
    rows = tokens // jnp.uint32(slots.shape[1])
    if block_len is not None:
        rows, starts = starts // jnp.uint32(block_len), starts % jnp.uint32(block_len)
    return WritePlan(
        slots=slots,
        count=jnp.sum(written, dtype=jnp.uint32),
        tokens=tokens,
        starts=starts,
        rows=rows,
    )


def write_caches(
    K_caches: Caches,
    V_caches: Caches,
    slots: jax.Array,
    keys: Any,
    values: Any,
    after: jax.Array,
    by_block: bool = False,
) -> tuple[Caches, Caches]:
    """As `jax_tkg.reference.cache_update.write_caches`."""
    blocks, *_, capacity = _each(K_caches)[0].shape[-4:]
    if by_block:
        plan = plan_writes(slots, blocks * capacity, capacity)
    else:
        plan = plan_writes(slots, capacity)
    K_held, V_held = _held(K_caches), _held(V_caches)
    axes = (-1,) * len(K_held) + (-2,) * len(V_held)
    columns = (*_columns(K_caches, keys), *_columns(V_caches, values))
    written = _write(axes, (*K_held, *V_held), plan, columns, after)
    return (
        _like(K_caches, written[: len(K_held)]),
        _like(V_caches, written[len(K_held) :]),
    )


def _each(caches: Any) -> tuple[Any, ...]:
    """The arrays or `Bits` of a list, or the one that is stacked."""
    return (caches,) if is_stacked(caches) else tuple(caches)


def _held(caches: Caches) -> tuple[jax.Array, ...]:
    """The arrays that hold the caches."""
    return tuple(cache.bits if isinstance(cache, Bits) else cache for cache in _each(caches))


def _like(caches: Caches, held: tuple[jax.Array, ...]) -> Caches:
    """The inverse of `_held`."""
    updated = tuple(
        Bits(array, cache.dtype) if isinstance(cache, Bits) else array
        for cache, array in zip(_each(caches), held, strict=True)
    )
    return updated[0] if is_stacked(caches) else updated


def _columns(caches: Caches, columns: Any) -> tuple[jax.Array, ...]:
    """What is written to each of `_held(caches)`."""
    if is_stacked(caches):
        columns = (columns if is_stacked(columns) else jnp.stack(columns),)
    return tuple(
        as_bits(new).bits if isinstance(cache, Bits) else new
        for cache, new in zip(_each(caches), columns, strict=True)
    )


def _write(
    slot_axes: tuple[int, ...],
    caches: tuple[jax.Array, ...],
    plan: WritePlan,
    columns: tuple[jax.Array, ...],
    after: jax.Array,
) -> tuple[jax.Array, ...]:
    """`write_caches` on elements of any dtype that XLA moves without converting them.

    Args:
      slot_axes: the axis of the slots in each cache: -1 or -2.
      caches: [..., B, k, d, S_max] or [..., B, k, S_max, d].
      plan: where two tokens of a sequence share a slot, the later one stays.
      columns: [..., B, S, k, d].
      after: as in `write_caches`.
    """

    def write(turn: jax.Array, updated: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        token = _entry(plan.tokens, turn, 0)
        sequence, slot = _entry(plan.rows, turn, 0), _entry(plan.starts, turn, 0)
        return tuple(
            _with_column(cache, _entry(_by_token(new), token, -3), sequence, slot, axis)
            for cache, new, axis in zip(updated, columns, slot_axes, strict=True)
        )

    # Inside a shard_map, what is written may vary over axes that a cache does not vary over.
    caches = tuple(vary_with(cache, plan, new) for cache, new in zip(caches, columns, strict=True))
    return repeat(plan.count + opaque_zero(after), write, caches)


def _by_token(columns: jax.Array) -> jax.Array:
    """[..., B, S, k, d] as [..., B*S, k, d]."""
    *layers, batch, tokens, k, d = columns.shape
    return columns.reshape(*layers, batch * tokens, k, d)


def _entry(numbers: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(numbers, index, axis, keepdims=False)


def _with_column(
    cache: jax.Array, column: jax.Array, sequence: jax.Array, slot: jax.Array, slot_axis: int
) -> jax.Array:
    """A cache with `column` [..., k, d] in one slot of one sequence."""
    start = [jnp.uint32(0)] * cache.ndim
    start[-4], start[slot_axis] = sequence, slot
    column = jnp.expand_dims(jnp.expand_dims(column, -3), slot_axis)
    return jax.lax.dynamic_update_slice(cache, column, start)
