"""How the kernel divides the head's columns, sequences and cache slots.

This module does not import nki, so that `jax_tkg.lowering` divides them likewise where nki is
absent.
"""

from .limits import (
    GROUP_COLUMNS,
    LEAST_SEARCHED,
    MAX_RUN_CHUNKS,
    PARTITIONS,
    PSUM_BANK,
    PSUM_GROUP_BANKS,
    READ_TWICE_BYTES,
    RING_SLOT_BYTES,
    SEGMENT_TILES,
    ceiling_divide,
)


def head_columns(V, cores, core):
    """(first, count) of the columns of the head that a core multiplies, of V columns."""
    if cores == 1:
        return (0, V)
    half = ceiling_divide(V, 2)
    if V >= 2 * PARTITIONS:
        half = ceiling_divide(ceiling_divide(V, PARTITIONS), 2) * PARTITIONS
    if core == 0:
        return (0, half)
    return (half, V - half)


def head_segments(first, count):
    """(column, tiles, width, skipped) of the parts in which a core multiplies its columns.

    Of whole tiles of `width` columns from `column`. Where the columns are no whole tiles, the last
    part begins with `skipped` columns of the part before.
    """
    if count == 0:
        return []
    if count < PARTITIONS:
        return [(first, 1, count, 0)]
    whole = count // PARTITIONS
    rest = count % PARTITIONS
    number = ceiling_divide(whole, SEGMENT_TILES)
    segments = []
    done = 0
    for index in range(number):
        last = (index + 1) * whole // number
        tiles = last - done
        if rest > 0 and done > 0 and last == whole:
            start = first + count - (tiles + 1) * PARTITIONS
            segments.append((start, tiles + 1, PARTITIONS, PARTITIONS - rest))
            rest = 0
        else:
            segments.append((first + done * PARTITIONS, tiles, PARTITIONS, 0))
        done = last
    if rest > 0:
        segments.append((first + count - PARTITIONS, 1, PARTITIONS, PARTITIONS - rest))
    return segments


def candidates_found(V, cores, count):
    """Candidates that each core lists at most, of `count` wanted: some of each PSUM bank."""
    most = 0
    for core in range(cores):
        first, own = head_columns(V, cores, core)
        pieces = 0
        for segment in head_segments(first, own):
            pieces += ceiling_divide(segment[1] * segment[2], PSUM_BANK)
        most = max(most, pieces)
    return most * ceiling_divide(count, LEAST_SEARCHED) * LEAST_SEARCHED


def head_chunks(d):
    """Chunks of a head of d features: 1, or 2 halves if they do not fit on the partitions."""
    return ceiling_divide(d, PARTITIONS)


def chunks_of_a_run(block_len):
    """Most chunks of a segment of slots in blocks: a power of two that divides `block_len`.

    So a partition's slots, as many as there are chunks, are all in one block.
    """
    chunks = 1
    while chunks < MAX_RUN_CHUNKS and block_len % (2 * chunks) == 0:
        chunks = 2 * chunks
    return chunks


def divides_sequences(B, cores):
    """Whether each of two cores attends half of the sequences, and not half of their slots.

    Then it reads twice as many neighboring slots at once, and has the whole softmax.
    """
    return cores > 1 and B % cores == 0


def sequence_blocks(B, S, cores):
    """(first, count) of blocks of sequences whose S new tokens each take at most 128 partitions.

    One block if all fit. Else blocks of about equal size; where two cores divide the sequences,
    each core's are blocks of their own.
    """
    if B * S <= PARTITIONS:
        return [(0, B)]
    own = sequences_of_a_core(B, cores)
    number = ceiling_divide(own, PARTITIONS // S)
    blocks = []
    for part in range(B // own):
        for index in range(number):
            first = index * own // number
            last = (index + 1) * own // number
            blocks.append((part * own + first, last - first))
    return blocks


def sequences_of_a_core(B, cores):
    """How many of B sequences a core attends."""
    if divides_sequences(B, cores):
        return B // cores
    return B


def mask_groups(B, queries, slots, d, item, block_len, ranks):
    """(first, count) of sequences whose masks of cache slots lie together in HBM.

    Those that two cores attend together: what a partition loads of their mask is then in one piece.
    Other divisions of the sequences load several pieces. The arguments are those of
    `attended_at_once`.
    """
    own = sequences_of_a_core(B, 2)
    # One sequence, of which the cores may attend more slots twice, is one group in any case.
    of_core = slots_of_a_core(B, slots, 2)
    at_once, _ = attended_at_once(own, queries, of_core, d, item, block_len, ranks)
    groups = []
    for part in range(B // own):
        done = 0
        while done < own:
            groups.append((part * own + done, min(at_once, own - done)))
            done += at_once
    return groups


def slots_attended_twice(B, k, d, item, experts):
    """The most cache slots that each of two cores attends for a sequence that both attend.

    Of more, each attends half, and they swap and merge softmaxes, which takes 3 us (modeled). With
    experts, HBM rests while one sequence's router chooses, so that both cores have time to read all
    slots.

    Args:
      B: sequences.
      k: KV heads.
      d: head size.
      item: bytes per element of keys and values as they are multiplied.
      experts: E, or 0.
    """
    if experts > 0 and B == 1:
        return max(PARTITIONS, READ_TWICE_BYTES // (2 * k * d * item))
    return PARTITIONS


def divides_slots(B, slots, cores, twice=PARTITIONS):
    """Whether each of two cores attends half of every sequence's cache slots.

    `twice` is what `slots_attended_twice` says.
    """
    return cores > 1 and not divides_sequences(B, cores) and slots > twice


def slots_of_a_core(B, slots, cores, twice=PARTITIONS):
    """How many of each sequence's cache slots a core attends; arguments as in `divides_slots`."""
    if not divides_slots(B, slots, cores, twice):
        return slots
    return min(slots, ceiling_divide(ceiling_divide(slots, 2), PARTITIONS) * PARTITIONS)


def stacks_heads(d):
    """Whether two heads' features, or a head's of other slots, fill the partitions.

    A transfer to or from 64 partitions alone would have half of the DMA engines.
    """
    return 2 * d == PARTITIONS


def attended_at_once(B, queries, slots, d, item, block_len, ranks):
    """How many sequences are attended together, and how many chunks of 128 of their keys.

    Blocks of keys are as long as a buffer of the ring and half of PSUM allow, so that HBM is read
    in long runs, and of about equal length. Then as many sequences as PSUM allows. Where ranks
    share out the context it is the other way round, for each group of sequences costs a collective.

    Args:
      B: sequences.
      queries: q * S columns of each.
      slots: of each in the cache.
      d: head size.
      item: bytes per element of keys and values as they are multiplied.
      block_len: slots of a block of the caches, or 0.
      ranks: ranks that share out the context.

    Returns:
      (sequences, chunks): new keys may need one of the chunks.
    """
    chunk_bytes = head_chunks(d) * PARTITIONS * item
    if stacks_heads(d):
        chunk_bytes = chunk_bytes // 2
    sequences = max(1, min(B, GROUP_COLUMNS // queries))
    columns = queries
    if ranks > 1:
        columns = sequences * queries
    most = min(RING_SLOT_BYTES // chunk_bytes, scores_at_once(columns))
    total = ceiling_divide(slots, PARTITIONS) + 1
    chunks = ceiling_divide(total, ceiling_divide(total, most))
    if block_len > 0:
        # Whole runs.
        run = chunks_of_a_run(block_len)
        chunks = min(most, ceiling_divide(chunks, run) * run)
    while sequences > 1 and scores_at_once(sequences * queries) < chunks:
        sequences -= 1
    return (sequences, chunks)


def scores_at_once(columns):
    """Chunks of keys whose scores for `columns` queries fit in half of PSUM."""
    return PSUM_BANK // columns * PSUM_GROUP_BANKS
