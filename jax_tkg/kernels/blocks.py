"""Caches in blocks: loading the blocks of each sequence, which are known at run time only."""

import nki.isa as nisa
from nki.language import NKIObject


class CacheBlocks(NKIObject):
    """A layer's caches in blocks, and which blocks each sequence has.

    Attributes:
      keys: [blocks, k * d * block_len] in HBM; blocks of all layers if the layers have one tensor.
      values: the same of the values.
      first: the layer's first block, if `numbers` are relative to the layer; else 0.
      numbers: [1, B * n] uint32 on chip, the block of each entry; 2**32 - 1 for none.
    """

    def __init__(self, K_whole, V_whole, number, numbers, sizes):
        """The caches of layer `number` of tensors that hold one layer or all."""
        elements = sizes.k * sizes.d * sizes.block_len
        self.keys = _rows_of(K_whole, elements)
        self.values = _rows_of(V_whole, elements)
        self.first = number * sizes.cache_rows
        self.numbers = numbers

    def load_keys(self, dst, segment, pairs, group, sizes):
        """Fills dst [rows, pairs, chunks, slots] with a segment's keys, a block at a time.

        The slots of an entry without a block keep what they hold: no byte is read for them.
        """
        rows = sizes.head_rows
        block_len = sizes.block_len
        for piece in _pieces(segment, sizes):
            for run in _runs(pairs, group, sizes):
                entry = run.sequence * sizes.n + piece.entry
                first = self.first * sizes.k + run.head
                nisa.dma_copy(
                    dst=dst[
                        :,
                        run.first : run.first + run.count,
                        :,
                        piece.place : piece.place + piece.count,
                    ],
                    src=self.keys.ap(
                        pattern=[
                            [block_len, rows],
                            [sizes.d * block_len, run.count],
                            [rows * block_len, sizes.head_chunks],
                            [1, piece.count],
                        ],
                        offset=first * sizes.d * block_len + piece.offset,
                        scalar_offset=self.numbers[0:1, entry : entry + 1],
                        indirect_dim=0,
                    ),
                    oob_mode=nisa.oob_mode.skip,
                    dge_mode=nisa.dge_mode.hwdge,
                    engine=nisa.engine.sync,
                )

    def load_values(self, dst, segment, pairs, group, sizes):
        """Fills dst [rows, pairs, chunks, d] with a segment's values, likewise."""
        d = sizes.d
        chunks = segment.chunks
        for piece in _pieces(segment, sizes):
            for run in _runs(pairs, group, sizes):
                entry = run.sequence * sizes.n + piece.entry
                first = self.first * sizes.k + run.head
                row = piece.place // chunks
                rows = piece.count // chunks
                nisa.dma_copy(
                    dst=dst[row : row + rows, run.first : run.first + run.count, :, :],
                    src=self.values.ap(
                        pattern=[
                            [chunks * d, rows],
                            [sizes.block_len * d, run.count],
                            [d, chunks],
                            [1, d],
                        ],
                        offset=(first * sizes.block_len + piece.offset) * d,
                        scalar_offset=self.numbers[0:1, entry : entry + 1],
                        indirect_dim=0,
                    ),
                    oob_mode=nisa.oob_mode.skip,
                    dge_mode=nisa.dge_mode.hwdge,
                    engine=nisa.engine.sync,
                )


class Piece(NKIObject):
    """What a segment and a block have in common: `count` slots.

    Attributes:
      entry: of the sequence's table.
      offset: of the first slot in the block.
      place: of the first slot in the segment.
      count: slots.
    """

    def __init__(self, entry, offset, place, count):
        self.entry = entry
        self.offset = offset
        self.place = place
        self.count = count


def _pieces(segment, sizes):
    """The `Piece`s of a segment."""
    pieces = []
    slot = segment.start
    end = segment.start + segment.slots
    while slot < end:
        entry = slot // sizes.block_len
        following = min(end, (entry + 1) * sizes.block_len)
        offset = slot - entry * sizes.block_len
        pieces.append(Piece(entry, offset, slot - segment.start, following - slot))
        slot = following
    return pieces


class Run(NKIObject):
    """Neighboring pairs that are of one sequence: its KV heads head .. head + count.

    Attributes:
      sequence: of the batch.
      head: the first KV head.
      first: the first pair, of those that are loaded at once.
      count: pairs.
    """

    def __init__(self, sequence, head, first, count):
        self.sequence = sequence
        self.head = head
        self.first = first
        self.count = count


def _runs(pairs, group, sizes):
    """The `Run`s of some pairs of a group."""
    runs = []
    pair = pairs.first
    end = pairs.first + pairs.count
    while pair < end:
        head = pair % sizes.k
        count = min(end - pair, sizes.k - head)
        sequence = group.first + pair // sizes.k
        runs.append(Run(sequence, head, pair - pairs.first, count))
        pair += count
    return runs


def _rows_of(tensor, elements):
    """A tensor in HBM as rows of `elements`."""
    total = 1
    for size in tensor.shape:
        total = total * size
    return tensor.reshape((total // elements, elements))
