"""Which keys and queries are attended at once: blocks of keys, groups of sequences."""

from nki.language import NKIObject

from .divisions import attended_at_once, chunks_of_a_run, stacks_heads
from .limits import PARTITIONS, PSUM_BANK, ceiling_divide
from .sizes import bytes_of
from .token_blocks import attended_blocks, sequence_share


class Segment(NKIObject):
    """Cache slots start .. start + rows * chunks; row p of chunk c is slot start + p * chunks + c.

    So each partition reads `chunks` consecutive rows of V in one piece. The segment's chunks are
    the block's chunks from `first_chunk` on.

    Attributes:
      attended: how many of the slots queries may attend: those before slot `end`.
      half: of the partitions, where its keys are: 1 for the upper half.
      place: of its first key in a tile of the block's keys.
    """

    def __init__(self, start, rows, chunks, first_chunk, end):
        self.start = start
        self.rows = rows
        self.chunks = chunks
        self.first_chunk = first_chunk
        self.slots = rows * chunks
        self.attended = min(self.slots, end - start)
        self.half = 0
        self.place = 0


class Block(NKIObject):
    """Keys attended at once, in `chunks` chunks of at most `rows`.

    Attributes:
      segments: its `Segment`s of cache slots; may be empty.
      active_rows: how many new keys are in the last chunk; 0 for none.
      slot_chunks: chunks of cache slots.
      rows: rows of the block's scores.
      chunks: chunks of the block's scores.
      active_chunk: the chunk of the new keys.
      key_slots: slots of a tile of the block's keys.
    """

    def __init__(self, segments, active_rows, stacked):
        """With `stacked`, segments are on both halves of the partitions."""
        self.segments = segments
        self.active_rows = active_rows
        self.rows = active_rows
        self.chunks = 0
        lower = 0
        upper = 0
        for segment in segments:
            self.rows = max(self.rows, segment.rows)
            self.chunks = segment.first_chunk + segment.chunks
            if stacked and upper < lower:
                segment.half = 1
                segment.place = upper
                upper += segment.slots
            else:
                segment.place = lower
                lower += segment.slots
        self.key_slots = max(lower, upper)
        self.slot_chunks = self.chunks
        self.active_chunk = self.chunks
        if active_rows > 0:
            self.chunks += 1


def context_blocks(first, last, chunks, active_rows, stored, stacked, run=0):
    """The blocks of at most 128 x `chunks` keys that cover the slots first .. last.

    The last chunk of slots has some after these if the cache has them, rather than fewer rows:
    those would be pieces of their own in HBM, of a row of V each.

    Args:
      first: the first slot.
      last: the slot after the last.
      chunks: of a block.
      active_rows: new keys, which are in the last block; 0 for none.
      stored: slots of a sequence in the cache.
      stacked: whether segments are on both halves of the partitions, about as many slots on each.
      run: most chunks of a segment, of which segments have this or a half, a quarter and so on;
        0 for any number.
    """
    blocks = []
    end = last
    last = first + ceiling_divide(last - first, PARTITIONS) * PARTITIONS
    if last > stored:
        last = end
    while last > first or active_rows > 0:
        whole = min(chunks, (last - first) // PARTITIONS)
        segments = []
        if whole > 0:
            done = 0
            while done < whole:
                size = whole - done
                if stacked:
                    size = min(size, ceiling_divide(whole, 2))
                if run > 0:
                    size = run
                    while size > whole - done:
                        size = size // 2
                segments.append(Segment(first, PARTITIONS, size, done, end))
                first += size * PARTITIONS
                done += size
        rest = last - first
        if whole < chunks and rest > 0:
            segments.append(Segment(first, rest, 1, whole, end))
            first = last
            whole += 1
        # A full block has no room for the new keys.
        added = 0
        if first == last and whole < chunks:
            added = active_rows
            active_rows = 0
        blocks.append(Block(segments, added, stacked))
    return blocks


def context_share(sizes, core):
    """(first, last) of the slots that this core attends."""
    slots = sizes.slots_of_a_core(core.count)
    if core.index == 0 or not sizes.divides_slots(core.count):
        return (0, slots)
    return (slots, sizes.S_prior)


def key_blocks(group, sizes, core):
    """The blocks of keys that this core attends for a group."""
    # Of two cores that divide the slots, the first attends the new keys.
    active_rows = 0
    if core.index == 0 or not sizes.divides_slots(core.count):
        active_rows = group.tokens.tokens
    first, last = context_share(sizes, core)
    run = 0
    if sizes.block_len > 0:
        run = chunks_of_a_run(sizes.block_len)
    stacked = stacks_heads(sizes.d)
    return context_blocks(first, last, group.chunks, active_rows, sizes.S_max, stacked, run=run)


def sequence_groups(sizes, core):
    """The groups of sequences that this core attends together."""
    first, count = sequence_share(sizes, core)
    slots = sizes.slots_of_a_core(core.count)
    item = bytes_of(sizes.dtype)
    queries = sizes.q * sizes.S
    at_once, chunks = attended_at_once(
        count, queries, slots, sizes.d, item, sizes.block_len, sizes.context_ranks
    )
    groups = []
    blocks = attended_blocks(sizes, core)
    for number in range(len(blocks)):
        block = blocks[number]
        done = max(first, block.first)
        last = min(first + count, block.first + block.count)
        while done < last:
            size = min(at_once, last - done)
            groups.append(Group(done, size, chunks, sizes, block, number))
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
      tokens: the `TokenBlock` of the group's new tokens.
      tokens_number: its place among those that the core attends.
    """

    def __init__(self, first, count, chunks, sizes, tokens, tokens_number):
        self.first = first
        self.count = count
        self.kv_heads = sizes.k
        self.width = sizes.q * sizes.S
        self.per_pair = self.width // sizes.k
        self.columns = count * self.width
        self.first_column = first * self.width
        self.per_bank = PSUM_BANK // self.columns
        self.chunks = chunks
        self.tokens = tokens
        self.tokens_number = tokens_number

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
