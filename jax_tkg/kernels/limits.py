"""Constants of the kernel, and what follows from them for its memory.

This module does not import nki, so that `jax_tkg.lowering.kernel_limits` reads these numbers where
nki is absent.
"""

PARTITIONS = 128
"""Partitions of SBUF and PSUM."""

MAX_TOKENS = 2 * PARTITIONS
"""New tokens of a launch at most: a head of 256 features, in two chunks, of all tokens is then one
product in a PSUM bank."""

PSUM_BANK = 512
"""float32 elements in one PSUM bank of one partition (2 KiB); a matmul writes within one bank."""

PSUM_GROUP_BANKS = 4
"""Banks that one accumulation uses: half of PSUM, so that the next can start while it is read."""

EXPERT_SUM_BANKS = 2
"""Banks of PSUM that the sum of a layer's experts uses at most."""

LISTED_AT_ONCE = 32
"""Experts that are listed together, but for the first eight of a layer, with which it begins."""

NARROW_PIECES = (64, 32)
"""Features of an expert that fill no tile of 128 come in pieces of these sizes: an access of as
many partitions may begin at the next (architecture guide, cross-partition connectivity)."""

NARROW_PRODUCT_BANKS = 2
"""Banks of PSUM for gate and up of experts in tiles that they share, at most: the next ones' are
multiplied while they are read out."""

RING_SLOTS = 6
"""Buffers through which weights and caches stream."""

RING_SLOT_BYTES = 16384
"""Bytes per partition of one of them."""

RING_BYTES = RING_SLOTS * RING_SLOT_BYTES
"""Bytes per partition of all of them: 96 KiB."""

LEAST_PIECE_BYTES = 2048
"""Bytes per partition of a transfer below which it is inefficient (NKI guideline to avoid
under-utilizing DMA bandwidth)."""

GROUP_COLUMNS = 128
"""Queries attended together, unless one sequence has more: merging blocks costs work per column."""

MAX_RUN_CHUNKS = 64
"""Chunks of a segment of slots in blocks at most; values of 128 features then fill a buffer."""

PIECE_ELEMENTS = 512
"""Elements per partition of the pieces in which the residual stream moves from engine to engine."""

FREE_STRIDE_BYTES = 16
"""Bytes from element to element that an engine reads at its full rate; on NeuronCore-v2 larger ones
halve it (Trainium/Inferentia2 architecture guide, accessing SBUF and PSUM)."""

TERMS = 2
"""Values of float8_e4m3, of 4 bits each, whose sum is a bfloat16 of 8 bits."""

HIGH_UNIT = 32.0
"""What the first of them is multiplied by: of 2**12 at most it is then 128 or less, and so is what
its rounding leaves for the second; float8_e4m3 ends at 240."""

FREE_COLUMNS = 64
"""Columns of a moving operand that take the Tensor Engine no longer than one (NKI API of Neuron SDK
2.26.1, nki.isa, estimated instruction cost of nc_matmul)."""

ROW_STRIDE_BYTES = 16
"""What the stride from row to row of an operand in double rows is a multiple of
(aws-neuron/nki-library, output_projection_tkg, "double row stride access")."""

LEAST_SAVED_CYCLES = 4096
"""Cycles of the Tensor Engine that double rows must save, so that splitting the activation is worth
it: 1.7 to 3.4 us; to split, add up and scale takes the Vector Engine about 2."""

UNIT = 2.0**-10
"""One over what a token's largest feature becomes, if that is an even power of two."""

SHORT_EXPONENT_PAIRS = 32512
"""The bits of a bfloat16's exponent but the lowest, 0x7F00."""

EXPONENT_PAIRS = 2130706432
"""The bits of a float32's exponent but the lowest, 0x7F000000."""

MASK_ROOM_BYTES = 118000
"""Bytes per partition for masks and the activations of the largest stage: what constants, ring,
tables and residual stream leave, if these last two take no more than `TABLE_ROOM_BYTES`."""

TABLE_ROOM_BYTES = 10240
"""Bytes per partition of tables and the residual stream that leave masks their whole room."""

CONSTANT_BYTES = 2 * PARTITIONS * 4 + 3 * PARTITIONS * 4 + PARTITIONS * 2
"""Bytes per partition of the constant tiles while they are made: ones and identity, and the three
steps of the rotation, all float32, and 16-bit ones."""

SOFTMAX_TILES = 20
"""float32 tiles of one element per query that the softmax holds at most: peaks, sums and weighted
values of the state, of a block and of the other core, and the factors that merge them."""

SOFTMAX_VALUE_TILES = 6
"""Those of them that hold weighted values, once for each chunk of a head."""

GPSIMD_ELEMENTS = 256
"""Elements per partition that the GpSimd Engine's own DMA swaps at most, of any dtype (NKI API,
nki.isa.sendrecv)."""

GPSIMD_SWAPS = 16
"""Swaps of that size for one tile, at most; the DMA engines swap larger tiles."""

GPSIMD_SWAPS_AT_LEISURE = 2
"""The same for tiles that no stage waits for yet."""

DMA_ELEMENTS = 4096
"""Elements per partition that the DMA engines swap at once."""

LEAST_SEARCHED = 8
"""Elements per partition that the Vector Engine's search instructions need at least (NKI API,
nki.isa.max8)."""

MAX_EXPERTS = PSUM_BANK
"""Experts of all ranks at most: counts of their users are one product in a PSUM bank."""

LOWEST_LOGIT = -3.0e38
"""What NaN and every lower logit count as; `jax_tkg.reference.candidates.LOWEST`."""

NO_LOGIT = -3.3e38
"""Lower than any logit: where there is none."""

SEARCHED_AT_ONCE = 16384
"""Elements per partition that the Vector Engine's search instructions take at most (NKI API,
nki.isa.max8)."""

SEGMENT_TILES = 32
"""Tiles of 128 columns of the head whose weights load together, in runs of 8 KiB in HBM."""

NO_EXPERT = 2**20
"""Number of no expert: beyond every tensor of experts, so that its loads are skipped; exact in
float32."""


def ceiling_divide(numerator, denominator):
    """The quotient, rounded up."""
    return (numerator + denominator - 1) // denominator


def tiles_of_a_product(columns, width, row_bytes):
    """Tiles of `width` columns of a weight that are multiplied together.

    Their products, each of `columns` for its tokens or their terms, share the banks of one
    accumulation. The rows that are multiplied at once, `row_bytes` for each column of the weight,
    fit in a buffer of the ring.
    """
    return min(PSUM_BANK // columns * PSUM_GROUP_BANKS, RING_SLOT_BYTES // (width * row_bytes))


def saved_cycles(T):
    """Cycles of the Tensor Engine that double rows save for two rows of a tile and T tokens.

    A product takes it as many as there are columns, at least `FREE_COLUMNS`. Double rows are one
    product of all terms, single rows two of the tokens.
    """
    return 2 * max(FREE_COLUMNS, T) - max(FREE_COLUMNS, TERMS * T)


def term_row_bytes(T):
    """Bytes from chunk to chunk of the terms of T tokens."""
    return ceiling_divide(TERMS * T, ROW_STRIDE_BYTES) * ROW_STRIDE_BYTES


def term_bytes(chunks, T, item):
    """Bytes per partition to split a tile [128, chunks, T], at most; 0 where tokens are not split.

    The terms; the magnitudes, and what is scaled, `item` bytes an element; scales.
    """
    if item != 2 or saved_cycles(T) <= 0:
        return 0
    return chunks * (term_row_bytes(T) + 2 * item * T) + 18 * T


def feature_chunks(I):  # noqa: E741 - the letter of the MLP's intermediate size
    """Chunks of equal size of an MLP's I features: the fewest that fit on the partitions."""
    if I == 0:
        return 0
    chunks = ceiling_divide(I, PARTITIONS)
    while I % chunks > 0:
        chunks += 1
    return chunks


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
    of_core = slots_of_a_core(B, slots, 2)
    at_once, _ = attended_at_once(own, queries, of_core, d, item, block_len, ranks)
    groups = []
    for part in range(B // own):
        done = 0
        while done < own:
            groups.append((part * own + done, min(at_once, own - done)))
            done += at_once
    return groups


def slots_of_a_core(B, slots, cores):
    """How many of each sequence's cache slots a core attends: half if two cores divide them."""
    if cores == 1 or divides_sequences(B, cores):
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


def expert_bytes(hidden, whole, I, E, T, item):  # noqa: E741
    """Bytes per partition of the router and the experts of a layer, at most; 0 without experts.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
      whole: the same of all features.
      I: features of an expert.
      E: experts of all ranks.
      T: tokens.
      item: bytes per element of the compute dtype.
    """
    if E == 0:
        return 0
    searched = max(E, LEAST_SEARCHED)
    chunks = ceiling_divide(E, PARTITIONS)
    # The input, also as float32; logits, values, scores, what is left of them twice, what is
    # chosen, and its weights; these by expert, the counts of users; all experts listed, or twice
    # some of them; two batches of eight.
    router = (4 + item) * hidden + 4 * (8 * searched + 2 * chunks * T) + 4 * 8 * (2 + 6 * T)
    router += 21 * max(searched, 2 * LISTED_AT_ONCE)
    # The input of all features, once more each for gate and up where it is clamped, the sum, a
    # result and the sum with it; what the cores add of each other's.
    features = 3 * item * whole + 12 * whole + 12 * hidden
    mlp = feature_chunks(I) * T
    part = min(mlp, PSUM_GROUP_BANKS * PSUM_BANK)
    # Two experts at a time: gate, its sigmoid and up, and the activated product, also clamped;
    # products as they are read out of PSUM; scales and biases of two lists of eight.
    running = 3 * item * mlp + 12 * part + 8 * PSUM_BANK
    running += 2 * 8 * 4 * (2 * whole // T + 4 * feature_chunks(I))
    # Rows of biases of W_down, of two lists too.
    running += 2 * item * PARTITIONS * (whole // T)
    terms = term_bytes(whole // T, T, item) + 2 * term_bytes(feature_chunks(I), T, item)
    return router + features + running + terms


def adds_experts_in_psum(chunks, T):
    """Whether the sum of experts, of `chunks` chunks of features, stays in PSUM: in two banks.

    The products of experts, and of the router, have the other six.
    """
    return ceiling_divide(chunks, PSUM_BANK // T) <= EXPERT_SUM_BANKS


def divided_sums_bytes(hidden):
    """Bytes per partition of sums over the rows of W_down that a core has, at most.

    Of both cores' features, where their sums are accumulated together.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
    """
    if 2 * hidden > PSUM_BANK * PSUM_GROUP_BANKS:
        return 0
    return 2 * 4 * hidden


def table_bytes(B, S, q, kinds, E):
    """Bytes per partition of what stays on chip beside masks of the cache slots, at most.

    Of each kind of layers the cosines and sines, the mask of new keys, ranges of slots and write
    offsets; with experts their order.

    Args:
      B: sequences.
      S: new tokens of each.
      q: query heads.
      kinds: kinds of layers.
      E: experts of all ranks, or 0.
    """
    tables = kinds * (5 * 4 * B * S + B * q * S + 4 * B + 8)
    if E > 0:
        tables += 4 * (max(E, LEAST_SEARCHED) + 8)
    return tables


def mask_room_bytes(hidden, hidden_chunks, mlp, item, experts=0, terms=0, tables=0):
    """Bytes per partition for masks that stay on chip, beside normalization and MLP.

    Args:
      hidden: elements per partition of this core's share of the residual stream.
      hidden_chunks: chunks of 128 features of H.
      mlp: elements per partition of the MLP's product.
      item: bytes per element of the compute dtype.
      experts: `expert_bytes` of layers that have some.
      terms: `term_bytes` of the input of gate and up, and of that of down.
      tables: `table_bytes` of all kinds of layers.
    """
    norm = (8 + 2 * item) * hidden + 2 * item * hidden_chunks
    part = min(mlp, PSUM_GROUP_BANKS * PSUM_BANK)
    feed_forward = (3 * item + 4) * hidden + 8 * part + 2 * item * mlp + terms
    feed_forward += divided_sums_bytes(hidden)
    if experts > 0:
        # A shared expert's result is there, and its MLP runs after the router.
        feed_forward += experts
    room = MASK_ROOM_BYTES - max(0, tables + item * hidden - TABLE_ROOM_BYTES)
    return room - max(norm, feed_forward)
