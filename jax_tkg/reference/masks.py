"""Which cache slots and new keys the queries attend, as masks."""

from __future__ import annotations

import dataclasses

import jax

from jax_tkg.call.arguments import Operands
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.masks import active_mask, context_mask
from jax_tkg.reference.attention import attention_mask


def attended_keys(operands: Operands, dimensions: Dimensions, kind: int) -> jax.Array:
    """The mask of `jax_tkg.reference.attention.attention`, made once for all layers of a kind.

    Args:
      operands: as the layers of the kind see them.
      dimensions: of the kind.
      kind: its number.

    Returns:
      [B, k, g, S, T + S] bool, from `attention_mask`.
    """
    masked = with_masks(operands, dimensions)
    return attention_mask(masked.mask_cache, masked.mask_active, dimensions.k)


def with_masks(operands: Operands, dimensions: Dimensions) -> Operands:
    """Operands of one kind of layers, with masks in place of `context_lengths`.

    Args:
      operands: as the layers of the kind see them.
      dimensions: of the kind.

    Returns:
      Operands that mean the same: with a `mask_cache`, and with a causal `mask_active` if they had
      neither.
    """
    D = dimensions
    if operands.mask_cache is not None:
        return operands
    active = operands.mask_active
    return dataclasses.replace(
        operands,
        mask_cache=context_mask(
            operands.context_lengths, D.S_ctx, D.q, D.S, operands.context_starts
        ),
        mask_active=active_mask(D.S, D.B, D.q) if active is None else active,
        context_lengths=None,
        context_starts=None,
    )
