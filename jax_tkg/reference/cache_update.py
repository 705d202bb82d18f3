"""Writing new keys and values into their cache slots, in place, when all layers have read them.

Attention is defined on the caches as they were passed in, and XLA copies a buffer that is read and
then updated, unless the update depends on what was read. So the columns of all layers are written
by one loop at the end of a step, and how often that loop turns depends on the step's result.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits, as_bits
from jax_tkg.call.arguments import is_stacked
from jax_tkg.reference.loops import repeat
from jax_tkg.reference.varying_axes import vary_with
from jax_tkg.reference.zeros import unseen_zero

Caches = tuple[jax.Array | Bits, ...] | jax.Array | Bits
"""One array per layer, or one array with a leading layer axis."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WritePlan:
    """Where the columns of new tokens go: the same for every layer, so made once.

    Attributes:
      slots: [B, S] int32, from `write_slots`.
      count: uint32 scalar, how many tokens are written.
      tokens: [B*S] uint32, of which the first `count` are the numbers b*S + s of those tokens, in
        rising order.
      starts: [B*S] uint32, the slots of `tokens`.
    """

    slots: jax.Array
    count: jax.Array
    tokens: jax.Array
    starts: jax.Array


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
    return jnp.minimum(first + jnp.arange(new_tokens, dtype=jnp.int32)[None], capacity)


def plan_writes(slots: jax.Array, capacity: int) -> WritePlan:
    """What every layer's update has in common.

    Args:
      slots: [B, S] int32, from `write_slots`.
      capacity: S_max.
    """
    flat = slots.reshape(-1)
    written = flat < capacity
    tokens = jnp.argsort(~written, stable=True)
    return WritePlan(
        slots=slots,
        count=jnp.sum(written, dtype=jnp.uint32),
        tokens=tokens.astype(jnp.uint32),
        starts=flat[tokens].astype(jnp.uint32),
    )


def write_caches(
    K_caches: Caches,
    V_caches: Caches,
    plan: WritePlan,
    keys: Any,
    values: Any,
    after: jax.Array,
) -> tuple[Caches, Caches]:
    """Writes the new keys and values of all layers.

    Args:
      K_caches: [B, k, d, S_max] each, or [L, B, k, d, S_max].
      V_caches: [B, k, S_max, d] each, or [L, B, k, S_max, d].
      plan: from `plan_writes`; where two tokens of a sequence share a slot, the later one stays.
      keys: [B, S, k, d] of each layer, one after the other or stacked. Stacked caches may have
        more layers; those keep their values.
      values: likewise.
      after: an array, not empty, that depends on everything that was read from the caches.

    Returns:
      The updated caches, every other bit as it was.
    """
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _write(
    slot_axes: tuple[int, ...],
    caches: tuple[jax.Array, ...],
    plan: WritePlan,
    columns: tuple[jax.Array, ...],
    after: jax.Array,
) -> tuple[jax.Array, ...]:
    """`write_caches` on numbers of any dtype that XLA moves without converting them.

    Args:
      slot_axes: the axis of the slots in each cache: -1 or -2.
      caches: [..., B, k, d, S_max] or [..., B, k, S_max, d].
      plan: as in `write_caches`.
      columns: [..., B, S, k, d].
      after: as in `write_caches`.
    """
    _, tokens = plan.slots.shape

    def write(turn: jax.Array, updated: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        token = _entry(plan.tokens, turn, 0)
        sequence, slot = token // jnp.uint32(tokens), _entry(plan.starts, turn, 0)
        return tuple(
            _with_column(cache, _entry(_by_token(new), token, -3), sequence, slot, axis)
            for cache, new, axis in zip(updated, columns, slot_axes, strict=True)
        )

    # Inside a shard_map, what is written may vary over axes that a cache does not vary over.
    caches = tuple(vary_with(cache, plan, new) for cache, new in zip(caches, columns, strict=True))
    return repeat(plan.count + unseen_zero(after), write, caches)


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


@_write.defjvp
def _write_tangents(
    slot_axes: tuple[int, ...], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Tangents move as the values do; bits have none."""
    _, plan, _, _ = primals
    cache_tangents, _, new_tangents, _ = tangents
    moved = tuple(
        _write_linear(cache, plan.slots, new, axis)
        if jnp.issubdtype(cache.dtype, jnp.floating)
        else cache
        for cache, new, axis in zip(cache_tangents, new_tangents, slot_axes, strict=True)
    )
    return _write(slot_axes, *primals), moved


def _write_linear(cache: jax.Array, slots: jax.Array, new: jax.Array, slot_axis: int) -> jax.Array:
    """What `_write` does to one cache as sums of products, which every JAX can transpose."""
    if new.ndim > 4:
        layers = new.shape[0]
        each = functools.partial(_write_linear, slots=slots, slot_axis=slot_axis)
        updated = jax.vmap(lambda cache, new: each(cache=cache, new=new))(cache[:layers], new)
        return jnp.concatenate([updated, cache[layers:]])
    columns = jnp.moveaxis(cache, slot_axis, 1)
    later_in_same_slot = jnp.triu(slots[:, :, None] == slots[:, None, :], 1).any(axis=-1)
    writes = (
        slots[:, :, None] == jnp.arange(cache.shape[slot_axis])[None, None]
    ) & ~later_in_same_slot[:, :, None]
    written = jnp.einsum(
        "bsp,bskd->bpkd", writes.astype(new.dtype), new, precision=jax.lax.Precision.HIGHEST
    )
    columns = jnp.where(writes.any(axis=1)[:, :, None, None], written, columns)
    return jnp.moveaxis(columns, 1, slot_axis)
