"""Bytes of SBUF that parts of the kernel take.

This module does not import nki, so that `jax_tkg.lowering.kernel_limits` adds them up where nki is
absent.
"""

from .divisions import candidates_found, head_chunks, sequence_blocks, sequences_of_a_core
from .limits import (
    LEAST_SEARCHED,
    LISTED_AT_ONCE,
    MASK_ROOM_BYTES,
    PARTITIONS,
    PSUM_BANK,
    PSUM_GROUP_BANKS,
    SEGMENT_TILES,
    TABLE_ROOM_BYTES,
    ceiling_divide,
    feature_chunks,
    saved_cycles,
    term_row_bytes,
)


def term_bytes(chunks, T, item):
    """Bytes per partition to split a tile [128, chunks, T], at most; 0 where tokens are not split.

    The terms; the magnitudes, and what is scaled, `item` bytes an element; scales.
    """
    if item != 2 or saved_cycles(T) <= 0:
        return 0
    return chunks * (term_row_bytes(T) + 2 * item * T) + 18 * T


def candidate_bytes(hidden, whole, V, cores, count, T, item):
    """Bytes per partition of final norm, head and candidates, at most; 0 without a head.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
      whole: the same of all features.
      V: columns of the head.
      cores: physical cores of the launch.
      count: candidates of a token.
      T: tokens.
      item: bytes per element of the compute dtype.
    """
    if V == 0:
        return 0
    found = candidates_found(V, cores, count)
    blocks = ceiling_divide(T, PARTITIONS)
    # The norm of this core's share, and that of all features with its rows.
    norm = (8 + 2 * item) * hidden + 2 * item * whole + blocks * item * PARTITIONS * whole // T
    # Products of a segment, as they are read out, and the next one's.
    products = 2 * 4 * (SEGMENT_TILES + 1) * T
    # Logits of a bank, which of them are numbers, what rounds leave; two banks at a time.
    searched = 2 * 13 * PSUM_BANK
    # What this core and both found, the places, and what is left or chosen of them.
    lists = 4 * (2 * found + 5 * cores * found) + 16 * count + 64
    return norm + products + searched + blocks * lists


def expert_bytes(hidden, whole, I, E, T, item, float8=True, weighted=False):  # noqa: E741
    """Bytes per partition of the router and the experts of a layer, at most; 0 without experts.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
      whole: the same of all features.
      I: features of an expert.
      E: experts of all ranks.
      T: tokens.
      item: bytes per element of the compute dtype.
      float8: whether there are float8 weights, whose inputs are clamped or split.
      weighted: whether products are added to the sum as they are read out: see `ExpertSum`.
    """
    if E == 0:
        return 0
    searched = max(E, LEAST_SEARCHED)
    chunks = ceiling_divide(E, PARTITIONS)
    blocks = ceiling_divide(T, PARTITIONS)
    # The input, of this core's share and of all features.
    inputs = item * (hidden + whole)
    # The weights by expert, and of two batches; on their way as many as a PSUM bank holds; all
    # experts listed, or twice some of them; gaps.
    lists = 4 * chunks * T + 4 * 8 * (2 + 2 * T) + 4 * 4 * min(8 * T, PSUM_BANK)
    lists += 21 * max(searched, 2 * LISTED_AT_ONCE) + 4 * 5 * LISTED_AT_ONCE
    # The input as float32; logits by expert and by token, values, scores, what is left of them
    # twice, what is chosen, and its weights.
    router = 4 * hidden + 4 * (8 * blocks * searched + 3 * chunks * T)
    mlp = feature_chunks(I) * T
    part = min(mlp, PSUM_GROUP_BANKS * PSUM_BANK)
    # The sum; then a result and the sum with it, or before these gate, its sigmoid and up.
    result = 8 * whole
    if weighted:
        result = 0
    running = 4 * whole + max(result, 12 * part)
    # The activated products of two experts, also clamped or zeroed; products as they are read out
    # of PSUM; scales and biases of two lists of eight.
    running += 3 * item * mlp + 8 * PSUM_BANK
    running += 2 * 8 * 4 * (2 * whole // T + 4 * feature_chunks(I))
    # Rows of biases of W_down, of two lists too.
    running += 2 * item * PARTITIONS * (whole // T)
    if float8:
        # The input clamped for gate and for up, or as terms; each expert's product as terms.
        running += 2 * item * whole
        running += term_bytes(whole // T, T, item) + 2 * term_bytes(feature_chunks(I), T, item)
    # The sum, this core's share of it, what the other core adds, and a shared expert's result.
    ended = 4 * whole + 12 * hidden
    return inputs + max(lists + max(router, running), ended)


def divided_sums_bytes(hidden):
    """Bytes per partition of sums over the rows of W_down that a core has, at most.

    Of both cores' features, where their sums are accumulated together.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
    """
    if 2 * hidden > PSUM_BANK * PSUM_GROUP_BANKS:
        return 0
    return 2 * 4 * hidden


def stored_bytes(B, S, q, k, d, cores, item):
    """Bytes per partition of a layer's heads and new values by token, until the caches have them.

    Args:
      B: sequences.
      S: new tokens of each.
      q: query heads of a rank.
      k: KV heads.
      d: head size.
      cores: physical cores of the launch.
      item: bytes per element of the compute dtype.
    """
    heads = (q + 2 * k) * head_chunks(d) * B * S
    return item * (heads + token_tiles(B, S, cores) * k * d)


def token_tiles(B, S, cores):
    """Tiles of new tokens by row that a core has, at most."""
    parts = B // sequences_of_a_core(B, cores)
    return ceiling_divide(len(sequence_blocks(B, S, cores)), parts)


def table_bytes(B, S, q, kinds, E):
    """Bytes per partition of what stays on chip beside masks of the cache slots, at most.

    Of each kind of layers the cosines and sines, the mask of new keys, ranges of slots and write
    offsets; with experts their order, and gaps.

    Args:
      B: sequences.
      S: new tokens of each.
      q: query heads.
      kinds: kinds of layers.
      E: experts of all ranks, or 0.
    """
    tables = kinds * (5 * 4 * B * S + B * q * S + 4 * B + 8)
    if E > 0:
        tables += 4 * (max(E, LEAST_SEARCHED) + 8) + 4 * (3 * LISTED_AT_ONCE + 1)
    return tables


def mask_room_bytes(hidden, hidden_chunks, mlp, item, experts=0, terms=0, tables=0, stored=0):
    """Bytes per partition for masks that stay on chip, beside normalization and MLP.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
      hidden_chunks: chunks of 128 features of H.
      mlp: elements per partition of the MLP's product.
      item: bytes per element of the compute dtype.
      experts: `expert_bytes` of layers that have some.
      terms: `term_bytes` of the input of gate and up, and of that of down.
      tables: `table_bytes` of all kinds of layers.
      stored: `stored_bytes`.
    """
    norm = (8 + 2 * item) * hidden + 2 * item * hidden_chunks
    part = min(mlp, PSUM_GROUP_BANKS * PSUM_BANK)
    feed_forward = (3 * item + 4) * hidden + 8 * part + 2 * item * mlp + terms
    feed_forward += divided_sums_bytes(hidden)
    if experts > 0:
        # A shared expert's result is there, and its MLP runs after the router.
        feed_forward += experts
    room = MASK_ROOM_BYTES - max(0, tables + item * hidden - TABLE_ROOM_BYTES)
    return room - max(norm, feed_forward) - stored
