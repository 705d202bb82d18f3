"""What the kernel is given: the operands of the primitive, with masks and positions prepared.

This runs in the traced program, before the kernel, on arrays that are small beside the weights.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.arguments import PER_LAYER, Dimensions, Operands, is_stacked
from jax_tkg.reference.cache_update import write_slots

MASKED = -(2.0**100)
"""Added to scores that are not attended; the same number as in `jax_tkg.kernels.softmax`."""

SKIPPED = 2**32 - 1
"""Slot of a token that is not written: past the end of every cache."""

LARGEST_PLACE = 2**31 - 1
"""Largest offset that a register of the machine holds, signed."""


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


def layers_loop(operands: Operands) -> bool:
    """Whether the kernel's layers can loop on the device: every per-layer operand is stacked.

    Also, a number in the key caches of all layers must have a signed 32-bit place: a view in the
    kernel has one dynamic offset, which then finds both the layer and the slot.
    """
    given = [getattr(operands, name) for name in PER_LAYER]
    if not all(value is None or is_stacked(value) for value in given):
        return False
    return math.prod(operands.K_caches.shape) <= LARGEST_PLACE


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


def places_of_layers(slots: jax.Array, dimensions: Dimensions) -> jax.Array:
    """[L, 2 * B * S] uint32: what `slots` [1, B * S] mean in the caches of all layers at once.

    First, for each token, the place of its first number in the keys [L, B, k, d, S_max], then that
    of its first row in the values [L, B, k, S_max, d] as rows of d.
    """
    D = dimensions
    sequences = jnp.arange(D.L * D.B, dtype=jnp.uint32).reshape(D.L, D.B).repeat(D.S, axis=1)
    starts = jnp.concatenate([sequences * (D.k * D.d * D.S_max), sequences * (D.k * D.S_max)], 1)
    both = jnp.concatenate([slots, slots], 1)
    skipped = jnp.uint32(SKIPPED)
    return jnp.where(both == skipped, skipped, starts + both)


def kernel_operands(operands: Operands, looped: bool = False) -> dict[str, Any]:
    """The kernel's tensors by its parameters' names; per-layer ones as `Operands` holds them.

    Args:
      operands: of the primitive.
      looped: whether the layers loop on the device, which `layers_loop` allows.
    """
    dimensions = Dimensions.of(operands)
    given = {
        name: getattr(operands, name)
        for name in operands.__dataclass_fields__
        if name not in ("mask_cache", "mask_active", "position_ids")
    }
    slots = scatter_slots(operands, dimensions)
    if slots is not None and looped:
        slots = places_of_layers(slots, dimensions)
    return {
        **given,
        "prior_bias": prior_bias(operands, dimensions),
        "active_bias": active_bias(operands, dimensions),
        "slots": slots,
    }
