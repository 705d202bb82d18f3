"""Attention of the new tokens to the cache as it was passed in, and to each other.

Scores are transposed: key slots on partitions, (sequence, query head, token) in columns. So the
weights that the softmax gives are at once the moving operand of the product with V.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .exchange import swap
from .linear import bytes_of
from .sizes import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS, ceiling_divide
from .softmax import (
    MASKED,
    SoftmaxState,
    column_peaks,
    column_sums,
    exponentials,
    merge,
    merge_packed,
    normalise,
    set_unattended,
)

MAX_BLOCK_CHUNKS = 16
"""Chunks of 128 slots attended at once: 2048 slots, 4 KiB of bf16 per partition and DMA."""


class Segment(NKIObject):
    """Cache slots start .. start + rows * chunks; row p of chunk c is slot start + p * chunks + c.

    So each partition reads `chunks` consecutive rows of V, in one piece. Its first chunk is the
    block's chunk `first_chunk`.
    """

    def __init__(self, start, rows, chunks, first_chunk):
        self.start = start
        self.rows = rows
        self.chunks = chunks
        self.first_chunk = first_chunk
        self.slots = rows * chunks


class Block(NKIObject):
    """Keys attended at once, in `chunks` chunks of at most `rows`.

    Attributes:
      segments: of cache slots; may be none.
      active_rows: new keys, in the last chunk; 0 for none.
      rows, chunks: of the block's scores.
    """

    def __init__(self, segments, active_rows):
        self.segments = segments
        self.active_rows = active_rows
        self.rows = active_rows
        self.chunks = 0
        for segment in segments:
            self.rows = max(self.rows, segment.rows)
            self.chunks = segment.first_chunk + segment.chunks
        self.active_chunk = self.chunks
        if active_rows > 0:
            self.chunks += 1


def context_blocks(first, last, chunks, active_rows):
    """The blocks of at most 128 x `chunks` keys that cover the slots first .. last.

    The new keys, `active_rows`, are in the last block; 0 for none.
    """
    blocks = []
    while last > first or active_rows > 0:
        whole = min(chunks, (last - first) // PARTITIONS)
        segments = []
        if whole > 0:
            segments.append(Segment(first, PARTITIONS, whole, 0))
            first += whole * PARTITIONS
        rest = last - first
        if whole < chunks and rest > 0:
            segments.append(Segment(first, rest, 1, whole))
            first = last
            whole += 1
        # In a full block there is no room for the new keys.
        added = 0
        if first == last and whole < chunks:
            added = active_rows
            active_rows = 0
        blocks.append(Block(segments, added))
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


def key_blocks(group, sizes):
    """The blocks of keys that this core attends for a group."""
    # The first core attends the new keys.
    active_rows = 0
    if sizes.core == 0:
        active_rows = sizes.T
    first, last = context_share(sizes)
    return context_blocks(first, last, group.chunks, active_rows)


def sequence_groups(sizes):
    """The groups of sequences that are attended together."""
    at_once = sequences_at_once(sizes)
    groups = []
    first = 0
    while first < sizes.B:
        groups.append(Group(first, min(at_once, sizes.B - first), sizes))
        first += at_once
    return groups


RESIDENT_BIAS_BYTES = 40960
"""Masks of all blocks stay on chip over all layers up to this many bytes of a partition."""

RESIDENT_BIAS_TOKENS = 64
"""Not with more tokens, which need the room."""


class PriorBias(NKIObject):
    """What masks the cache slots: in HBM, and on chip where it is small enough to stay there.

    Attributes:
      source: [S_prior, B * q * S] in HBM, 0 where attended, else `MASKED`; None without slots.
      tiles: per group, block and segment [rows, chunks, columns], or None.
    """

    def __init__(self, source, sizes):
        self.source = source
        self.tiles = None
        first, last = context_share(sizes)
        width = 2 * sizes.B * sizes.q * sizes.S
        needed = (ceiling_divide(last - first, PARTITIONS) + 1) * width
        if needed <= RESIDENT_BIAS_BYTES and sizes.T <= RESIDENT_BIAS_TOKENS:
            tiles = []
            for group in sequence_groups(sizes):
                tiles.append(self._of_group(group, sizes))
            self.tiles = tiles

    def _of_group(self, group, sizes):
        tiles = []
        for block in key_blocks(group, sizes):
            of_block = []
            for segment in block.segments:
                of_block.append(_load_bias(self.source, segment, group))
            tiles.append(of_block)
        return tiles

    def get(self, group_number, block_number, segment_number, segment, group):
        """The bias of a segment, on chip."""
        if self.tiles == None:
            return _load_bias(self.source, segment, group)
        return self.tiles[group_number][block_number][segment_number]


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
      prior_bias: the launch's `PriorBias`.
      active_bias: [T, B * q * S] on chip, 0 where a new key is attended, else `MASKED`.
      ring: buffers for keys and values.
      constants: the launch's constant tiles.
      sizes: the launch's sizes.

    Returns:
      [d, q, T] in the compute dtype.
    """
    attended = nl.ndarray((sizes.d, sizes.q, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    groups = sequence_groups(sizes)
    scale = 1.0 / sizes.d**0.5
    for number in range(len(groups)):
        group = groups[number]
        state = SoftmaxState(sizes.d, group.columns)
        blocks = key_blocks(group, sizes)
        for index in range(len(blocks)):
            block = blocks[index]
            bias = []
            for part in range(len(block.segments)):
                bias.append(prior_bias.get(number, index, part, block.segments[part], group))
            scores = _scores(block, heads, K_cache, bias, active_bias, group, ring, sizes)
            _attend(state, block, scores, values, V_cache, scale, group, ring, constants, sizes)
        if state.empty:
            set_unattended(state)
        if sizes.cores > 1:
            _merge_cores(state, scale, group, sizes)
        _store(attended, state, group, sizes)
    return attended


class Group(NKIObject):
    """Sequences first .. first + count, attended together; columns are (sequence, head, token)."""

    def __init__(self, first, count, sizes):
        self.first = first
        self.count = count
        self.width = sizes.q * sizes.S
        # Columns of a sequence and KV head.
        self.per_pair = self.width // sizes.k
        self.columns = count * self.width
        self.first_column = first * self.width
        self.per_bank = PSUM_BANK // self.columns
        self.chunks = min(MAX_BLOCK_CHUNKS, self.per_bank * PSUM_GROUP_BANKS)

    def place(self, chunk, pair):
        """(bank, first column) in the PSUM tile of the scores of a sequence and KV head."""
        first = (chunk % self.per_bank) * self.columns + pair * self.per_pair
        return (chunk // self.per_bank, first)


def _queries(heads, group, sequence, kv_head, sizes):
    """[d, q / k, S]: the queries of one sequence that share a KV head."""
    shared = sizes.q // sizes.k
    token = (group.first + sequence) * sizes.S
    return heads[:, kv_head * shared : (kv_head + 1) * shared, token : token + sizes.S]


def _attend(state, block, scores, values, V_cache, scale, group, ring, constants, sizes):
    """Adds the values of a block, weighted by the softmax of its scores."""
    peaks = column_peaks(scores, constants)
    weights = exponentials(scores, peaks, scale, sizes.dtype)
    sums = column_sums(weights, constants)
    weighted = nl.ndarray((sizes.d, group.columns), dtype=nl.float32, buffer=nl.psum)
    for pairs in _pairs_at_once(block, group, ring, sizes):
        loaded = []
        for segment in block.segments:
            loaded.append(_load_values(V_cache, segment, pairs, group, ring, sizes))
        for pair in range(pairs.first, pairs.first + pairs.count):
            first = pair * group.per_pair
            out = weighted[:, first : first + group.per_pair]
            own = weights[:, :, first : first + group.per_pair]
            for index in range(len(loaded)):
                segment = block.segments[index]
                for chunk in range(segment.chunks):
                    place = segment.first_chunk + chunk
                    nisa.nc_matmul(
                        dst=out,
                        stationary=loaded[index][:, pair - pairs.first, chunk, :],
                        moving=own[0 : segment.rows, place, :],
                        accumulate=place > 0,
                    )
            if block.active_rows > 0:
                nisa.nc_matmul(
                    dst=out,
                    stationary=values[:, pair % sizes.k, :],
                    moving=own[0 : block.active_rows, block.active_chunk, :],
                    accumulate=block.active_chunk > 0,
                )
    merge(state, peaks, sums, weighted, scale)


class Pairs(NKIObject):
    """Pairs (sequence, KV head) first .. first + count of a group, whose caches load at once."""

    def __init__(self, first, count):
        self.first = first
        self.count = count


def _pairs_at_once(block, group, ring, sizes):
    """All pairs of a group, as many at a time as a buffer holds the keys or the values of."""
    slots = 0
    values = 0
    for segment in block.segments:
        slots = max(slots, segment.slots)
        values = max(values, segment.chunks * sizes.d)
    item = bytes_of(sizes.dtype)
    total = group.count * sizes.k
    at_once = total
    if slots > 0:
        at_once = max(1, ring.slot_bytes // (item * max(slots, values)))
    found = []
    first = 0
    while first < total:
        found.append(Pairs(first, min(at_once, total - first)))
        first += at_once
    return found


def _caches_of(cache, pairs, group, sizes):
    """[count, ...]: the pairs' caches out of [B, k, ...], each pair's after the other's."""
    by_pair = cache.reshape((sizes.B * sizes.k, cache.shape[2], cache.shape[3]))
    first = group.first * sizes.k + pairs.first
    return by_pair[first : first + pairs.count]


def _load_keys(K_cache, segment, pairs, group, ring, sizes):
    """[d, count, slots]: the keys of a segment's slots."""
    columns = pairs.count * segment.slots
    keys = ring.take(sizes.dtype)[0 : sizes.d, 0:columns]
    keys = keys.reshape_dim(1, (pairs.count, segment.slots))
    source = _caches_of(K_cache, pairs, group, sizes)
    source = source[:, :, segment.start : segment.start + segment.slots]
    nisa.dma_copy(dst=keys, src=source.permute((1, 0, 2)))
    return keys


def _load_values(V_cache, segment, pairs, group, ring, sizes):
    """[rows, count, chunks, d]: the values of a segment's slots."""
    width = segment.chunks * sizes.d
    values = ring.take(sizes.dtype)[0 : segment.rows, 0 : pairs.count * width]
    values = values.reshape_dim(1, (pairs.count, width))
    source = _caches_of(V_cache, pairs, group, sizes)
    source = source[:, segment.start : segment.start + segment.slots, :]
    source = source.reshape_dim(1, (segment.rows, segment.chunks))
    source = source.permute((1, 0, 2, 3))
    nisa.dma_copy(dst=values.reshape_dim(2, (segment.chunks, sizes.d)), src=source)
    return values.reshape_dim(2, (segment.chunks, sizes.d))


def _scores(block, heads, K_cache, bias, active_bias, group, ring, sizes):
    """Masked scores of a block, [rows, chunks, columns] f32; `bias` per segment."""
    banks = ceiling_divide(block.chunks, group.per_bank)
    product = nl.ndarray((block.rows, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
    for pairs in _pairs_at_once(block, group, ring, sizes):
        for segment in block.segments:
            keys = _load_keys(K_cache, segment, pairs, group, ring, sizes)
            for pair in range(pairs.first, pairs.first + pairs.count):
                by_chunk = keys[:, pair - pairs.first, :]
                by_chunk = by_chunk.reshape_dim(1, (segment.rows, segment.chunks))
                for chunk in range(segment.chunks):
                    stationary = by_chunk[:, :, chunk]
                    place = segment.first_chunk + chunk
                    _multiply_keys(product, stationary, heads, place, pair, group, sizes)
    if block.active_rows > 0:
        for pair in range(group.count * sizes.k):
            # The new keys of all sequences: the bias masks those of others.
            stationary = heads[:, sizes.q + pair % sizes.k, :]
            _multiply_keys(product, stationary, heads, block.active_chunk, pair, group, sizes)
    shape = (block.rows, block.chunks, group.columns)
    scores = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    for index in range(len(bias)):
        segment = block.segments[index]
        if segment.rows < block.rows:
            nisa.memset(dst=scores[:, segment.first_chunk, :], value=MASKED)
        _add_bias(scores, product, bias[index], segment.first_chunk, group)
    if block.active_rows > 0:
        if block.active_rows < block.rows:
            nisa.memset(dst=scores[:, block.active_chunk, :], value=MASKED)
        own = active_bias[:, group.first_column : group.first_column + group.columns]
        _add_bias(scores, product, own.expand_dim(1), block.active_chunk, group)
    return scores


def _multiply_keys(product, keys, heads, chunk, pair, group, sizes):
    """The products of keys [d, rows] with the queries of a sequence and KV head, in PSUM."""
    bank, first = group.place(chunk, pair)
    nisa.nc_matmul(
        dst=product[0 : keys.shape[1], bank, first : first + group.per_pair],
        stationary=keys,
        moving=_queries(heads, group, pair // sizes.k, pair % sizes.k, sizes),
        accumulate=False,
    )


def _load_bias(prior_bias, segment, group):
    """[rows, chunks, columns]: what masks the scores of a segment."""
    shape = (segment.rows, segment.chunks, group.columns)
    bias = nl.ndarray(shape, dtype=prior_bias.dtype, buffer=nl.sbuf)
    rows = prior_bias[segment.start : segment.start + segment.slots, :]
    rows = rows[:, group.first_column : group.first_column + group.columns]
    nisa.dma_copy(dst=bias, src=rows.reshape_dim(0, (segment.rows, segment.chunks)))
    return bias


def _add_bias(scores, product, bias, first_chunk, group):
    """Writes the scores of chunks: their products in PSUM, and bias [rows, chunks, columns]."""
    rows = bias.shape[0]
    chunks = bias.shape[1]
    done = 0
    while done < chunks:
        # As many chunks as lie in one bank.
        first = first_chunk + done
        place = first % group.per_bank
        count = min(group.per_bank - place, chunks - done)
        part = product[0:rows, first // group.per_bank, :]
        part = part[:, place * group.columns : (place + count) * group.columns]
        nisa.tensor_tensor(
            dst=scores[0:rows, first : first + count, :],
            data1=part.reshape_dim(1, (count, group.columns)),
            data2=bias[:, done : done + count, :],
            op=nl.add,
        )
        done += count


def _merge_cores(state, scale, group, sizes):
    """Adds what the other core attended."""
    received = nl.ndarray((PARTITIONS, 3, group.columns), dtype=nl.float32, buffer=nl.sbuf)
    swap(state.packed, received, sizes)
    merge_packed(state, received, scale)


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
