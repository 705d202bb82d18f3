"""What the megakernel cannot run, found before it is launched.

The SBUF figures are those of `jax_tkg.kernels`, tile by tile; a test compares them with what the
simulator counts.
"""

from __future__ import annotations

import jax.numpy as jnp

from jax_tkg import hardware
from jax_tkg.call.arguments import PARTITIONS, Operands, Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.lowering.kernel_interface import MEGAKERNEL
from jax_tkg.lowering.neuron_settings import check_target, logical_cores

PSUM_BANK = hardware.PSUM_BANK_BYTES // 4
"""float32 values in one PSUM bank of one partition."""

SBUF_BYTES = hardware.TRN2.sbuf_partition_bytes
"""SBUF of one partition on Trainium2, the smallest that the kernel is written for."""

RING_BYTES = 6 * 16384
"""Buffers through which weights and caches stream: `kernels.transformer.RING_SLOTS` of
`RING_SLOT_BYTES` each."""

MAX_BLOCK_CHUNKS = 16
"""Chunks of 128 cache slots attended at once, as in `kernels.attention_blocks`."""

GROUP_COLUMNS = 128
"""Queries attended together, where one sequence has no more; as in `kernels.attention_blocks`."""

MASK_ROOM_BYTES = 118000
"""Of a partition, for masks and the activations beside them, as in `kernels.masks`."""

LARGEST_CACHE = 2**31 - 1
"""Numbers in a layer's cache: a place in it is a signed offset of 32 bits."""

CONSTANT_BYTES = 2 * PARTITIONS * 4 + 3 * PARTITIONS * 4
"""Constant tiles, while they are made."""


def check_megakernel(operands: Operands, parameters: Parameters) -> None:
    """Checks that the kernel can run a call, on Neuron or in the simulator.

    Args:
      operands: the call's arrays, or their abstract values.
      parameters: its static parameters.

    Raises:
      ValueError: it cannot; the message names the argument, what was expected and what came.
    """
    check_target(operands)
    MEGAKERNEL.check_supported(operands, parameters)
    cores = logical_cores(parameters)
    check_kernel_limits(Dimensions.of(operands), parameters.num_layers, cores)


def check_kernel_limits(dimensions: Dimensions, num_layers: int, cores: int) -> None:
    """Checks that the kernel can run a call of these sizes.

    Args:
      dimensions: the sizes.
      num_layers: L.
      cores: physical cores per logical core, 1 or 2.

    Raises:
      ValueError: it cannot; the message names the argument to shrink, and gives the arithmetic.
    """
    D = dimensions
    tokens = D.B * D.S
    if tokens > PARTITIONS:
        raise ValueError(
            f"X: expected at most {PARTITIONS} tokens for the Neuron kernel (a partition each), "
            f"got B * S = {D.B} * {D.S} = {tokens}"
        )
    if D.q * D.S > PSUM_BANK:
        raise ValueError(
            f"mask_cache: expected q * S <= {PSUM_BANK} for the Neuron kernel (a PSUM bank of "
            f"scores), got {D.q} * {D.S} = {D.q * D.S}"
        )
    numbers = D.B * D.k * D.d * D.S_max
    if numbers > LARGEST_CACHE:
        raise ValueError(
            f"K_caches: expected at most {LARGEST_CACHE} numbers per layer for the Neuron kernel "
            f"(offsets of 32 bits), got B * k * d * S_max = {D.B} * {D.k} * {D.d} * {D.S_max} = "
            f"{numbers}"
        )
    parts = sbuf_bytes(D, cores)
    needed = sum(parts.values())
    if needed > SBUF_BYTES:
        terms = " + ".join(f"{size} ({name})" for name, size in parts.items())
        raise ValueError(
            f"X: expected B * S = {tokens} tokens of H = {D.H} to fit in the {SBUF_BYTES} bytes of "
            f"a partition of on-chip memory, got {terms} = {needed} bytes; use fewer sequences or "
            "new tokens"
        )


def sbuf_bytes(dimensions: Dimensions, cores: int) -> dict[str, int]:
    """Bytes per partition that the kernel needs at most, by purpose.

    Args:
      dimensions: the sizes.
      cores: physical cores per logical core.
    """
    D = dimensions
    item = jnp.dtype(D.dtype).itemsize
    tokens = D.B * D.S
    # What one core holds of the residual stream, and all of the MLP's product.
    hidden = -(-(D.H // PARTITIONS) // cores) * tokens
    mlp = D.I // PARTITIONS * tokens
    residual = item * hidden
    # squares, scaled and the normalised activation, with its gain.
    norm = (4 + 4 + item) * hidden + 2 * item * (D.H // PARTITIONS)
    # Gate, and this core's part of it or of up, in f32.
    part = 4 * min(mlp, 4 * PSUM_BANK)
    # Products on their way: scaled, the other core's, their sum.
    swapped = 3 * 4 * PSUM_BANK
    # The normalised input (also clamped), these, their product, and what the down projection gives.
    feed_forward = 2 * item * hidden + 2 * part + swapped + 2 * item * mlp + 4 * hidden
    # The rows that tokens come and go in.
    rows = item * PARTITIONS * -(-(D.H // PARTITIONS) // cores) + item * hidden
    # What an all-reduce gives, and the residual stream after it.
    reduced = 8 * hidden + item * hidden
    stages = {
        "normalisation": norm,
        "MLP": feed_forward,
        "attention": _attention_bytes(D, item) + item * hidden,
        "input and output": rows,
        "all-reduce": reduced,
    }
    largest = max(stages, key=lambda name: stages[name])
    # Cosines and sines, the mask of new keys, and places in the caches.
    tables = 2 * 4 * tokens + D.B * D.q * D.S + 4 * D.B + 8
    return {
        "weights on their way": RING_BYTES,
        "constants": CONSTANT_BYTES,
        "tables and masks": tables + _resident_mask_bytes(D, cores, item),
        "residual": residual,
        largest: stages[largest],
    }


def _resident_mask_bytes(D: Dimensions, cores: int, item: int) -> int:
    """Masks that stay on chip: as many as there is room for beside the largest stages."""
    chunks = -(-D.S_ctx // (cores * PARTITIONS)) + 1
    needed = chunks * D.B * D.q * D.S
    tokens = D.B * D.S
    hidden = -(-(D.H // PARTITIONS) // cores) * tokens
    mlp = D.I // PARTITIONS * tokens
    norm = (8 + 2 * item) * hidden + 2 * item * (D.H // PARTITIONS)
    feed_forward = (3 * item + 4) * hidden + 8 * min(mlp, 4 * PSUM_BANK) + 2 * item * mlp
    return max(0, min(needed, MASK_ROOM_BYTES - max(norm, feed_forward)))


def _attention_bytes(D: Dimensions, item: int) -> int:
    sequences = max(1, min(D.B, GROUP_COLUMNS // (D.q * D.S)))
    columns = sequences * D.q * D.S
    chunks = min(MAX_BLOCK_CHUNKS, PSUM_BANK // columns * 4, 1 + -(-D.S_ctx // PARTITIONS))
    heads = item * (D.q + 2 * D.k) * D.B * D.S + item * D.k * D.d + item * D.q * D.B * D.S
    # Mask, scores and their exponentials.
    scores = (1 + 4 + item) * chunks * columns
    # Peaks, sums and weighted values of the state, of a block, of the other core; and factors.
    state = 4 * columns * 20
    return heads + scores + state
