"""What the kernel is given: the operands of the primitive, with masks and positions prepared.

This runs in the traced program, before the kernel, on arrays that are small beside the weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import (
    PER_KIND,
    PER_LAYER,
    PER_LAYER_CACHES,
    Operands,
    Parameters,
    is_stacked,
)
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.integers import as_int32, by_token
from jax_tkg.call.layer_kinds import KindStacks, LayerKinds
from jax_tkg.call.operand_table import OPERANDS
from jax_tkg.kernels.divisions import mask_groups
from jax_tkg.reference.cache_update import write_slots
from jax_tkg.reference.context_ranks import ContextRanks, own_context
from jax_tkg.reference.expert_ranks import first_expert

SKIPPED = 2**32 - 1
"""Offset of a token that is not written: past the end of every cache."""

LARGEST_OFFSET = 2**31 - 1
"""Largest offset that a register of the machine holds, signed."""

LARGEST_CONTEXT = 2**24
"""Largest S_ctx of a mask that the kernel makes: its comparisons are in float32."""

CONSUMED = (
    "mask_cache",
    "mask_active",
    "context_lengths",
    "context_starts",
    "block_tables",
    "position_ids",
)
"""Operands that the kernel gets in another form."""

_PREPARED_OF_KINDS = (
    "prior_mask",
    "active_mask",
    "context_ranges",
    "block_numbers",
    "window_offsets",
    "key_offsets",
    "value_offsets",
)

PREPARED = (*_PREPARED_OF_KINDS, "expert_order")
"""The kernel's tensors that are made of them, and of the rank's number."""

OF_KINDS = (*_PREPARED_OF_KINDS, *(name for name in PER_KIND if name not in CONSUMED))
"""The kernel's tensors that have an entry for each kind of layers, if there are several."""

Offsets = dict[str, jax.Array | None]


def prior_mask(operands: Operands, dimensions: Dimensions, ranks: int = 1) -> jax.Array | None:
    """[slots, B * q * S] uint8: 1 where a query attends a cache slot, in the kernel's order.

    Of each of the `mask_groups` of sequences [slots, n * q * S], one after the other, so that the
    kernel loads the mask of sequences that it attends together in long runs. The slots are S_ctx,
    or where the mask is unified the first S_ctx - S. None without slots, and where the kernel makes
    the mask (`context_ranges`). `ranks` is how many share out the context.
    """
    D = dimensions
    if operands.mask_cache is None:
        return None
    slots = D.S_ctx - (D.S if operands.mask_active is None else 0)
    if slots == 0:
        return None
    item = jnp.dtype(D.dtype).itemsize
    mask = _ones(operands.mask_cache[:slots])
    return grouped(mask, D.d, item, D.block_len, ranks)


def grouped(mask: jax.Array, d: int, item: int, block_len: int = 0, ranks: int = 1) -> jax.Array:
    """[slots, B * q * S]: a mask [slots, B, q, S] in the order of the `mask_groups`."""
    slots, B, q, S = mask.shape
    groups = mask_groups(B, q * S, slots, d, item, block_len, ranks)
    if len(groups) > 1 and len({size for _, size in groups}) == 1:
        mask = mask.reshape(slots, len(groups), -1).swapaxes(0, 1)
    elif len(groups) > 1:
        parts = [mask[:, first : first + n].reshape(-1) for first, n in groups]
        mask = jnp.concatenate(parts)
    return mask.reshape(slots, B * q * S)


def active_mask(operands: Operands, dimensions: Dimensions) -> jax.Array | None:
    """[B * S (key), B * q * S] uint8: likewise for the new keys of all sequences.

    None where the kernel makes it: a causal one, beside `context_ranges`.
    """
    D = dimensions
    mask = operands.mask_active
    if mask is None and operands.mask_cache is None:
        return None
    if mask is None:
        mask = operands.mask_cache[D.S_ctx - D.S :]
    own = jnp.eye(D.B, dtype=jnp.bool_)[:, None, :, None, None]
    attended = own & mask.astype(jnp.bool_)[None]
    return _ones(attended).reshape(D.B * D.S, D.B * D.q * D.S)


def _ones(attended: jax.Array) -> jax.Array:
    return attended.astype(jnp.bool_).astype(jnp.uint8)


def context_ranges(operands: Operands) -> jax.Array | None:
    """[1 or 3, B or B * S] float32, from which the kernel makes its mask of the cache slots.

    Row 0 is the end of each range of slots, the length. With `context_starts`, row 1 is its first
    slot, and row 2 is 1 if all slots but the range are attended: a start above the length, which
    wraps, leaves out the slots from the length to the start. Numbers end at `LARGEST_CONTEXT`, up
    to which float32 has every integer. None if there is a mask.
    """
    if operands.mask_cache is not None:
        return None
    end = jnp.clip(by_token(as_int32(operands.context_lengths)), 0, LARGEST_CONTEXT)
    rows = [end]
    if operands.context_starts is not None:
        start = jnp.clip(by_token(as_int32(operands.context_starts)), 0, LARGEST_CONTEXT)
        rows = [jnp.maximum(start, end), jnp.minimum(start, end), (start > end).astype(jnp.int32)]
    # One may have a number for each token where the other has one for each sequence.
    ranges = jnp.stack(jnp.broadcast_arrays(*rows))
    return ranges.reshape(len(rows), -1).astype(jnp.float32)


def block_numbers(operands: Operands, dimensions: Dimensions, looped: bool) -> jax.Array | None:
    """[1 or L, B * n] uint32: the block of each entry of the tables, or `SKIPPED`.

    Relative to the layer's caches or, if `looped`, to the first layer's. None for flat caches.
    """
    D = dimensions
    if operands.block_tables is None:
        return None
    tables = as_int32(operands.block_tables)[None]
    layers = jnp.arange(D.L if looped else 1, dtype=jnp.uint32)[:, None, None]
    numbers = layers * D.blocks + tables.astype(jnp.uint32)
    return _offsets(numbers, (tables[0] >= 0) & (tables[0] < D.blocks))


def layers_loop(operands: Operands) -> bool:
    """Whether the kernel's layers can loop on the device: every per-layer operand is stacked.

    Also, an element in the key caches of all layers must have a signed 32-bit offset: a view in the
    kernel has one dynamic offset, which then finds both the layer and the slot.
    """
    given = [getattr(operands, name) for name in PER_LAYER]
    if not all(value is None or is_stacked(value) for value in given):
        return False
    stacks = jax.tree.leaves(operands.K_caches)
    return all(math.prod(stack.shape) <= LARGEST_OFFSET for stack in stacks)


def write_offsets(operands: Operands, dimensions: Dimensions, looped: bool) -> Offsets:
    """Where new keys and values are written: of one layer or, in a loop, of each.

    Offsets are relative to the layer's cache or, if `looped`, to the first layer's. A token that is
    not written has the offset `SKIPPED`.

    Returns:
      window_offsets: [1 or L, B] uint32: if position_ids gives the first slot of each sequence, the
        offset in K_caches of the first element of its S new keys, which are neighbors; skipped if
        some of them are past the end. Else None.
      key_offsets: [1 or L, B * S] uint32: the offset of the first element of each key that no
        window writes. None if windows write all keys.
      value_offsets: [1 or L, B * S] uint32: each value's first row in V_caches, as rows of d.
      All None where there is no update.
    """
    names = ("window_offsets", "key_offsets", "value_offsets")
    if operands.position_ids is None:
        return dict.fromkeys(names)
    D = dimensions
    if D.block_len:
        capacity, row_slots = D.blocks * D.block_len, D.block_len
        slots = write_slots(operands.position_ids, D.S, capacity, D.block_len)
        # Of all tokens, because sequences write to the same blocks.
        replaced = _replaced(slots.reshape(1, -1)).reshape(slots.shape)
        rows, places = slots // D.block_len, slots % D.block_len
    else:
        capacity = row_slots = D.S_max
        slots = write_slots(operands.position_ids, D.S, capacity)
        replaced = _replaced(slots)
        rows, places = jnp.arange(D.B, dtype=jnp.int32)[:, None], slots
    written = (slots < capacity) & ~replaced
    # One dimension for the layers, and as many as the cache has for the sequences, or blocks.
    layers = jnp.arange(D.L if looped else 1, dtype=jnp.uint32)[:, None, None]
    heads = (layers * (D.blocks or D.B) + rows.astype(jnp.uint32)[None]) * D.k
    first = places.astype(jnp.uint32)[None]
    keys = heads * (D.d * row_slots) + first
    values = heads * row_slots + first
    in_windows = jnp.zeros((D.B, 1), jnp.bool_)
    windows = None
    if operands.position_ids.shape[1] == 1:
        in_windows = written.all(axis=1, keepdims=True)
        windows = _offsets(keys[:, :, :1], in_windows)
    only_windows = windows is not None and D.S == 1
    found = (
        windows,
        None if only_windows else _offsets(keys, written & ~in_windows),
        _offsets(values, written),
    )
    return dict(zip(names, found, strict=True))


def _replaced(slots: jax.Array) -> jax.Array:
    """[B, S]: a later token of the sequence has the same slot. The kernel's writes have no order,
    so of these only the last is written."""
    shared = slots[:, :, None] == slots[:, None, :]
    return jnp.triu(shared, 1).any(axis=-1)


def _offsets(offsets: jax.Array, written: jax.Array) -> jax.Array:
    """[layers, B * n], of offsets [layers, B, n]; `SKIPPED` where not `written` [B, n]."""
    kept = jnp.where(written[None], offsets, jnp.uint32(SKIPPED))
    return kept.reshape(offsets.shape[0], -1)


def expert_order(operands: Operands, parameters: Parameters | None) -> jax.Array | None:
    """[1, E] float32: of the experts that this rank holds E_held, E_held - 1, ... 1; of others 0.

    None without experts.

    Args:
      operands: of the primitive.
      parameters: which say what number the rank has; None: it holds the first experts.
    """
    routers = operands.layer_shapes("W_routers")
    if not routers:
        return None
    E = routers[0][1]
    held = next(shape[0] for shape in operands.layer_shapes("W_gates") if len(shape) == 3)
    first = jnp.int32(0)
    if parameters is not None and held < E:
        first = first_expert(parameters, held)
    places = jnp.arange(E, dtype=jnp.int32) - first
    is_held = (places >= 0) & (places < held)
    return jnp.where(is_held, held - places, 0).astype(jnp.float32)[None]


def kernel_operands(
    operands: Operands,
    looped: bool = False,
    layer_kinds: tuple[int, ...] | None = None,
    parameters: Parameters | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Any]:
    """The kernel's tensors by its parameters' names; per-layer ones as `Operands` holds them.

    Caches that are a stack for each kind are a tuple of stacks.

    Args:
      operands: of the primitive.
      looped: whether the layers loop on the device, which `layers_loop` allows.
      layer_kinds: the kinds of the layers, if there are several; `OF_KINDS` are tuples then.
      parameters: of the call, in its traced program: see `expert_order`, and `ContextRanks` if the
        context of a KV head is shared out. None: it is not.
      names: of the kernel's tensor parameters; None: all operands, and what is prepared.
    """
    tensors = {
        row.name: getattr(operands, row.name) for row in OPERANDS if row.name not in CONSUMED
    }
    tensors["expert_order"] = expert_order(operands, parameters)
    ranks = None if parameters is None else ContextRanks.of(parameters)
    if layer_kinds is None:
        tensors.update(_of_one_kind(operands, looped, ranks))
    else:
        kinds = LayerKinds(layer_kinds)
        each = [_of_one_kind(operands.of_kind(n, kinds), looped, ranks) for n in range(kinds.count)]
        tensors.update({name: tuple(own[name] for own in each) for name in OF_KINDS})
        for name in PER_LAYER_CACHES:
            if isinstance(tensors[name], KindStacks):
                tensors[name] = tensors[name].stacks
    return tensors if names is None else {name: tensors[name] for name in names}


def _of_one_kind(operands: Operands, looped: bool, ranks: ContextRanks | None) -> dict[str, Any]:
    """`OF_KINDS` of operands whose layers are all of one kind."""
    dimensions = Dimensions.of(operands)
    if ranks is not None and ranks.count > 1:
        operands = own_context(operands, dimensions, ranks)
        heads = ranks.count * dimensions.q
        dimensions = dataclasses.replace(Dimensions.of(operands), q=heads)
    return {
        "prior_mask": prior_mask(operands, dimensions, 1 if ranks is None else ranks.count),
        "active_mask": active_mask(operands, dimensions),
        "context_ranges": context_ranges(operands),
        "block_numbers": block_numbers(operands, dimensions, looped),
        **write_offsets(operands, dimensions, looped),
        **{name: getattr(operands, name) for name in OF_KINDS if name not in PREPARED},
    }
