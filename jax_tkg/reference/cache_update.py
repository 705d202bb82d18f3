"""Writing new keys and values into their cache slots, in place.

Attention is defined on the caches as they were passed in, but XLA copies a buffer that is read
and then updated. So the few columns that an update replaces are taken out first (`displaced`);
attention then reads the updated cache without the replaced slots, plus the displaced columns.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits, as_bits
from jax_tkg.reference.loops import repeat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WritePlan:
    """Where the columns of new tokens go: the same for every layer, so made once.

    Attributes:
      slots: [B, S] int32, from `write_slots`.
      starts: [B*S] uint32, the slots token by token.
      sources: [B*S] uint32, what is written there: 0..B*S-1 is a new column, B*S and more a
        displaced one.
    """

    slots: jax.Array
    starts: jax.Array
    sources: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheUpdate:
    """Caches after an update, and what the update replaced.

    Attributes:
      K_cache: as given.
      V_cache: as given.
      displaced_key: [B, S, k, d], the keys that stood in the written slots. Meaningful where
        `first_writers` is True.
      displaced_value: [B, S, k, d].
    """

    K_cache: jax.Array | Bits
    V_cache: jax.Array | Bits
    displaced_key: jax.Array
    displaced_value: jax.Array


def write_slots(position_ids: jax.Array, new_tokens: int, capacity: int) -> jax.Array:
    """The slot each new token is written to.

    Args:
      position_ids: [B, 1], the first slot of each sequence, or [B, S], the slot of each token;
        any integer dtype. 2**32 - 1 (unsigned) or a negative value (signed) skips: the whole
        sequence in the first form, that token in the second.
      new_tokens: S.
      capacity: S_max.

    Returns:
      [B, S] int32; `capacity` stands for "not written" (skipped, or outside 0..S_max-1).
    """
    if position_ids.dtype.itemsize < 4:
        # The capacity may be too large for the ids' own dtype.
        position_ids = position_ids.astype(jnp.int32)
    inside = (position_ids >= 0) & (position_ids < capacity)
    first = jnp.where(inside, position_ids.astype(jnp.int32), jnp.int32(capacity))
    if position_ids.shape[1] == new_tokens:
        return first
    return jnp.minimum(first + jnp.arange(new_tokens, dtype=jnp.int32), capacity)


def first_writers(slots: jax.Array, capacity: int) -> jax.Array:
    """[B, S] bool: the token is written, and no earlier token is written to the same slot."""
    tokens = slots.shape[1]
    same = slots[:, :, None] == slots[:, None, :]
    earlier = jnp.tril(jnp.ones((tokens, tokens), jnp.bool_), -1)
    return (slots < capacity) & ~jnp.any(same & earlier, axis=-1)


def plan_writes(slots: jax.Array, capacity: int) -> WritePlan:
    """What every layer's update has in common.

    Args:
      slots: [B, S] int32, from `write_slots`.
      capacity: S_max.
    """
    batch, tokens = slots.shape
    first = jnp.arange(batch, dtype=jnp.int32)[:, None] * tokens
    source = _sources(slots, capacity)
    source = first + jnp.where(source < tokens, source, source + (batch - 1) * tokens)
    return WritePlan(
        slots, slots.reshape(-1).astype(jnp.uint32), source.reshape(-1).astype(jnp.uint32)
    )


def update_caches(
    K_cache: jax.Array | Bits,
    V_cache: jax.Array | Bits,
    layer: jax.Array | None,
    plan: WritePlan,
    key: jax.Array,
    value: jax.Array,
) -> CacheUpdate:
    """Writes one layer's new keys and values.

    Args:
      K_cache: [B, k, d, S_max], or [L, B, k, d, S_max] where `layer` is given.
      V_cache: [B, k, S_max, d], likewise.
      layer: uint32 scalar, which layer of the caches, or None. (One layer's own cache is not
        given an axis of size one: XLA may lay that out in another place among the axes, and
        copies the cache to get there although nothing moves.)
      plan: from `plan_writes`; where two tokens of a sequence share a slot, the later one stays.
      key: [B, S, k, d].
      value: [B, S, k, d].

    Returns:
      The updated caches, every other bit as it was, and the displaced columns.
    """
    (K, V), (old_key, old_value) = _exchange(
        (_stored(K_cache), _stored(V_cache)),
        layer,
        plan,
        (_stored_like(K_cache, key), _stored_like(V_cache, value)),
    )
    if isinstance(K_cache, Bits):
        K, old_key = Bits(K, K_cache.dtype), Bits(old_key, K_cache.dtype).values()
    if isinstance(V_cache, Bits):
        V, old_value = Bits(V, V_cache.dtype), Bits(old_value, V_cache.dtype).values()
    return CacheUpdate(K, V, old_key, old_value)


def _stored(array: jax.Array | Bits) -> jax.Array:
    return array.bits if isinstance(array, Bits) else array


def _stored_like(cache: jax.Array | Bits, columns: jax.Array) -> jax.Array:
    return _stored(as_bits(columns)) if isinstance(cache, Bits) else columns


Pair = tuple[Any, Any]
"""Something of the keys and the same of the values."""

_SLOT_AXES = (-1, -2)
"""The axis of the slots in K_cache and in V_cache."""


@jax.custom_jvp
def _exchange(
    caches: Pair, layer: jax.Array | None, plan: WritePlan, new: Pair
) -> tuple[Pair, Pair]:
    """The caches with `new` (each [B, S, k, d]) written, and the columns it replaced.

    In place, on numbers of any dtype that XLA moves without converting them. Two loops, the second
    of which writes what the first has read or what is new. Only so does XLA see that the old
    columns are read before the caches change: a read that can be fused into a later use makes it
    copy them. A loop of one turn would be unrolled and lose that, so a single column is read and
    written twice.
    """
    batch, tokens, k, d = new[0].shape
    count = batch * tokens
    ones = (1,) * (caches[0].ndim - 3)
    shapes = ((*ones, k, d, 1), (*ones, k, 1, d))
    columns = tuple(one.reshape(count, k, d) for one in new)

    def column(turn: jax.Array) -> jax.Array:
        return turn if count > 1 else jnp.uint32(0)

    def entry(numbers: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(numbers, index, keepdims=False)

    def place(index: jax.Array, slot_axis: int) -> tuple[jax.Array, ...]:
        zero = jnp.uint32(0)
        at = [jax.lax.div(index, jnp.uint32(tokens)), zero, zero, zero]
        at[slot_axis] = entry(plan.starts, index)
        return tuple(at if layer is None else [layer, *at])

    def read(turn: jax.Array, displaced: Pair) -> Pair:
        index = column(turn)
        K, V = (
            jax.lax.dynamic_update_index_in_dim(
                old,
                jax.lax.dynamic_slice(cache, place(index, axis), shape).reshape(k, d),
                index,
                0,
            )
            for old, cache, shape, axis in zip(displaced, caches, shapes, _SLOT_AXES, strict=True)
        )
        return K, V

    displaced = repeat(max(count, 2), read, columns)
    choices = [jnp.concatenate(pair) for pair in zip(columns, displaced, strict=True)]

    def write(turn: jax.Array, updated: Pair) -> Pair:
        index = column(turn)
        source = entry(plan.sources, index)
        K, V = (
            jax.lax.dynamic_update_slice(
                cache, entry(choice, source).reshape(shape), place(index, axis)
            )
            for cache, choice, shape, axis in zip(updated, choices, shapes, _SLOT_AXES, strict=True)
        )
        return K, V

    K_old, V_old = displaced
    return repeat(max(count, 2), write, caches), (
        K_old.reshape(new[0].shape),
        V_old.reshape(new[1].shape),
    )


@_exchange.defjvp
def _exchange_tangents(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """Tangents move as the values do; bits have none."""
    _, layer, plan, _ = primals
    cache_tangents, _, _, new_tangents = tangents
    moved = [
        _exchange_linear(cache, layer, plan.slots, new, axis)
        for cache, new, axis in zip(cache_tangents, new_tangents, _SLOT_AXES, strict=True)
    ]
    updated, displaced = zip(*moved, strict=True)
    return _exchange(*primals), (updated, displaced)


def _exchange_linear(
    cache: jax.Array, layer: jax.Array | None, slots: jax.Array, new: jax.Array, slot_axis: int
) -> tuple[jax.Array, jax.Array]:
    """The exchange as sums of products, which every JAX can transpose; not in place."""
    capacity = cache.shape[slot_axis]
    columns = jnp.moveaxis(cache if layer is None else cache[layer], slot_axis, 1)
    clamped = jnp.minimum(slots, capacity - 1)
    displaced = jnp.take_along_axis(columns, clamped[:, :, None, None], axis=1)
    later_in_same_slot = jnp.triu(slots[:, :, None] == slots[:, None, :], 1).any(axis=-1)
    writes = (slots[:, :, None] == jnp.arange(capacity)) & ~later_in_same_slot[:, :, None]
    written = jnp.einsum(
        "bsp,bskd->bpkd", writes.astype(new.dtype), new, precision=jax.lax.Precision.HIGHEST
    )
    columns = jnp.where(writes.any(axis=1)[:, :, None, None], written, columns)
    updated = jnp.moveaxis(columns, 1, slot_axis)
    return (updated if layer is None else cache.at[layer].set(updated)), displaced


def _sources(slots: jax.Array, capacity: int) -> jax.Array:
    """What each token writes, so that slots outside the cache change nothing.

    `dynamic_update_slice` clamps such a slot to the last one, which must keep its value: the new
    one if an earlier token wrote it, else the displaced one.

    Returns:
      [B, S] int32 positions in the new columns (0..S-1) followed by the displaced ones (S..2S-1).
    """
    tokens = slots.shape[1]
    token = jnp.arange(tokens, dtype=jnp.int32)
    wrote_last_slot = jnp.where(slots == capacity - 1, token, -1)
    latest = jax.lax.cummax(wrote_last_slot, axis=1)
    kept = jnp.where(latest >= 0, latest, tokens + token)
    return jnp.where(slots < capacity, token, kept)
