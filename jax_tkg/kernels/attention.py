"""Attention of the new tokens to the cache as it was passed in, and to each other.

Scores are transposed: key slots on partitions, (sequence, query head, token) in columns. So the
weights that the softmax gives are at once the moving operand of the product with V.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .exchange import swap
from .sizes import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS, ceiling_divide
from .softmax import (
    SoftmaxState,
    column_peaks,
    column_sums,
    exponentials,
    merge,
    normalise,
    set_unattended,
)

MAX_BLOCK_CHUNKS = 16
"""Chunks of 128 slots attended at once: 2048 slots, 4 KiB of bf16 per partition and DMA."""


class Block(NKIObject):
    """Cache slots start .. start + rows * chunks; row p of chunk c is slot start + p * chunks + c.

    So each partition reads `chunks` consecutive rows of V, in one piece.
    """

    def __init__(self, start, rows, chunks):
        self.start = start
        self.rows = rows
        self.chunks = chunks


def context_blocks(first, last, chunks):
    """The blocks of at most 128 x `chunks` slots that cover the slots first .. last."""
    blocks = []
    while last - first >= PARTITIONS:
        size = min(chunks, (last - first) // PARTITIONS)
        blocks.append(Block(first, PARTITIONS, size))
        first += size * PARTITIONS
    if last > first:
        blocks.append(Block(first, last - first, 1))
    return blocks


def context_share(sizes):
    """(first, last) of the slots that this core attends: half of them where there are two cores."""
    if sizes.cores == 1:
        return (0, sizes.S_prior)
    half = ceiling_divide(ceiling_divide(sizes.S_prior, 2), PARTITIONS) * PARTITIONS
    half = min(half, sizes.S_prior)
    if sizes.core == 0:
        return (0, half)
    return (half, sizes.S_prior)


def sequences_at_once(sizes):
    """How many sequences share the columns of one set of scores: at most a PSUM bank."""
    return max(1, min(sizes.B, PSUM_BANK // (sizes.q * sizes.S)))


def attention(heads, values, K_cache, V_cache, prior_bias, active_bias, ring, constants, sizes):
    """Attends all sequences.

    Args:
      heads: [d, q + 2k, T]: queries and keys rotated, then values.
      values: [T, k, d], the new values as rows.
      K_cache: [B, k, d, S_max] in HBM.
      V_cache: [B, k, S_max, d] in HBM.
      prior_bias: [S_prior, B * q * S] in HBM, 0 where attended, else `MASKED`; None without slots.
      active_bias: [T, B * q * S] on chip, likewise for the new keys.
      ring: buffers for keys and values.
      constants: the launch's constant tiles.
      sizes: the launch's sizes.

    Returns:
      [d, q, T] in the compute dtype.
    """
    attended = nl.ndarray((sizes.d, sizes.q, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    at_once = sequences_at_once(sizes)
    first = 0
    while first < sizes.B:
        group = Group(first, min(at_once, sizes.B - first), sizes)
        state = SoftmaxState(sizes.d, group.columns)
        scale = 1.0 / sizes.d**0.5
        # The first core attends the new keys; the second starts from nothing attended.
        if sizes.core == 0:
            _attend_active(state, heads, values, active_bias, scale, group, constants, sizes)
        start, last = context_share(sizes)
        for block in context_blocks(start, last, group.chunks):
            _attend_block(
                state,
                block,
                heads,
                K_cache,
                V_cache,
                prior_bias,
                scale,
                group,
                ring,
                constants,
                sizes,
            )
        if state.empty:
            set_unattended(state)
        if sizes.cores > 1:
            _merge_cores(state, scale, group, sizes)
        _store(attended, state, group, sizes)
        first += at_once
    return attended


class Group(NKIObject):
    """Sequences first .. first + count, attended together; columns are (sequence, head, token)."""

    def __init__(self, first, count, sizes):
        self.first = first
        self.count = count
        self.width = sizes.q * sizes.S
        self.columns = count * self.width
        self.first_column = first * self.width
        self.per_bank = PSUM_BANK // self.columns
        self.chunks = min(MAX_BLOCK_CHUNKS, self.per_bank * PSUM_GROUP_BANKS)

    def place(self, chunk, sequence, kv_head, sizes):
        """(bank, first, last) of the scores of one sequence and KV head in the PSUM tile."""
        per_head = self.width // sizes.k
        first = (chunk % self.per_bank) * self.columns + sequence * self.width + kv_head * per_head
        return (chunk // self.per_bank, first, first + per_head)


def _queries(heads, group, sequence, kv_head, sizes):
    """[d, q / k, S]: the queries of one sequence that share a KV head."""
    shared = sizes.q // sizes.k
    token = (group.first + sequence) * sizes.S
    return heads[:, kv_head * shared : (kv_head + 1) * shared, token : token + sizes.S]


def _attend_active(state, heads, values, active_bias, scale, group, constants, sizes):
    """The new keys of all sequences at once; the bias masks those of other sequences."""
    T = sizes.T
    shared = sizes.q // sizes.k
    product = nl.ndarray((T, group.columns), dtype=nl.float32, buffer=nl.psum)
    by_head = product.reshape_dim(1, (group.count, sizes.k, shared * sizes.S))
    for kv_head in range(sizes.k):
        for sequence in range(group.count):
            nisa.nc_matmul(
                dst=by_head[:, sequence, kv_head, :],
                stationary=heads[:, sizes.q + kv_head, :],
                moving=_queries(heads, group, sequence, kv_head, sizes),
                accumulate=False,
            )
    scores = nl.ndarray((T, 1, group.columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=scores[:, 0, :],
        data1=product,
        data2=active_bias[:, group.first_column : group.first_column + group.columns],
        op=nl.add,
    )
    peaks = column_peaks(scores, constants)
    weights = exponentials(scores, peaks, scale, sizes.dtype)
    sums = column_sums(weights, constants)
    weighted = nl.ndarray((sizes.d, group.columns), dtype=nl.float32, buffer=nl.psum)
    out = weighted.reshape_dim(1, (group.count, sizes.k, shared * sizes.S))
    by_head = weights[:, 0, :].reshape_dim(1, (group.count, sizes.k, shared * sizes.S))
    for kv_head in range(sizes.k):
        nisa.nc_matmul(
            dst=out[:, :, kv_head, :],
            stationary=values[:, kv_head, :],
            moving=by_head[:, :, kv_head, :],
            accumulate=False,
        )
    merge(state, peaks, sums, weighted, scale)


def _attend_block(
    state, block, heads, K_cache, V_cache, prior_bias, scale, group, ring, constants, sizes
):
    """One block of cache slots, for all sequences of the group."""
    scores = _scores(block, heads, K_cache, prior_bias, group, ring, sizes)
    peaks = column_peaks(scores, constants)
    weights = exponentials(scores, peaks, scale, sizes.dtype)
    sums = column_sums(weights, constants)
    weighted = nl.ndarray((sizes.d, group.columns), dtype=nl.float32, buffer=nl.psum)
    per_head = group.width // sizes.k
    for sequence in range(group.count):
        for kv_head in range(sizes.k):
            rows = ring.take(sizes.dtype)[0 : block.rows, 0 : block.chunks * sizes.d]
            rows = rows.reshape_dim(1, (block.chunks, sizes.d))
            source = V_cache[group.first + sequence, kv_head]
            source = source[block.start : block.start + block.rows * block.chunks, :]
            nisa.dma_copy(dst=rows, src=source.reshape((block.rows, block.chunks, sizes.d)))
            first = sequence * group.width + kv_head * per_head
            for chunk in range(block.chunks):
                nisa.nc_matmul(
                    dst=weighted[:, first : first + per_head],
                    stationary=rows[:, chunk, :],
                    moving=weights[:, chunk, first : first + per_head],
                    accumulate=chunk > 0,
                )
    merge(state, peaks, sums, weighted, scale)


def _scores(block, heads, K_cache, prior_bias, group, ring, sizes):
    """Masked scores of a block, [rows, chunks, columns] f32."""
    chunks = block.chunks
    banks = ceiling_divide(chunks, group.per_bank)
    product = nl.ndarray((block.rows, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
    for sequence in range(group.count):
        for kv_head in range(sizes.k):
            slots = block.rows * chunks
            keys = ring.take(sizes.dtype)[0 : sizes.d, 0:slots]
            source = K_cache[group.first + sequence, kv_head]
            nisa.dma_copy(dst=keys, src=source[:, block.start : block.start + slots])
            by_chunk = keys.reshape_dim(1, (block.rows, chunks))
            for chunk in range(chunks):
                bank, first, last = group.place(chunk, sequence, kv_head, sizes)
                nisa.nc_matmul(
                    dst=product[:, bank, first:last],
                    stationary=by_chunk[:, :, chunk],
                    moving=_queries(heads, group, sequence, kv_head, sizes),
                    accumulate=False,
                )
    bias = nl.ndarray((block.rows, chunks, group.columns), dtype=prior_bias.dtype, buffer=nl.sbuf)
    rows = prior_bias[block.start : block.start + block.rows * chunks, :]
    rows = rows[:, group.first_column : group.first_column + group.columns]
    nisa.dma_copy(dst=bias, src=rows.reshape_dim(0, (block.rows, chunks)))
    scores = nl.ndarray((block.rows, chunks, group.columns), dtype=nl.float32, buffer=nl.sbuf)
    for bank in range(banks):
        first = bank * group.per_bank
        size = min(group.per_bank, chunks - first)
        part = product[:, bank, 0 : size * group.columns]
        nisa.tensor_tensor(
            dst=scores[:, first : first + size, :],
            data1=part.reshape_dim(1, (size, group.columns)),
            data2=bias[:, first : first + size, :],
            op=nl.add,
        )
    return scores


def _merge_cores(state, scale, group, sizes):
    """Adds what the other core attended."""
    received = nl.ndarray((PARTITIONS, 3, group.columns), dtype=nl.float32, buffer=nl.sbuf)
    swap(state.packed, received, sizes)
    merge(state, received[:, 0, :], received[:, 1, :], received[0 : sizes.d, 2, :], scale)


def _store(attended, state, group, sizes):
    """Normalises, and puts columns (sequence, head, token) at [d, head, (sequence, token)]."""
    part = nl.ndarray((sizes.d, group.columns), dtype=sizes.dtype, buffer=nl.sbuf)
    normalise(part, state)
    token = group.first * sizes.S
    target = attended[:, :, token : token + group.count * sizes.S]
    nisa.tensor_copy(
        dst=target.reshape_dim(2, (group.count, sizes.S)),
        src=part.reshape_dim(1, (group.count, sizes.q, sizes.S)).permute((0, 2, 1, 3)),
    )
