"""Constants of the kernel, and the sizes that follow from them alone.

This module does not import nki, so that `jax_tkg.lowering.kernel_limits` reads these numbers where
nki is absent.
"""

PARTITIONS = 128
"""Partitions of SBUF and PSUM."""

LAST_QUARTER = 96
"""The last partition with which an operand of an engine may begin, but for whole tiles. Rows that
load beside weights go there: a DMA engine serves eight partitions, and the first engine has others
to load."""

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

PARTED_BLOCKS = 2
"""Blocks of rows at the end of a product that load chunk by chunk, where something waits for it:
what is left to multiply after the last load is then least (modeled; more of them are slower)."""

HELD_BUFFERS = 3
"""Buffers for weights that load while a router chooses experts, at most, of what a launch leaves:
half of W_qkv of gpt-oss-120b at tp = 4 has 30 KiB per partition, in three loads."""

WIDE_SLOT_BYTES = 17408
"""Bytes per partition of a buffer, also of the ring, where there are such buffers. 23 and 12 chunks
of rows of 360 and 720 columns of 16 bits fit: W_gate of an expert of gpt-oss-120b loads at once on
eight ranks, and in two halves on four."""

PLACE_BYTES = 28672
"""Bytes per partition for the `Places` of a launch, where the rest leaves as many. Gains, biases
and scales of 8192 features take 4 to 15 KiB; 32 query and 8 key heads of 128 features, with 32
tokens, 3 KiB, and their new values by token 2 KiB."""

STORED_TURNS = 2
"""Layers whose heads and values have places of their own at the same time."""

LEAST_PIECE_BYTES = 2048
"""Bytes per partition of a transfer below which it is inefficient (NKI guideline to avoid
under-utilizing DMA bandwidth)."""

GROUP_COLUMNS = 128
"""Queries attended together, unless one sequence has more: merging blocks costs work per column."""

READ_TWICE_BYTES = 1 << 20
"""Keys and values of a layer with experts, of one sequence, that each of two cores reads at most:
half of them takes a core 1.5 us (modeled), and merging softmaxes 3."""

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


def feature_chunks(I):  # noqa: E741 - the letter of the MLP's intermediate size
    """Chunks of equal size of an MLP's I features: the fewest that fit on the partitions."""
    if I == 0:
        return 0
    chunks = ceiling_divide(I, PARTITIONS)
    while I % chunks > 0:
        chunks += 1
    return chunks


def adds_experts_in_psum(chunks, T):
    """Whether the sum of experts, of `chunks` chunks of features, stays in PSUM: in two banks.

    The products of experts, and of the router, have the other six.
    """
    return ceiling_divide(chunks, PSUM_BANK // T) <= EXPERT_SUM_BANKS
