"""Attention of the new tokens to the cache as it was passed in, and to each other.

Scores are transposed: key slots on partitions, (sequence, query head, token) in columns. So the
weights of the softmax are at once the moving operand of the product with V.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .attention_blocks import (
    attention_tasks,
    divides_sequences,
    sequence_groups,
    sequence_share,
)
from .cache_scales import CacheScales, ScoreScale, beside_cached, multipliable, product_bytes
from .cache_update import token_rows
from .context_ranks import StateExchange
from .exchange import swap
from .limits import PARTITIONS, PSUM_BANK, RING_SLOTS, ceiling_divide
from .linear import begin
from .softmax import (
    MASKED,
    SoftmaxState,
    add_sinks,
    column_peaks,
    column_sums,
    exponentials,
    merge,
    merge_packed,
    normalize,
    set_unattended,
)


class BlockResult(NKIObject):
    """The softmax of a block of keys.

    Attributes:
      peaks: [128, n].
      total: [128, n], the sum of exponentials relative to them.
      weighted: [rows, chunks, n], the sum of values weighted by them.
    """

    def __init__(self, peaks, total, weighted):
        self.peaks = peaks
        self.total = total
        self.weighted = weighted


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
        """[rows, count, chunks, slots]: the keys of a task, of its `Pairs` `index`."""
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


def attention(heads, loads, masks, context, sinks=None, scales=None, ahead=None, ranks=None):
    """Attends all sequences.

    While the Vector Engine works on a block's softmax, the Tensor Engine computes the next block's
    scores. A block's result is merged once the next block's scores are there.

    Args:
      heads: [rows, q + 2k, chunks, T]: queries and keys rotated, then values.
      loads: the layer's `AttentionLoads`, which may have begun.
      masks: the launch's `Masks`.
      context: the launch's `Context`.
      sinks: `LayerTensor` [1, q] float32, or None.
      scales: the layer's `CacheScales`; None for caches in the compute dtype.
      ahead: `product_loads` of the next product, which begin before the cores swap; or None.
      ranks: `ContextRanks`, whose query heads are all in `heads`; None if this rank has all slots.

    Returns:
      [rows, q * chunks, T] in the compute dtype, of this rank's q query heads, and the new values
      as rows [T, k, d].
    """
    sizes = context.sizes
    core = context.core
    own = sizes
    if ranks != None:
        own = ranks.sizes
    _, count = sequence_share(sizes, core)
    shape = (sizes.head_rows, own.q * sizes.head_chunks, count * sizes.S)
    attended = nl.ndarray(shape, dtype=sizes.dtype, buffer=nl.sbuf)
    if scales == None:
        scales = CacheScales()
    arithmetic = context.arithmetic
    softmax_scale = arithmetic.score_scale(sizes.d)
    softcap = arithmetic.attention_softcap
    capped = None
    if softcap > 0.0:
        # `_masked` leaves scores within +-1.
        scale = ScoreScale(softcap)
        capped = ScoreScale(softmax_scale / softcap, scales.inverse_key)
    else:
        scale = ScoreScale(softmax_scale, scales.inverse_key)
    sink_rows = _load_sinks(sinks, own.q, context)
    tasks = loads.tasks
    if len(tasks) == 0:
        if ahead != None:
            begin(ahead)
        # Without cache slots the second core has nothing to attend.
        for group in sequence_groups(sizes, core):
            state = _new_state(group, sizes)
            set_unattended(state)
            ended = AttendedGroup(state, group, context, sink_rows, scales, ranks)
            ended.store(attended, scale, context)
        return (attended, token_rows(heads, sizes.q + sizes.k, sizes))
    keys = beside_cached(heads[:, sizes.q : sizes.q + sizes.k, :, :], scales.key)
    product = _products(0, heads, keys, loads, context)
    values = token_rows(heads, sizes.q + sizes.k, sizes)
    new_values = beside_cached(values, scales.value)
    state = None
    result = None
    for index in range(len(tasks)):
        task = tasks[index]
        scores = _masked(task, product, masks, capped, sizes)
        peaks = column_peaks(scores, context.constants)
        ended = None
        if index > 0:
            before = tasks[index - 1]
            state = _add(state, result, before, scale, sizes)
            if before.ends:
                ended = AttendedGroup(state, before.group, context, sink_rows, scales, ranks)
                state = None
        if index + 1 < len(tasks):
            product = _products(index + 1, heads, keys, loads, context)
        result = _attend(index, scores, peaks, new_values, loads, scale, context)
        if ahead != None and index + 1 == len(tasks):
            begin(ahead)
        if ended != None:
            # Only here, because by now the other core's part has arrived.
            ended.store(attended, scale, context)
    last = tasks[len(tasks) - 1]
    state = _add(state, result, last, scale, sizes)
    ended = AttendedGroup(state, last.group, context, sink_rows, scales, ranks)
    ended.store(attended, scale, context)
    return (_of_all_sequences(attended, context), values)


def _of_all_sequences(attended, context):
    """[rows, q * chunks, T], of what this core has of its sequences."""
    sizes = context.sizes
    core = context.core
    if not divides_sequences(sizes, core):
        return attended
    rows, heads, own = attended.shape
    theirs = nl.ndarray((rows, heads, own), dtype=sizes.dtype, buffer=nl.sbuf)
    swap(attended, theirs, core)
    whole = nl.ndarray((rows, heads, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    first = core.index * own
    nisa.tensor_copy(dst=whole[:, :, first : first + own], src=attended, engine=nisa.engine.scalar)
    other = (1 - core.index) * own
    nisa.tensor_copy(dst=whole[:, :, other : other + own], src=theirs)
    return whole


def _add(state, result, task, scale, sizes):
    """The state of a task's group, a new one if None, with the task's `BlockResult` merged."""
    if state == None:
        state = _new_state(task.group, sizes)
    merge(state, result.peaks, result.total, result.weighted, scale)
    return state


def _new_state(group, sizes):
    return SoftmaxState(sizes.head_rows, sizes.head_chunks, group.columns)


class AttendedGroup(NKIObject):
    """A group whose keys on this core are attended.

    If the cores divide the slots, its state travels to the other core; if ranks share them out, to
    the ranks whose heads it has.
    """

    def __init__(self, state, group, context, sink_rows, scales, ranks):
        core = context.core
        self.state = state
        self.scales = scales
        self.group = group
        self.sink_rows = sink_rows
        self.received = None
        self.exchange = None
        self.sizes = context.sizes
        both = core.count > 1 and not divides_sequences(context.sizes, core)
        if ranks != None:
            self.sizes = ranks.sizes
            self.exchange = StateExchange(state, group, ranks, core, both)
        elif both:
            shape = state.packed.shape
            self.received = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            swap(state.packed, self.received, core)

    def store(self, attended, scale, context):
        """Merges the states of the other core and ranks, normalizes, and writes to `attended`."""
        sizes = self.sizes
        if self.exchange != None:
            exchange = self.exchange
            self.state = exchange.merged(scale)
        if self.received != None:
            merge_packed(self.state, self.received, scale)
        if self.sink_rows != None:
            # Columns are (sequence, head, token). The softmax is whole by now.
            sinks = self.sink_rows.expand_dim(1).broadcast(1, self.group.count)
            add_sinks(self.state, sinks.expand_dim(3).broadcast(3, sizes.S), scale)
        first, _ = sequence_share(sizes, context.core)
        token = (self.group.first - first) * sizes.S
        inverse_scale = self.scales.inverse_value
        _store_attended(attended, self.state, self.group, token, inverse_scale, sizes)


def _load_sinks(sinks, q, context):
    """[128, q] float32: each query head's sink on all partitions; None without sinks."""
    if sinks == None:
        return None
    constants = context.constants
    row = nl.ndarray((1, q), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=row,
        src=sinks.select_layer(sinks.view),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.sync,
    )
    spread = nl.ndarray((PARTITIONS, q), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread,
        stationary=constants.ones[0:1, :],
        moving=row,
        is_stationary_onezero=True,
        accumulate=False,
    )
    rows = nl.ndarray((PARTITIONS, q), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=rows, src=spread)
    return rows


def _of_kv_head(columns, kv_head, group, sizes):
    """[P, count, q / k * S] of [P, columns]: the columns of a KV head, of all sequences."""
    by_pair = columns.reshape_dim(1, (group.count, sizes.k, group.per_pair))
    return by_pair[:, :, kv_head, :]


def _queries(heads, group, first, count, kv_head, sizes):
    """[rows, chunks, count, q / k, S]: the queries of some sequences that share a KV head."""
    shared = sizes.q // sizes.k
    token = (group.first + first) * sizes.S
    queries = heads[:, kv_head * shared : (kv_head + 1) * shared, :, :]
    queries = queries[:, :, :, token : token + count * sizes.S]
    return queries.reshape_dim(3, (count, sizes.S)).permute((0, 2, 3, 1, 4))


def _attend(number, scores, peaks, values, loads, scale, context):
    """The `BlockResult` of a task: its values weighted by the softmax of their scores."""
    sizes = context.sizes
    task = loads.tasks[number]
    block = task.block
    group = task.group
    weights = exponentials(scores, peaks, scale, sizes.dtype)
    weighted = _weighted_tile(group, sizes)
    if block.active_rows > 0:
        # All sequences at once: the weights of other sequences' new keys are zero.
        own = weights[0 : block.active_rows, block.active_chunk, :]
        for kv_head in range(sizes.k):
            for head_chunk in range(sizes.head_chunks):
                feature = head_chunk * sizes.head_rows
                nisa.nc_matmul(
                    dst=_of_kv_head(weighted[:, head_chunk, :], kv_head, group, sizes),
                    stationary=values[:, kv_head, feature : feature + sizes.head_rows],
                    moving=_of_kv_head(own, kv_head, group, sizes),
                    accumulate=False,
                )
    of_task = loads.value_pairs[number]
    for entry in range(len(of_task)):
        pairs = of_task[entry]
        loaded = loads.values(number, entry)
        for pair in range(pairs.first, pairs.first + pairs.count):
            first = pair * group.per_pair
            own = weights[:, :, first : first + group.per_pair]
            for head_chunk in range(sizes.head_chunks):
                out = weighted[:, head_chunk, first : first + group.per_pair]
                feature = head_chunk * sizes.head_rows
                for index in range(len(loaded)):
                    segment = block.segments[index]
                    of_pair = loaded[index][:, pair - pairs.first, :, :]
                    for chunk in range(segment.chunks):
                        place = segment.first_chunk + chunk
                        nisa.nc_matmul(
                            dst=out,
                            stationary=of_pair[:, chunk, feature : feature + sizes.head_rows],
                            moving=own[0 : segment.rows, place, :],
                            accumulate=place > 0 or block.active_rows > 0,
                        )
    return BlockResult(peaks, column_sums(weights, context.constants), weighted)


def _weighted_tile(group, sizes):
    """[rows, chunks, columns] float32 in PSUM, of which no chunk crosses from bank to bank."""
    width = group.columns
    if sizes.head_chunks * width > PSUM_BANK:
        width = PSUM_BANK
    shape = (sizes.head_rows, sizes.head_chunks, width)
    tile = nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum)
    return tile[:, :, 0 : group.columns]


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
    slots = 0
    values = 0
    for segment in block.segments:
        slots += segment.slots * sizes.head_chunks
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
    """[rows, count, chunks, slots]: the keys of the slots of a block's segments, one after another.

    None for a block of new keys alone.
    """
    sizes = context.sizes
    ring = context.ring
    chunks = sizes.head_chunks
    if len(block.segments) == 0:
        return None
    start = block.segments[0].start
    slots = 0
    for segment in block.segments:
        slots += segment.slots
    columns = pairs.count * chunks * slots
    shape = (pairs.count, chunks, slots)
    tile = ring.take(K_cache.view.dtype)[0 : sizes.head_rows, 0:columns]
    keys = tile.reshape_dim(1, shape)
    if blocks != None:
        for segment in block.segments:
            first = segment.start - start
            own = keys[:, :, :, first : first + segment.slots]
            blocks.load_keys(own, segment, pairs, group, sizes)
        return multipliable(tile, ring, sizes.dtype).reshape_dim(1, shape)
    source = _caches_of(K_cache.view, pairs, group, sizes)
    source = source[:, :, start : start + slots]
    source = source.reshape_dim(1, (chunks, sizes.head_rows))
    nisa.dma_copy(
        dst=keys,
        src=K_cache.select_layer(source.permute((2, 0, 1, 3))),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.sync,
    )
    return multipliable(tile, ring, sizes.dtype).reshape_dim(1, shape)


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
    tile = ring.take(dtype)[:, 0 : shape[0] * shape[1] * shape[2]]
    if dtype != nl.bfloat16 and dtype != nl.float32:
        # What weights of another dtype left may be no number in this one, and 0 * NaN is NaN.
        nisa.memset(dst=tile, value=0.0, engine=nisa.engine.gpsimd)
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


def _products(number, heads, new_keys, loads, context):
    """Scores of a task before masks, [rows, banks, 512] in PSUM; new keys [rows, k, chunks, T]."""
    sizes = context.sizes
    task = loads.tasks[number]
    block = task.block
    group = task.group
    banks = ceiling_divide(block.chunks, group.per_bank)
    product = nl.ndarray((block.rows, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
    of_task = loads.pairs[number]
    for index in range(len(of_task)):
        pairs = of_task[index]
        keys = loads.keys(number, index)
        for segment in block.segments:
            start = segment.start - block.segments[0].start
            for pair in range(pairs.first, pairs.first + pairs.count):
                by_chunk = keys[:, pair - pairs.first, :, start : start + segment.slots]
                by_chunk = by_chunk.reshape_dim(2, (segment.rows, segment.chunks))
                queries = _queries(heads, group, pair // sizes.k, 1, pair % sizes.k, sizes)
                for chunk in range(segment.chunks):
                    bank, first = group.place(segment.first_chunk + chunk)
                    first += pair * group.per_pair
                    for head_chunk in range(sizes.head_chunks):
                        nisa.nc_matmul(
                            dst=product[0 : segment.rows, bank, first : first + group.per_pair],
                            stationary=by_chunk[:, head_chunk, :, chunk],
                            moving=queries[:, head_chunk, :, :, :],
                            accumulate=head_chunk > 0,
                        )
    if block.active_rows > 0:
        # The new keys of all sequences at once: other sequences' keys are masked.
        bank, first = group.place(block.active_chunk)
        columns = product[0 : block.active_rows, bank, first : first + group.columns]
        for kv_head in range(sizes.k):
            queries = _queries(heads, group, 0, group.count, kv_head, sizes)
            for head_chunk in range(sizes.head_chunks):
                nisa.nc_matmul(
                    dst=_of_kv_head(columns, kv_head, group, sizes),
                    stationary=new_keys[:, kv_head, head_chunk, :],
                    moving=queries[:, head_chunk, :, :, :],
                    accumulate=head_chunk > 0,
                )
    return product


def _masked(task, product, masks, capped, sizes):
    """The scores of a block, [rows, chunks, columns] float32; `MASKED` for unattended keys.

    With a soft cap, scores are the tanh of scores times `capped`, a `ScoreScale`; else they are not
    scaled, and `capped` is None.
    """
    block = task.block
    group = task.group
    shape = (block.rows, block.chunks, group.columns)
    scores = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    # The Vector Engine has the most to do here.
    nisa.memset(dst=scores, value=MASKED, engine=nisa.engine.gpsimd)
    tiles = masks.get(task)
    for index in range(len(tiles)):
        first_chunk = block.segments[index].first_chunk
        _copy_attended(scores, product, tiles[index], first_chunk, group, capped)
    if block.active_rows > 0:
        own = masks.active[:, group.first_column : group.first_column + group.columns]
        _copy_attended(scores, product, own.expand_dim(1), block.active_chunk, group, capped)
    return scores


def _copy_attended(scores, product, mask, first_chunk, group, capped):
    """Copies scores of chunks from PSUM where mask [rows, chunks, columns] is not zero."""
    rows = mask.shape[0]
    chunks = mask.shape[1]
    done = 0
    while done < chunks:
        # As many chunks as one bank holds.
        bank, start = group.place(first_chunk + done)
        first = first_chunk + done
        count = min(group.per_bank - first % group.per_bank, chunks - done)
        part = product[0:rows, bank, start : start + count * group.columns]
        if capped != None:
            nisa.activation(dst=part, op=nl.tanh, data=part, scale=capped.of_rows(rows))
        nisa.tensor_copy_predicated(
            dst=scores[0:rows, first : first + count, :],
            src=part.reshape_dim(1, (count, group.columns)),
            predicate=mask[:, done : done + count, :],
        )
        done += count


def _store_attended(attended, state, group, token, inverse_scale, sizes):
    """Normalizes, and writes columns (sequence, head, token) to [rows, (head, chunk), token].

    The group's tokens begin with `token`.
    """
    chunks = sizes.head_chunks
    part = nl.ndarray(state.weighted.shape, dtype=sizes.dtype, buffer=nl.sbuf)
    normalize(part, state, inverse_scale=inverse_scale)
    by_head = attended.reshape_dim(1, (sizes.q, chunks))
    for chunk in range(chunks):
        own = part[:, chunk, :]
        target = by_head[:, :, chunk, token : token + group.count * sizes.S]
        nisa.tensor_copy(
            dst=target.reshape_dim(2, (group.count, sizes.S)),
            src=own.reshape_dim(1, (group.count, sizes.q, sizes.S)).permute((0, 2, 1, 3)),
        )
