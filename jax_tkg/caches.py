"""Allocation of key and value caches, and rings: short caches for sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.bits import Bits, as_bits
from jax_tkg.call.layer_kinds import LayerKinds
from jax_tkg.call.operand_table import BY_NAME, names
from jax_tkg.limits import MAX_NEW_TOKENS, SIZE_MULTIPLE
from jax_tkg.masks import ring_positions


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
) -> tuple[Any, Any]:
    """Zeroed caches in the layout of `transformer_tkg`, each array a buffer of its own.

    Args:
      num_layers: L.
      B: batch.
      k: KV heads, over all ranks where the caches are sharded.
      d: d_head.
      S_max: capacity in tokens; with `layer_kinds` a capacity for each kind.
      dtype: dtype of keys and values: X's.
      stacked: one array with a leading layer axis in place of a list of arrays.
      sharding: sharding of each array, or None.
      layer_kinds: the kind of each layer, as in `transformer_tkg`, or None.

    Returns:
      K_caches (each [B, k, d, S_max]) and V_caches (each [B, k, S_max, d]): lists of L arrays; or
      if `stacked` two arrays with a leading axis of L, or with `layer_kinds` two tuples with an
      array for each kind and a leading axis for its layers.

    Raises:
      ValueError: not one capacity for each kind.
    """
    kinds = LayerKinds.of(None if layer_kinds is None else tuple(layer_kinds), num_layers)
    capacities = (S_max,) if isinstance(S_max, int) else tuple(S_max)
    if len(capacities) != kinds.count or len(kinds.of_layers) != num_layers:
        raise ValueError(
            f"S_max: expected a capacity for each of {kinds.count} kinds of {num_layers} layers, "
            f"got S_max = {S_max} and layer_kinds = {layer_kinds}"
        )

    def zeros(name: str, kind: int, *layers: int) -> jax.Array:
        sizes = {"B": B, "k": k, "d": d, "S_max": capacities[kind]}
        shape = (*layers, *BY_NAME[name].layout.shape(sizes))
        return jnp.zeros(shape, dtype, device=sharding)

    def allocated(name: str) -> Any:
        if not stacked:
            return [zeros(name, kind) for kind in kinds.of_layers]
        stacks = tuple(zeros(name, kind, len(kinds.layers(kind))) for kind in range(kinds.count))
        return stacks[0] if layer_kinds is None else stacks

    K_caches, V_caches = map(allocated, names("cache"))
    return K_caches, V_caches


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
      [B, S] in the dtype of `positions`: position % S_max, or -1.
    """
    positions = jnp.asarray(positions)
    return jnp.where(positions < 0, -1, positions % S_max)


def fill_ring(ring: Any, columns: Any, lengths: jax.Array, slot_axis: int) -> Any:
    """Puts the last tokens of a prompt into a ring, as writing all of them in turn would.

    Args:
      ring: [..., B, k, d, S_max] keys or [..., B, k, S_max, d] values; an array or `Bits`.
      columns: the prompt's keys [..., B, k, d, T] or values [..., B, k, T, d], of which sequence b
        has its positions 0..lengths[b]-1; keys are rotated.
      lengths: [B] integers, at most T.
      slot_axis: the axis of S_max: -1 for keys, -2 for values.

    Returns:
      The ring. Slots without a token keep what they hold.
    """
    if isinstance(ring, Bits):
        bits = fill_ring(ring.bits, as_bits(columns).bits, lengths, slot_axis)
        return Bits(bits, ring.dtype)
    positions = ring_positions(lengths, ring.shape[slot_axis])
    where = [1] * ring.ndim
    where[-4], where[slot_axis] = positions.shape
    positions = positions.reshape(where)
    index = jnp.clip(positions, 0, columns.shape[slot_axis] - 1)
    return jnp.where(positions >= 0, jnp.take_along_axis(columns, index, slot_axis), ring)
