"""Loads of the keys and values that attention needs, ahead of it where the ring has buffers."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .attention_blocks import attention_tasks
from .cache_scales import multipliable
from .divisions import stacks_heads
from .limits import PARTITIONS, RING_SLOTS
from .sizes import is_multipliable, product_bytes


class AttentionLoads(NKIObject):
    """The loads of keys and values, in the order of a core's tasks.

    Attributes:
      tasks: `Task`s.
      pairs: of each task the `Pairs` whose keys are loaded together.
      value_pairs: the same of values.
    """

    def __init__(self, K_cache, V_cache, context, blocks=None):
        """Of one layer.

        Args:
          K_cache: `LayerTensor` [B, k, d, S_max].
          V_cache: `LayerTensor` [B, k, S_max, d].
          context: the launch's `Context`.
          blocks: `CacheBlocks`, from which keys and values are then loaded; or None.
        """
        self.K_cache = K_cache
        self.V_cache = V_cache
        self.context = context
        self.blocks = blocks
        self.tasks = attention_tasks(context.sizes, context.core)
        sizes = context.sizes
        key_bytes = product_bytes(K_cache.view.dtype, sizes.dtype)
        value_bytes = product_bytes(V_cache.view.dtype, sizes.dtype)
        self.pairs = []
        self.value_pairs = []
        for task in self.tasks:
            block = task.block
            group = task.group
            self.pairs.append(_pairs_at_once(block, group, key_bytes, context))
            self.value_pairs.append(_pairs_at_once(block, group, value_bytes, context))
        # Of the first task, what has begun.
        self.begun_keys = []
        self.begun_values = []

    def begin(self):
        """Begins the first task's keys, and its values if it is the only one, while buffers last.

        All buffers of the ring were read by now. Caches of another dtype, whose conversion takes
        further buffers, do not begin early.
        """
        sizes = self.context.sizes
        alike = self.K_cache.view.dtype == sizes.dtype and self.V_cache.view.dtype == sizes.dtype
        if len(self.tasks) > 0 and alike:
            number = len(self.pairs[0])
            for index in range(min(number, RING_SLOTS)):
                self.begun_keys.append(self._load_keys(0, index))
            block = self.tasks[0].block
            each = max(1, len(block.segments))
            if len(self.tasks) == 1 and number < RING_SLOTS:
                for index in range(min(number, (RING_SLOTS - number) // each)):
                    self.begun_values.append(self._load_values(0, index))

    def keys(self, number, index):
        """The keys of a task, of its `Pairs` `index`; `keys_of` has those of a segment."""
        if number == 0 and index < len(self.begun_keys):
            return self.begun_keys[index]
        return self._load_keys(number, index)

    def values(self, number, index):
        """Of each segment [rows, count, chunks, d]: its values, likewise."""
        if number == 0 and index < len(self.begun_values):
            return self.begun_values[index]
        return self._load_values(number, index)

    def _load_keys(self, number, index):
        task = self.tasks[number]
        pairs = self.pairs[number][index]
        return _load_keys(self.K_cache, task.block, pairs, task.group, self.context, self.blocks)

    def _load_values(self, number, index):
        task = self.tasks[number]
        pairs = self.value_pairs[number][index]
        if self.blocks != None:
            return _load_block_values(
                self.V_cache, self.blocks, task.block, pairs, task.group, self.context
            )
        loaded = []
        for segment in task.block.segments:
            loaded.append(_load_values(self.V_cache, segment, pairs, task.group, self.context))
        return loaded


class Pairs(NKIObject):
    """Pairs (sequence, KV head) first .. first + count of a group, loaded in one transfer."""

    def __init__(self, first, count):
        self.first = first
        self.count = count


def _pairs_at_once(block, group, item, context):
    """All pairs of a group, as `Pairs` whose keys or values fit in a buffer of the ring.

    They have `item` bytes each.
    """
    sizes = context.sizes
    ring = context.ring
    # All segments of keys have one buffer.
    slots = block.key_slots * sizes.head_chunks
    values = 0
    for segment in block.segments:
        values = max(values, segment.chunks * sizes.d)
    if sizes.block_len > 0:
        # Those of values too.
        values = block.slot_chunks * sizes.d
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
    """[count, ...]: the pairs' caches, of [B, k, ...]."""
    shape = cache.shape
    by_pair = cache.reshape((sizes.B * sizes.k, shape[2], shape[3]))
    first = group.first * sizes.k + pairs.first
    return by_pair[first : first + pairs.count]


def _load_keys(K_cache, block, pairs, group, context, blocks):
    """[128 or rows, count, chunks, slots]: the keys of a block's segments, each at its place.

    None for a block of new keys alone.
    """
    sizes = context.sizes
    ring = context.ring
    chunks = sizes.head_chunks
    if len(block.segments) == 0:
        return None
    columns = pairs.count * chunks * block.key_slots
    shape = (pairs.count, chunks, block.key_slots)
    partitions = sizes.head_rows
    if stacks_heads(sizes.d):
        partitions = PARTITIONS
    tile = ring.take(K_cache.view.dtype)[0:partitions, 0:columns]
    keys = tile.reshape_dim(1, shape)
    if blocks != None:
        for segment in block.segments:
            blocks.load_keys(keys_of(keys, segment, sizes), segment, pairs, group, sizes)
    elif stacks_heads(sizes.d):
        for segment in block.segments:
            own = keys_of(keys, segment, sizes)
            _load_slots(own, K_cache, segment.start, segment.slots, pairs, group, sizes)
    else:
        first = block.segments[0]
        _load_slots(keys, K_cache, first.start, block.key_slots, pairs, group, sizes)
    if is_multipliable(tile.dtype, sizes.dtype):
        return keys
    wide = ring.take(nl.float32)[0:partitions, 0:columns].reshape_dim(1, shape)
    for segment in block.segments:
        nisa.tensor_copy(dst=keys_of(wide, segment, sizes), src=keys_of(keys, segment, sizes))
    return wide


def keys_of(keys, segment, sizes):
    """[rows, count, chunks, slots]: the keys of a segment, of a tile of its block's."""
    first = segment.half * (PARTITIONS // 2)
    end = segment.place + segment.slots
    return keys[first : first + sizes.head_rows, :, :, segment.place : end]


def _load_slots(dst, K_cache, start, count, pairs, group, sizes):
    """dst [rows, pairs, chunks, count] = the keys of `count` slots from `start` on."""
    source = _caches_of(K_cache.view, pairs, group, sizes)
    source = source[:, :, start : start + count]
    source = source.reshape_dim(1, (sizes.head_chunks, sizes.head_rows))
    nisa.dma_copy(
        dst=dst,
        src=K_cache.select_layer(source.permute((2, 0, 1, 3))),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.sync,
    )


def _load_values(V_cache, segment, pairs, group, context):
    """[rows, count, chunks, d]: the values of a segment's slots."""
    sizes = context.sizes
    ring = context.ring
    width = segment.chunks * sizes.d
    tile = ring.take(V_cache.view.dtype)[0 : segment.rows, 0 : pairs.count * width]
    values = tile.reshape_dim(1, (pairs.count, width))
    source = _caches_of(V_cache.view, pairs, group, sizes)
    source = source[:, segment.start : segment.start + segment.slots, :]
    source = source.reshape_dim(1, (segment.rows, segment.chunks))
    source = V_cache.select_layer(source.permute((1, 0, 2, 3)))
    values = values.reshape_dim(2, (segment.chunks, sizes.d))
    nisa.dma_copy(
        dst=values,
        src=source,
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.sync,
    )
    values = multipliable(tile, ring, sizes.dtype)
    return values.reshape_dim(1, (pairs.count, segment.chunks, sizes.d))


def _load_block_values(V_cache, blocks, block, pairs, group, context):
    """Of each segment [rows, count, chunks, d]: the values of its slots, all in one buffer."""
    sizes = context.sizes
    ring = context.ring
    if block.slot_chunks == 0:
        # A block of new keys alone.
        return []
    shape = (pairs.count, block.slot_chunks, sizes.d)
    dtype = V_cache.view.dtype
    # Blocks that are absent load nothing, and 0 * NaN is NaN.
    tile = ring.take_numbers(dtype, shape[0] * shape[1] * shape[2])
    stored = tile.reshape_dim(1, shape)
    for segment in block.segments:
        first = segment.first_chunk
        values = stored[0 : segment.rows, :, first : first + segment.chunks, :]
        blocks.load_values(values, segment, pairs, group, sizes)
    whole = multipliable(tile, ring, sizes.dtype).reshape_dim(1, shape)
    loaded = []
    for segment in block.segments:
        first = segment.first_chunk
        loaded.append(whole[0 : segment.rows, :, first : first + segment.chunks, :])
    return loaded
