"""Allocation of key and value caches, and rings: short caches for sliding windows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.bits import Bits, as_bits, without_bits
from jax_tkg.call.integers import as_int32, check_count
from jax_tkg.call.layer_kinds import LayerKinds, check_layer_kinds
from jax_tkg.call.operand_table import BY_NAME, names
from jax_tkg.limits import MAX_NEW_TOKENS, SIZE_MULTIPLE
from jax_tkg.masks import ring_positions

SMALLEST_CONTEXT = 128
"""Smallest context bucket, in tokens."""


def allocate_caches(
    num_layers: int,
    *,
    B: int,
    k: int,
    d: int,
    S_max: int | Sequence[int],
    dtype: jax.typing.DTypeLike,
    stacked: bool = False,
    sharding: jax.sharding.Sharding | None = None,
    layer_kinds: Sequence[int] | None = None,
    context_parallel: int = 1,
) -> tuple[Any, Any]:
    """Zeroed caches in the layout of `transformer_tkg`, each array a buffer of its own.

    Args:
      num_layers: L.
      B: batch.
      k: KV heads, over all ranks where the caches are sharded.
      d: d_head.
      S_max: capacity in tokens; with `layer_kinds` a capacity for each kind.
      dtype: dtype of keys and values: X's; or float8_e4m3 or float8_e4m3fn, with scales
        (`jax_tkg.quantize.cache_scales`).
      stacked: one array with a leading layer axis in place of a list of arrays.
      sharding: sharding of each array, or None.
      layer_kinds: the kind of each layer, as in `transformer_tkg`, or None.
      context_parallel: ranks that share out the capacity, as in `transformer_tkg`. Below, S_max is
        the part of a rank then, ceil(capacity / context_parallel).

    Returns:
      K_caches (each [B, k, d, S_max]) and V_caches (each [B, k, S_max, d]): lists of L arrays; or
      if `stacked` two arrays with a leading axis of L, or with `layer_kinds` two tuples with an
      array for each kind and a leading axis for its layers.

    Raises:
      TypeError: a size is no integer, or `layer_kinds` no integers.
      ValueError: a size or `context_parallel` is not positive, there is not one capacity for each
        kind, or `layer_kinds` are none.
    """
    for name, size in (
        ("num_layers", num_layers),
        ("B", B),
        ("k", k),
        ("d", d),
        ("context_parallel", context_parallel),
    ):
        check_count(name, size)
    kinds = LayerKinds.of(check_layer_kinds("layer_kinds", layer_kinds), num_layers)
    if isinstance(S_max, Sequence | np.ndarray) and not isinstance(S_max, str):
        capacities = tuple(check_count(f"S_max[{kind}]", size) for kind, size in enumerate(S_max))
    else:
        capacities = (check_count("S_max", S_max),)
    if len(capacities) != kinds.count or len(kinds.of_layers) != num_layers:
        raise ValueError(
            f"S_max: expected a capacity for each of {kinds.count} kinds of {num_layers} layers, "
            f"got S_max = {S_max} and layer_kinds = {layer_kinds}"
        )

    def zeros(name: str, kind: int, *layers: int) -> jax.Array:
        slots = -(-capacities[kind] // context_parallel)
        sizes = {"B": B, "k": k, "d": d, "S_max": slots}
        shape = (*layers, *BY_NAME[name].layout.shape(sizes))
        return jnp.zeros(shape, dtype, device=sharding)

    def allocated(name: str) -> Any:
        if not stacked:
            return [zeros(name, kind) for kind in kinds.of_layers]
        stacks = tuple(zeros(name, kind, len(kinds.layers(kind))) for kind in range(kinds.count))
        return stacks[0] if layer_kinds is None else stacks

    K_caches, V_caches = map(allocated, names("cache"))
    return K_caches, V_caches


def allocate_blocks(
    num_layers: int,
    *,
    blocks: int,
    k: int,
    d: int,
    block_len: int,
    dtype: jax.typing.DTypeLike,
    stacked: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[Any, Any]:
    """Zeroed caches in blocks, for `block_tables` of `transformer_tkg`.

    Args:
      num_layers: L.
      blocks: blocks of all sequences together.
      k: KV heads, over all ranks where the caches are sharded.
      d: d_head.
      block_len: tokens of a block.
      dtype: dtype of keys and values: X's; or float8_e4m3 or float8_e4m3fn, with scales
        (`jax_tkg.quantize.cache_scales`).
      stacked: one array with a leading layer axis in place of a list of arrays.
      sharding: sharding of each array, or None.

    Returns:
      K_caches (each [blocks, k, d, block_len]) and V_caches (each [blocks, k, block_len, d]), as
      `allocate_caches` returns caches.

    Raises:
      TypeError: a size is no integer.
      ValueError: a size is not positive.
    """
    for name, size in (("blocks", blocks), ("block_len", block_len)):
        check_count(name, size)
    return allocate_caches(
        num_layers,
        B=blocks,
        k=k,
        d=d,
        S_max=block_len,
        dtype=dtype,
        stacked=stacked,
        sharding=sharding,
    )


def share_out(caches: Any, context_parallel: int, slot_axis: int) -> Any:
    """Caches of whole contexts as those of ranks that share them out.

    So what was prefilled on one rank can go on with `context_parallel` of `transformer_tkg`.

    Args:
      caches: [..., B, k, d, S_max] keys or [..., B, k, S_max, d] values: an array or `Bits`, or a
        list or tuple of them; also blocks.
      context_parallel: c, the ranks that share out the context of each KV head.
      slot_axis: the axis of S_max: -1 for keys, -2 for values.

    Returns:
      [..., B, k*c, d, ceil(S_max / c)] keys, or values likewise: of each KV head the caches of its
      ranks side by side, as a split of the KV-head axis over tensor-parallel ranks takes them. Slot
      s // c of rank s % c is slot s. Slots that no rank had before are zero.

    Raises:
      TypeError: `context_parallel` is no integer.
      ValueError: it is not positive, or `slot_axis` is neither -1 nor -2.
    """
    check_count("context_parallel", context_parallel)
    _check_slot_axis(slot_axis)
    if isinstance(caches, list | tuple):
        return type(caches)([share_out(each, context_parallel, slot_axis) for each in caches])
    if isinstance(caches, Bits):
        return Bits(share_out(caches.bits, context_parallel, slot_axis), caches.dtype)
    slots, axis = caches.shape[slot_axis], caches.ndim + slot_axis
    own = -(-slots // context_parallel)
    padding = [(0, 0)] * caches.ndim
    padding[axis] = (0, own * context_parallel - slots)
    shape = [*caches.shape[:axis], own, context_parallel, *caches.shape[axis + 1 :]]
    by_rank = jnp.moveaxis(jnp.pad(caches, padding).reshape(shape), axis + 1, caches.ndim - 2)
    merged = [*caches.shape[:-3], caches.shape[-3] * context_parallel, *by_rank.shape[-2:]]
    return by_rank.reshape(merged)


def _check_slot_axis(slot_axis: int) -> None:
    if slot_axis not in (-1, -2):
        raise ValueError(f"slot_axis: expected -1 (keys) or -2 (values), got {slot_axis}")


def block_slots(positions: jax.Array, block_tables: jax.Array, block_len: int) -> jax.Array:
    """The slot of each token in caches in blocks: `position_ids` of `transformer_tkg`.

    Args:
      positions: [B, S] signed integers, the position of each new token; negative: not written.
      block_tables: [B, n] signed integers, the blocks of each sequence; negative: none.
      block_len: tokens of a block.

    Returns:
      [B, S] int32: block * block_len + offset, or -1 where there is no block.
    """
    check_count("block_len", block_len)
    positions = as_int32(positions, "positions")
    tables = as_int32(block_tables, "block_tables")
    entry = positions // block_len
    inside = (positions >= 0) & (entry < tables.shape[1])
    block = jnp.take_along_axis(tables, jnp.clip(entry, 0, tables.shape[1] - 1), axis=1)
    return jnp.where(inside & (block >= 0), block * block_len + positions % block_len, -1)


def insert(K_caches: Any, V_caches: Any, row: Any, K_new: Any, V_new: Any) -> tuple[Any, Any]:
    """Puts one sequence's keys and values into a row of a batch's caches, whatever was there.

    Jit it with the caches donated, and nothing but the row is written; `row` may be traced, so that
    one program serves all rows.

    Args:
      K_caches: lists of [B, k, d, S_max] arrays or `Bits`, or one stack with a layer axis.
      V_caches: likewise, of [B, k, S_max, d].
      row: integer scalar, the sequence's place in the batch, 0..B-1, which is not checked where it
        is traced. In caches in blocks, a block.
      K_new: in the form of K_caches, [1, k, d, T] with T <= S_max, keys rotated. Arrays or `Bits`;
        another dtype is converted, but for those of float8 caches, which have scales.
      V_new: in the form of V_caches, [1, k, T, d].

    Returns:
      The caches. Slots from T on keep what they hold.

    Raises:
      ValueError: what is new has other sizes than the caches or more slots, or there is no such
        row.
      TypeError: either the caches or what is new is in float8, or both in different formats.
    """
    _check_row(row, jax.tree.leaves(K_caches)[0].shape[-4])
    return (
        _inserted(K_caches, row, K_new, "K_new", -1),
        _inserted(V_caches, row, V_new, "V_new", -2),
    )


def _check_row(row: Any, B: int) -> None:
    if isinstance(row, jax.core.Tracer):
        return
    try:
        is_row = 0 <= operator.index(row) < B
    except TypeError:
        is_row = False
    if not is_row:
        raise ValueError(f"row: expected an integer in 0..{B - 1}, got {row}")


def _inserted(caches: Any, row: Any, new: Any, name: str, slot_axis: int) -> Any:
    if isinstance(caches, list | tuple):
        given = len(new) if isinstance(new, list | tuple) else type(new).__name__
        if given != len(caches):
            raise ValueError(
                f"{name}: expected a sequence of {len(caches)}, as of caches, got {given}"
            )
        pairs = zip(caches, new, strict=True)
        return type(caches)([_inserted(cache, row, own, name, slot_axis) for cache, own in pairs])
    _check_columns(name, new, caches, 1, slot_axis)
    if new.shape[slot_axis] > caches.shape[slot_axis]:
        raise ValueError(
            f"{name}: expected at most the {caches.shape[slot_axis]} slots of a cache, "
            f"got {new.shape[slot_axis]}"
        )
    start = [jnp.int32(0)] * caches.ndim
    start[-4] = jnp.asarray(row, jnp.int32)

    def put(cache: jax.Array, values: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, values, start)

    return jax.tree.map(put, caches, _in_form_of(caches, new, name))


def _check_columns(name: str, columns: Any, caches: Any, batch: int, slot_axis: int) -> None:
    """Checks that keys or values have the shape of caches but for the batch and the slots."""
    if isinstance(columns, list | tuple):
        raise TypeError(
            f"{name}: expected an array, as the caches are, got {type(columns).__name__}"
        )
    wanted, got = list(caches.shape), list(columns.shape)
    wanted[-4] = batch
    if len(got) == len(wanted):
        wanted[slot_axis] = got[slot_axis]
    if got != wanted:
        shown = [str(size) for size in wanted]
        shown[slot_axis] = "T"
        raise ValueError(f"{name}: expected shape [{', '.join(shown)}], got {got}")


def _in_form_of(cache: Any, values: Any, name: str) -> Any:
    """Keys or values in a cache's dtype, and as `Bits` where it is `Bits`."""
    target, given = jnp.dtype(cache.dtype), jnp.dtype(values.dtype)
    if given != target:
        if 1 in (target.itemsize, given.itemsize):
            raise TypeError(
                f"{name}: expected dtype {target.name}, which the caches have (float8 has scales: "
                f"jax_tkg.quantize.quantize_caches), got {given.name}"
            )
        values = without_bits(values).astype(target)
    return as_bits(values) if isinstance(cache, Bits) else without_bits(values)


def compact(
    K_caches: Any,
    V_caches: Any,
    lengths: jax.Array,
    kept: jax.Array,
    block_tables: jax.Array | None = None,
    *,
    rings: bool | Sequence[bool] = False,
) -> tuple[Any, Any]:
    """Moves the accepted tokens of token trees together, so that they continue their sequences.

    Jit it with the caches donated, and nothing but these tokens is written.

    Args:
      K_caches: lists of [B, k, d, S_max] arrays or `Bits`, or stacks with a layer axis, or a tuple
        of stacks.
      V_caches: likewise, of [B, k, S_max, d].
      lengths: [B] integers, tokens of each sequence before the tree, whose token s is in the slot
        of position lengths[b] + s.
      kept: [B, n] integers: the accepted tokens of each tree in their order; negative: none.
      block_tables: [B, N] integers, where the caches are in blocks; else None.
      rings: whether the caches are rings, in which the slot of a position is its remainder; of a
        list or tuple, a bool for all or one for each.

    Returns:
      The caches, in which kept[b, i] is in the slot of position lengths[b] + i. Tokens that no slot
      holds, such as those beyond S_max, do not move.

    Raises:
      ValueError: `rings` has not one entry for each cache, or there are rings in blocks.
    """
    if block_tables is not None and np.any(rings):
        raise ValueError(f"rings: expected False with block_tables, got {rings}")
    kept = as_int32(kept, "kept")
    start = as_int32(lengths, "lengths")[:, None]
    number = jnp.arange(kept.shape[1], dtype=jnp.int32)[None]
    target = jnp.where(kept >= 0, start + number, -1)
    moves = (jnp.maximum(start + kept, 0), target, block_tables)
    return (
        _compacted(K_caches, *moves, rings, slot_axis=-1),
        _compacted(V_caches, *moves, rings, slot_axis=-2),
    )


def _compacted(
    caches: Any,
    source: jax.Array,
    target: jax.Array,
    block_tables: jax.Array | None,
    rings: bool | Sequence[bool],
    slot_axis: int,
) -> Any:
    if isinstance(caches, list | tuple):
        if isinstance(rings, bool | np.bool_):
            rings = [bool(rings)] * len(caches)
        each_ring = list(rings)
        if len(each_ring) != len(caches):
            raise ValueError(
                f"rings: expected a bool, or one for each of {len(caches)} caches, got {rings}"
            )
        moved = [
            _compacted(cache, source, target, block_tables, is_ring, slot_axis)
            for cache, is_ring in zip(caches, each_ring, strict=True)
        ]
        return type(caches)(moved)
    if not isinstance(rings, bool | np.bool_):
        raise ValueError(f"rings: expected a bool for caches in one stack, got {rings}")
    if isinstance(caches, Bits):
        bits = _compacted(caches.bits, source, target, block_tables, rings, slot_axis)
        return Bits(bits, caches.dtype)
    size = caches.shape[slot_axis]

    def rows_and_slots(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, n] each; a slot of -1 where there is none."""
        if block_tables is not None:
            ids = block_slots(positions, block_tables, size)
            return jnp.where(ids >= 0, ids // size, -1), jnp.where(ids >= 0, ids % size, -1)
        rows = jnp.arange(positions.shape[0], dtype=jnp.int32)[:, None]
        if rings:
            slots = ring_slots(positions, size)
        else:
            slots = jnp.where(positions < size, positions, -1)
        return jnp.broadcast_to(rows, positions.shape), slots

    def places(rows: jax.Array, slots: jax.Array) -> tuple[Any, ...]:
        # Negative indices would count from the end.
        slots = jnp.where(slots < 0, size, slots)
        of_slot = (slots, slice(None)) if slot_axis == -2 else (slice(None), slots)
        return (..., rows, slice(None), *of_slot)

    from_rows, from_slots = rows_and_slots(source)
    to_rows, to_slots = rows_and_slots(target)
    caches = jnp.asarray(caches)
    columns = caches[places(from_rows, from_slots)]
    to_slots = jnp.where(from_slots < 0, -1, to_slots)
    return caches.at[places(to_rows, to_slots)].set(columns, mode="drop")


def context_bucket(length: int, capacity: int) -> int:
    """S_ctx for caches that hold `length` tokens: a power of two, at least `SMALLEST_CONTEXT`.

    A sequence of n tokens thus costs at most 1 + log2(n / 128) compilations of each function.

    Args:
      length: tokens in the longest sequence's cache.
      capacity: S_max, which S_ctx never exceeds.
    """
    bucket = SMALLEST_CONTEXT
    while bucket < length:
        bucket *= 2
    return min(bucket, capacity)


def ring_capacity(window: int) -> int:
    """S_max of a ring for a window of `window` tokens: room for the new tokens, a multiple of 128.

    A ring needs `window` - 1 slots. The others keep tokens that are written and then given up, as
    after speculation, from taking the slots of tokens that are still attended.
    """
    return -(-(window + MAX_NEW_TOKENS) // SIZE_MULTIPLE) * SIZE_MULTIPLE


def ring_slots(positions: jax.Array, S_max: int) -> jax.Array:
    """The slot of each token in a ring: `position_ids` of `transformer_tkg`.

    Args:
      positions: [B, S] signed integers, the position of each new token; negative: not written.
      S_max: slots of the ring.

    Returns:
      [B, S] int32: position % S_max, or -1.
    """
    check_count("S_max", S_max)
    positions = as_int32(positions, "positions")
    return jnp.where(positions < 0, -1, positions % S_max)


def fill_ring(ring: Any, columns: Any, lengths: jax.Array, slot_axis: int) -> Any:
    """Puts the last tokens of a prompt into a ring, as writing all of them in turn would.

    Args:
      ring: [..., B, k, d, S_max] keys or [..., B, k, S_max, d] values; an array or `Bits`.
      columns: the prompt's keys [..., B, k, d, T] or values [..., B, k, T, d], of which sequence b
        has its positions 0..lengths[b]-1; keys are rotated. An array or `Bits`; another dtype is
        converted, but for those of float8 rings, which have scales.
      lengths: [B] integers, at most T.
      slot_axis: the axis of S_max: -1 for keys, -2 for values.

    Returns:
      The ring, in its own dtype. Slots without a token keep what they hold.

    Raises:
      TypeError: either the ring or the columns are in float8, or both in different formats.
      ValueError: the columns have other sizes than the ring, or `slot_axis` is neither -1 nor -2.
    """
    _check_slot_axis(slot_axis)
    _check_columns("columns", columns, ring, ring.shape[-4], slot_axis)
    positions = ring_positions(lengths, ring.shape[slot_axis])
    where = [1] * ring.ndim
    where[-4], where[slot_axis] = positions.shape
    positions = positions.reshape(where)
    index = jnp.clip(positions, 0, columns.shape[slot_axis] - 1)

    def filled(own: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(positions >= 0, jnp.take_along_axis(new, index, slot_axis), own)

    return jax.tree.map(filled, ring, _in_form_of(ring, columns, "columns"))
