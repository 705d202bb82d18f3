"""Which keys and queries are attended at once: blocks of keys, groups of sequences."""

from nki.language import NKIObject

from .limits import (
    MAX_BLOCK_CHUNKS,
    PARTITIONS,
    PSUM_BANK,
    PSUM_GROUP_BANKS,
    ceiling_divide,
    chunks_of_a_run,
    sequences_at_once,
)


class Segment(NKIObject):
    """Cache slots start .. start + rows * chunks; row p of chunk c is slot start + p * chunks + c.

    So each partition reads `chunks` consecutive rows of V in one piece. The segment's chunks are
    the block's chunks from `first_chunk` on.
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
      segments: its `Segment`s of cache slots; may be empty.
      active_rows: how many new keys are in the last chunk; 0 for none.
      slot_chunks: chunks of cache slots.
      rows: rows of the block's scores.
      chunks: chunks of the block's scores.
      active_chunk: the chunk of the new keys.
    """

    def __init__(self, segments, active_rows):
        self.segments = segments
        self.active_rows = active_rows
        self.rows = active_rows
        self.chunks = 0
        for segment in segments:
            self.rows = max(self.rows, segment.rows)
            self.chunks = segment.first_chunk + segment.chunks
        self.slot_chunks = self.chunks
        self.active_chunk = self.chunks
        if active_rows > 0:
            self.chunks += 1


def context_blocks(first, last, chunks, active_rows, run=0):
    """The blocks of at most 128 x `chunks` keys that cover the slots first .. last.

    Args:
      first: the first slot.
      last: the slot after the last.
      chunks: of a block.
      active_rows: new keys, which are in the last block; 0 for none.
      run: most chunks of a segment, of which segments have this or a half, a quarter and so on;
        0 for any number.
    """
    blocks = []
    while last > first or active_rows > 0:
        whole = min(chunks, (last - first) // PARTITIONS)
        segments = []
        if whole > 0:
            done = 0
            while done < whole:
                size = whole
                if run > 0:
                    size = run
                    while size > whole - done:
                        size = size // 2
                segments.append(Segment(first, PARTITIONS, size, done))
                first += size * PARTITIONS
                done += size
        rest = last - first
        if whole < chunks and rest > 0:
            segments.append(Segment(first, rest, 1, whole))
            first = last
            whole += 1
        # A full block has no room for the new keys.
        added = 0
        if first == last and whole < chunks:
            added = active_rows
            active_rows = 0
        blocks.append(Block(segments, added))
    return blocks


def divides_sequences(sizes, core):
    """Whether each of two cores attends half of the sequences, and not half of their slots.

    Then it reads twice as many neighboring slots at once, and has the whole softmax.
    """
    return core.count > 1 and sizes.B % core.count == 0


def sequence_share(sizes, core):
    """(first, count) of the sequences that this core attends."""
    if divides_sequences(sizes, core):
        count = sizes.B // core.count
        return (core.index * count, count)
    return (0, sizes.B)


def context_share(sizes, core):
    """(first, last) of the slots that this core attends: half if two cores divide them."""
    if core.count == 1 or divides_sequences(sizes, core):
        return (0, sizes.S_prior)
    half = ceiling_divide(ceiling_divide(sizes.S_prior, 2), PARTITIONS) * PARTITIONS
    half = min(half, sizes.S_prior)
    if core.index == 0:
        return (0, half)
    return (half, sizes.S_prior)


def key_blocks(group, sizes, core):
    """The blocks of keys that this core attends for a group."""
    # Of two cores that divide the slots, the first attends the new keys.
    active_rows = 0
    if core.index == 0 or divides_sequences(sizes, core):
        active_rows = sizes.T
    first, last = context_share(sizes, core)
    run = 0
    if sizes.block_len > 0:
        run = chunks_of_a_run(sizes.block_len)
    return context_blocks(first, last, group.chunks, active_rows, run=run)


def sequence_groups(sizes, core):
    """The groups of sequences that this core attends together."""
    first, count = sequence_share(sizes, core)
    at_once = sequences_at_once(count, sizes.q * sizes.S)
    groups = []
    done = 0
    while done < count:
        groups.append(Group(first + done, min(at_once, count - done), sizes))
        done += at_once
    return groups


class Group(NKIObject):
    """Sequences first .. first + count, attended together; columns are (sequence, head, token).

    Attributes:
      kv_heads: k.
      width: columns of a sequence.
      per_pair: columns of a sequence and KV head.
      columns: columns of the group.
      first_column: of the group's columns among all.
      per_bank: chunks of scores that fit in a PSUM bank.
      chunks: chunks of a block.
    """

    def __init__(self, first, count, sizes):
        self.first = first
        self.count = count
        self.kv_heads = sizes.k
        self.width = sizes.q * sizes.S
        self.per_pair = self.width // sizes.k
        self.columns = count * self.width
        self.first_column = first * self.width
        self.per_bank = PSUM_BANK // self.columns
        self.chunks = min(MAX_BLOCK_CHUNKS, self.per_bank * PSUM_GROUP_BANKS)

    def of_kv_head(self, columns, kv_head):
        """[P, count, q / k * S] of [P, columns]: the columns of a KV head, of all sequences."""
        by_pair = columns.reshape_dim(1, (self.count, self.kv_heads, self.per_pair))
        return by_pair[:, :, kv_head, :]

    def place(self, chunk):
        """(bank, first column) of a chunk in the PSUM tile of the scores."""
        return (chunk // self.per_bank, (chunk % self.per_bank) * self.columns)


class Task(NKIObject):
    """A block of keys to attend for a group of sequences.

    Attributes:
      group: `Group`.
      block: `Block`.
      group_number: the group's place among the groups.
      block_number: the block's place among the group's blocks.
      ends: whether it is the group's last block.
    """

    def __init__(self, group, block, group_number, block_number, ends):
        self.group = group
        self.block = block
        self.group_number = group_number
        self.block_number = block_number
        self.ends = ends


def attention_tasks(sizes, core):
    """All tasks of this core, group after group."""
    tasks = []
    groups = sequence_groups(sizes, core)
    for number in range(len(groups)):
        blocks = key_blocks(groups[number], sizes, core)
        for index in range(len(blocks)):
            ends = index + 1 == len(blocks)
            tasks.append(Task(groups[number], blocks[index], number, index, ends))
    return tasks
