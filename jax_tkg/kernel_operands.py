"""What the kernel is given: the operands of the primitive, with masks and positions prepared.

This runs in the traced program, before the kernel, on arrays that are small beside the weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.arguments import Dimensions, Operands
from jax_tkg.reference.cache_update import write_slots

MASKED = -(2.0**100)
"""Added to scores that are not attended; the same number as in `jax_tkg.kernels.softmax`."""

SKIPPED = 2**32 - 1
"""Slot of a token that is not written: past the end of every cache."""


def prior_bias(operands: Operands, dimensions: Dimensions) -> jax.Array | None:
    """[slots, B * q * S] bfloat16: 0 where a query attends a cache slot, else `MASKED`.

    The slots are S_ctx, or where the mask is unified the first S_ctx - S. None without slots.
    """
    D = dimensions
    slots = D.S_ctx - (D.S if operands.mask_active is None else 0)
    if slots == 0:
        return None
    return _bias(operands.mask_cache[:slots] != 0).reshape(slots, D.B * D.q * D.S)


def active_bias(operands: Operands, dimensions: Dimensions) -> jax.Array:
    """[B * S (key), B * q * S] bfloat16: likewise for the new keys of all sequences."""
    D = dimensions
    mask = operands.mask_active
    if mask is None:
        mask = operands.mask_cache[D.S_ctx - D.S :]
    own = jnp.eye(D.B, dtype=jnp.bool_)[:, None, :, None, None]
    attended = own & (mask != 0)[None]
    return _bias(attended).reshape(D.B * D.S, D.B * D.q * D.S)


def _bias(attended: jax.Array) -> jax.Array:
    return jnp.where(attended, 0.0, MASKED).astype(jnp.bfloat16)


def scatter_slots(operands: Operands, dimensions: Dimensions) -> jax.Array | None:
    """[1, B * S] uint32: the slot each token is written to, or `SKIPPED`; None for no update.

    Of tokens of a sequence that share a slot all but the last are skipped, because the kernel's
    writes have no order.
    """
    if operands.position_ids is None:
        return None
    D = dimensions
    slots = write_slots(operands.position_ids, D.S, D.S_max)
    shared = slots[:, :, None] == slots[:, None, :]
    replaced = jnp.triu(shared, 1).any(axis=-1)
    written = (slots < D.S_max) & ~replaced
    return jnp.where(written, slots.astype(jnp.uint32), jnp.uint32(SKIPPED)).reshape(1, -1)


def kernel_operands(operands: Operands) -> dict[str, Any]:
    """The kernel's tensors by its parameters' names; per-layer ones as `Operands` holds them."""
    dimensions = Dimensions.of(operands)
    given = {
        name: getattr(operands, name)
        for name in operands.__dataclass_fields__
        if name not in ("mask_cache", "mask_active", "position_ids")
    }
    return {
        **given,
        "prior_bias": prior_bias(operands, dimensions),
        "active_bias": active_bias(operands, dimensions),
        "slots": scatter_slots(operands, dimensions),
    }
