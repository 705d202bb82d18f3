"""What the megakernel cannot run, found before it is launched.

The SBUF estimate follows the tiles of `jax_tkg.kernels`, whose constants it reads; a test compares
it with what the simulator counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_tkg import hardware
from jax_tkg.call.arguments import FLOAT8_DTYPES, Operands, Parameters
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.layer_kinds import LayerKinds, by_kind
from jax_tkg.kernels import divisions, limits, on_chip_bytes
from jax_tkg.kernels.limits import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS
from jax_tkg.lowering.kernel_interface import MEGAKERNEL
from jax_tkg.lowering.kernel_operands import LARGEST_CONTEXT
from jax_tkg.lowering.neuron_settings import check_target, logical_cores
from jax_tkg.reference.context_ranks import ContextRanks

SBUF_BYTES = hardware.TRN2.sbuf_partition_bytes
"""SBUF of one partition on Trainium2, the smallest that the kernel is written for."""

FLOAT32 = 4
"""Bytes of a float32."""

BLOCK_NUMBER = 4
"""Bytes of an entry of a block table on chip."""

_WIDER_RING_BYTES = limits.RING_SLOTS * (limits.WIDE_SLOT_BYTES - limits.RING_SLOT_BYTES)
"""By how much the ring grows with the first held buffer."""

LARGEST_CACHE = 2**31 - 1
"""Elements in a layer's cache: offsets in it are signed, of 32 bits."""


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
    sizes = _call_sizes(operands, parameters)
    for kind, D in enumerate((sizes["dimensions"], *sizes["other_kinds"])):
        if by_kind(operands.mask_cache, kind) is None and D.S_ctx > LARGEST_CONTEXT:
            raise ValueError(
                f"context_bucket: expected S_ctx <= {LARGEST_CONTEXT} for the Neuron kernel (it "
                f"compares slots with context_lengths in float32), got S_ctx = {D.S_ctx}"
            )
    check_kernel_limits(**sizes)


class SpareSbuf(NamedTuple):
    """What the kernel makes of the SBUF that a call leaves in any case.

    Attributes:
      place_bytes: bytes per partition for its `Places`.
      held_buffers: buffers for weights that load while a router chooses experts.
    """

    place_bytes: int = 0
    held_buffers: int = 0

    @property
    def taken(self) -> int:
        """Bytes per partition that the kernel takes of it."""
        buffers = self.held_buffers * limits.WIDE_SLOT_BYTES
        return self.place_bytes + buffers + (_WIDER_RING_BYTES if self.held_buffers else 0)


def spare_sbuf(operands: Operands, parameters: Parameters) -> SpareSbuf:
    """The `SpareSbuf` of a call within the kernel's limits.

    Args:
      operands: the call's arrays, or their abstract values.
      parameters: its static parameters.
    """
    sizes = _call_sizes(operands, parameters)
    has_experts = sizes["dimensions"].E > 0
    return spare_beside(sum(sbuf_bytes(**sizes).values()), has_experts)


def spare_beside(needed: int, has_experts: bool) -> SpareSbuf:
    """The `SpareSbuf` beside the `needed` bytes per partition of all else."""
    spare = max(0, SBUF_BYTES - hardware.RESERVED_SBUF_BYTES - needed)
    places = min(limits.PLACE_BYTES, spare // 4 * 4)
    buffers = max(0, spare - places - _WIDER_RING_BYTES) // limits.WIDE_SLOT_BYTES
    return SpareSbuf(places, min(limits.HELD_BUFFERS, buffers) if has_experts else 0)


def _call_sizes(operands: Operands, parameters: Parameters) -> dict[str, Any]:
    """A call's arguments of `check_kernel_limits` and `sbuf_bytes`."""
    kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
    ranks = ContextRanks.of(parameters)
    first, *others = (
        ranks.of_rank(
            ranks.dimensions(operands.of_kind(kind, kinds), parameters.bucket_of_kind(kind))
        )
        for kind in range(kinds.count)
    )
    return {
        "dimensions": first,
        "cores": logical_cores(parameters),
        "other_kinds": others,
        "candidates": parameters.candidates_per_token or 0,
        "context_parallel": ranks.count,
        "float8": any(
            weight.dtype in FLOAT8_DTYPES
            for weight in jax.tree.leaves((operands.W_gates, operands.W_ups, operands.W_downs))
        ),
        "head_norms": bool(jax.tree.leaves((operands.W_gamma_qs, operands.W_gamma_ks))),
    }


def check_kernel_limits(
    dimensions: Dimensions,
    cores: int,
    other_kinds: Sequence[Dimensions] = (),
    candidates: int = 0,
    context_parallel: int = 1,
    float8: bool = True,
    head_norms: bool = True,
) -> None:
    """Checks that the kernel can run a call of these sizes.

    Args:
      dimensions: the sizes. If ranks share out the context, S_ctx is the part of one, and q counts
        the query heads of all of them.
      cores: physical cores per logical core, 1 or 2.
      other_kinds: the sizes of further kinds of layers.
      candidates: candidates of a token; 0 without a head.
      context_parallel: ranks that share out the context.
      float8: whether there are float8 weights.
      head_norms: whether there are gains of query or key heads.

    Raises:
      ValueError: it cannot; the message names the argument to shrink, and gives the arithmetic.
    """
    D = dimensions
    for argument, letter, size in (("X", "H in [B, S, H]", D.H), ("W_gates", "I in [H, I]", D.I)):
        if size % PARTITIONS:
            raise ValueError(
                f"{argument}: expected {letter} to be a multiple of {PARTITIONS} for the Neuron "
                f"kernel (whole tiles), got {size} ({size} % {PARTITIONS} = {size % PARTITIONS}); "
                "pad with zeros"
            )
    tokens = D.B * D.S
    _check_tokens(D)
    if D.E > limits.MAX_EXPERTS:
        raise ValueError(
            f"W_routers: expected E <= {limits.MAX_EXPERTS} for the Neuron kernel (a PSUM bank of "
            f"counts), got E = {D.E}"
        )
    if D.q * D.S > PSUM_BANK:
        raise ValueError(
            f"mask_cache: expected q * S <= {PSUM_BANK} for the Neuron kernel (a PSUM bank of "
            f"scores), got {D.q} * {D.S} = {D.q * D.S}"
        )
    for kind in (D, *other_kinds):
        rows, slots, letters = D.B, kind.S_max, "B * k * d * S_max"
        if kind.block_len:
            rows, slots, letters = kind.blocks, kind.block_len, "blocks * k * d * block_len"
        elements = rows * D.k * D.d * slots
        if elements > LARGEST_CACHE:
            raise ValueError(
                f"K_caches: expected at most {LARGEST_CACHE} elements per layer for the Neuron "
                f"kernel (offsets of 32 bits), got {letters} = {rows} * {D.k} * {D.d} * {slots} = "
                f"{elements}"
            )
    if D.V:
        found = cores * divisions.candidates_found(D.V, cores, candidates)
        if found > limits.SEARCHED_AT_ONCE:
            raise ValueError(
                f"candidates_per_token: expected at most {limits.SEARCHED_AT_ONCE} candidates of "
                f"all parts of the vocabulary for the Neuron kernel (the elements that a search "
                f"takes), got {found} for V = {D.V} and {candidates} a token"
            )
    parts = sbuf_bytes(D, cores, other_kinds, candidates, context_parallel, float8, head_norms)
    needed = sum(parts.values())
    kinds = (D, *other_kinds)
    without = needed - parts["block tables"]
    if without <= SBUF_BYTES < needed:
        terms = " + ".join(f"{D.B} * {kind.n}" for kind in kinds if kind.n)
        raise ValueError(
            f"block_tables: expected at most {(SBUF_BYTES - without) // BLOCK_NUMBER} entries for "
            f"the Neuron kernel ({BLOCK_NUMBER} bytes each in a partition of on-chip memory, of "
            f"whose {SBUF_BYTES} all else takes {without}), got B * n = {terms} = "
            f"{sum(D.B * kind.n for kind in kinds)}; use larger blocks or fewer sequences"
        )
    if needed > SBUF_BYTES:
        terms = " + ".join(f"{size} ({name})" for name, size in parts.items() if size)
        heads = D.q + 2 * D.k
        raise ValueError(
            f"X: expected B * S = {tokens} tokens of H = {D.H}, with q + 2k = {heads} heads of "
            f"d = {D.d}, to fit in the {SBUF_BYTES} bytes of a partition of on-chip memory, got "
            f"{terms} = {needed} bytes; use fewer sequences or new tokens"
        )


def _check_tokens(D: Dimensions) -> None:
    tokens = D.B * D.S
    if tokens > limits.MAX_TOKENS:
        raise ValueError(
            f"X: expected at most {limits.MAX_TOKENS} tokens for the Neuron kernel (two chunks of "
            f"features in a PSUM bank), got B * S = {D.B} * {D.S} = {tokens}"
        )
    if tokens > PARTITIONS and D.S > PARTITIONS:
        raise ValueError(
            f"X: expected S <= {PARTITIONS} for the Neuron kernel (a sequence's new tokens have a "
            f"partition each), got B * S = {D.B} * {D.S}"
        )


def sbuf_bytes(
    dimensions: Dimensions,
    cores: int,
    other_kinds: Sequence[Dimensions] = (),
    candidates: int = 0,
    context_parallel: int = 1,
    float8: bool = True,
    head_norms: bool = True,
) -> dict[str, int]:
    """Bytes per partition that the kernel needs at most, by purpose.

    Args:
      dimensions: the sizes, as `check_kernel_limits` takes them.
      cores: physical cores per logical core.
      other_kinds: the sizes of further kinds of layers, which differ in S_ctx and S_max.
      candidates: candidates of a token; 0 without a head.
      context_parallel: ranks that share out the context.
      float8: whether there are float8 weights, whose inputs are clamped or split.
      head_norms: whether there are gains of query or key heads.
    """
    D = dimensions
    kinds = (D, *other_kinds)
    item = jnp.dtype(D.dtype).itemsize
    tokens = D.B * D.S
    # What one core holds of the residual stream, and all of the MLP's product.
    hidden = _hidden_chunks(D, cores) * tokens
    mlp = _mlp_chunks(D) * tokens
    residual = item * hidden
    # Squares, the scaled and the normalized activation, and its gain.
    norm = (2 * FLOAT32 + item) * hidden + 2 * item * (D.H // PARTITIONS)
    # Gate, and this core's part of it or of up.
    part = FLOAT32 * min(mlp, PSUM_GROUP_BANKS * PSUM_BANK)
    # Products on their way: scaled, and of two cores the other's and their sum.
    swapped = (3 if cores > 1 else 1) * FLOAT32 * PSUM_BANK
    # The normalized input, these, their product, and the down projection's result.
    feed_forward = item * hidden + 2 * part + swapped + item * mlp + FLOAT32 * hidden
    feed_forward += on_chip_bytes.divided_sums_bytes(hidden)
    if float8:
        # Input and product clamped, or as terms.
        feed_forward += item * (hidden + mlp) + _term_bytes(D, cores, item)
    experts = _expert_bytes(D, cores, item, float8)
    # The rows of tokens that are loaded and stored.
    rows = item * PARTITIONS * _hidden_chunks(D, cores) + item * hidden
    # What the all-reduce sums, its result, and the result's squares or the residual after it.
    reduced = 3 * FLOAT32 * hidden
    # The caches are updated after the MLP.
    stored = _stored_bytes(D, cores, item, context_parallel)
    stages = {
        "normalization": norm + stored,
        "MLP": feed_forward + stored,
        # A shared expert's MLP runs after the router, and its result is kept.
        "experts": experts + (feed_forward if D.I_shared else 0) + stored,
        "projection of heads": _projection_bytes(D, item, cores) + item * hidden,
        "rotation of heads": _rotation_bytes(D, item, head_norms),
        "attention": max(_attention_bytes(kind, cores, item, context_parallel) for kind in kinds)
        + item * hidden
        + (_exchange_bytes(D, cores, item, context_parallel) if context_parallel > 1 else 0),
        "input and output": rows,
        "all-reduce": reduced + stored,
        "head": on_chip_bytes.candidate_bytes(
            hidden, D.H // PARTITIONS * tokens, D.V, cores, candidates, tokens, item
        ),
    }
    largest = max(stages, key=lambda name: stages[name])
    tables = on_chip_bytes.table_bytes(D.B, D.S, D.q, len(kinds), D.E)
    return {
        "weights on their way": limits.RING_BYTES,
        "constants": limits.CONSTANT_BYTES,
        "tables and masks": tables + _resident_mask_bytes(kinds, cores, item, tables, stored),
        "block tables": sum(BLOCK_NUMBER * D.B * kind.n for kind in kinds),
        "residual": residual,
        largest: stages[largest],
    }


def _hidden_chunks(D: Dimensions, cores: int) -> int:
    """Chunks of 128 hidden features that one core holds."""
    return limits.ceiling_divide(D.H // PARTITIONS, cores)


def _mlp_chunks(D: Dimensions) -> int:
    """Chunks on the partitions of the features of a dense MLP or a shared expert."""
    return max(limits.feature_chunks(D.I), limits.feature_chunks(D.I_shared))


def _expert_bytes(D: Dimensions, cores: int, item: int, float8: bool = True) -> int:
    tokens = D.B * D.S
    hidden = _hidden_chunks(D, cores) * tokens
    whole = D.H // PARTITIONS * tokens
    weighted = not float8 and D.dtype != jnp.float16
    return on_chip_bytes.expert_bytes(
        hidden, whole, D.I_expert, D.E, tokens, item, float8, weighted
    )


def _term_bytes(D: Dimensions, cores: int, item: int) -> int:
    """The inputs of gate and up, and of down, as terms for double rows, where they are float8."""
    tokens = D.B * D.S
    return sum(
        on_chip_bytes.term_bytes(chunks, tokens, item)
        for chunks in (_hidden_chunks(D, cores), _mlp_chunks(D))
    )


def _stored_bytes(D: Dimensions, cores: int, item: int, ranks: int) -> int:
    """Of this rank's heads; q counts those of all that share out the context."""
    return on_chip_bytes.stored_bytes(D.B, D.S, D.q // ranks, D.k, D.d, cores, item)


def _resident_mask_bytes(
    kinds: Sequence[Dimensions], cores: int, item: int, tables: int, stored: int
) -> int:
    """Masks that stay on chip beside `tables`: all, or as many as there is room for."""
    D = kinds[0]
    chunks = sum(_mask_chunks(kind, cores, item) for kind in kinds)
    needed = chunks * D.B * D.q * D.S
    tokens = D.B * D.S
    hidden = _hidden_chunks(D, cores) * tokens
    mlp = _mlp_chunks(D) * tokens
    experts = _expert_bytes(D, cores, item)
    terms = _term_bytes(D, cores, item)
    room = on_chip_bytes.mask_room_bytes(
        hidden, D.H // PARTITIONS, mlp, item, experts, terms, tables, stored
    )
    return max(0, min(needed, room))


def _mask_chunks(D: Dimensions, cores: int, item: int) -> int:
    """Chunks of 128 slots, and of new tokens, of the masks of all sequences on one core."""
    attended = _slots_of_a_core(D, cores, item)
    if divisions.divides_sequences(D.B, cores):
        attended = limits.ceiling_divide(attended, cores)
    return limits.ceiling_divide(attended, PARTITIONS) + 1


def _head_elements(D: Dimensions) -> int:
    """Elements per partition of one head of all tokens."""
    return divisions.head_chunks(D.d) * D.B * D.S


def _projection_bytes(D: Dimensions, item: int, cores: int) -> int:
    """Queries, keys and values; of two cores, also this core's part and pieces of the other's."""
    elements = (D.q + 2 * D.k) * _head_elements(D)
    parts = FLOAT32 * (elements + min(elements, limits.DMA_ELEMENTS)) if cores > 1 else 0
    return item * elements + parts


def _rotation_bytes(D: Dimensions, item: int, head_norms: bool) -> int:
    """Queries, keys and values; with norms also queries and keys times their gains, and factors."""
    rotated = (D.q + D.k) * _head_elements(D)
    # What a bank holds times cosines and times sines.
    needed = item * (rotated + D.k * _head_elements(D)) + 2 * FLOAT32 * PSUM_BANK
    if head_norms:
        # A float16 is not normalized before it has both factors.
        scaled = FLOAT32 if D.dtype == jnp.float16 else item
        needed += scaled * rotated + FLOAT32 * (D.q + D.k) * D.B * D.S
    return needed


def _exchange_bytes(D: Dimensions, cores: int, item: int, ranks: int) -> int:
    """Queries, keys and values of this rank, and its softmax on the way to and from others."""
    heads = item * (D.q + 2 * D.k) * _head_elements(D)
    columns = _attended(D, cores, item, ranks)[0]
    parts = 2 + divisions.head_chunks(D.d)
    # What is sent, what is received of each rank and core, and the same scaled, with the factors.
    return heads + FLOAT32 * columns * (parts + cores * (2 * parts + 1))


def _attention_bytes(D: Dimensions, cores: int, item: int, ranks: int) -> int:
    columns, chunks = _attended(D, cores, item, ranks)
    # Queries, keys and values, the new values as rows, and what the queries attended, also by core.
    rows = on_chip_bytes.token_tiles(D.B, D.S, cores) * D.k * D.d
    heads = item * (3 * D.q + 2 * D.k) * _head_elements(D) + item * rows
    if divisions.stacks_heads(D.d):
        # The queries on the other half of the partitions, and what they attended by pairs.
        heads += 2 * item * D.q * _head_elements(D)
    tiles = limits.SOFTMAX_TILES + (divisions.head_chunks(D.d) - 1) * limits.SOFTMAX_VALUE_TILES
    # Mask, scores and their exponentials.
    scores = (1 + FLOAT32 + item) * chunks * columns
    # Of float8 caches: the new keys and values times their scales, and as they are stored.
    scaled = (FLOAT32 + item + 1) * (D.k * _head_elements(D) + rows)
    return heads + scores + FLOAT32 * columns * tiles + scaled


def _attended(D: Dimensions, cores: int, item: int, ranks: int) -> tuple[int, int]:
    """Queries that are attended together, and the chunks of a block of keys."""
    sequences = divisions.sequences_of_a_core(D.B, cores)
    slots = _slots_of_a_core(D, cores, item)
    at_once, chunks = divisions.attended_at_once(
        sequences, D.q * D.S, slots, D.d, item, D.block_len, ranks
    )
    return at_once * D.q * D.S, chunks


def _slots_of_a_core(D: Dimensions, cores: int, item: int) -> int:
    """Cache slots that a core attends of each of its sequences."""
    twice = divisions.slots_attended_twice(D.B, D.k, D.d, item, D.E)
    return divisions.slots_of_a_core(D.B, D.S_ctx, cores, twice)
