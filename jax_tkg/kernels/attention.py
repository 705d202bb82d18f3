"""Attention of the new tokens to the cache as it was passed in, and to each other.

Scores are transposed: key slots on partitions, (sequence, query head, token) in columns. So the
weights of the softmax are at once the moving operand of the product with V.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .attention_scores import masked_scores, score_products
from .cache_scales import CacheScales, ScoreScale, beside_cached
from .cache_update import rows_of_blocks
from .context_ranks import StateExchange
from .divisions import divides_sequences
from .exchange import swap
from .limits import PARTITIONS, PSUM_BANK
from .row_loads import begin
from .softmax import (
    SoftmaxState,
    column_peaks,
    column_sums,
    exponentials,
    merge,
    merge_packed,
    normalizing_factor,
    sink_weights,
    take_whole,
)
from .token_blocks import sequence_share


class BlockResult(NKIObject):
    """The softmax of a block of keys.

    Attributes:
      peaks: [128, n].
      sums: [128, m, n], the `column_sums` of exponentials relative to them.
      weighted: [rows, chunks, n], the sum of values weighted by them.
      sunk: [128, n], the `sink_weights` relative to the peaks, if these are of all keys; or None.
    """

    def __init__(self, peaks, sums, weighted, sunk):
        self.peaks = peaks
        self.sums = sums
        self.weighted = weighted
        self.sunk = sunk


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
      as the `rows_of_blocks`.
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
        # `masked_scores` leaves scores within +-1.
        scale = ScoreScale(softcap)
        capped = ScoreScale(softmax_scale / softcap, scales.inverse_key)
    else:
        scale = ScoreScale(softmax_scale, scales.inverse_key)
    sink_rows = _load_sinks(sinks, own.q, context)
    tasks = loads.tasks
    values = rows_of_blocks(heads, sizes.q + sizes.k, context)
    keys = beside_cached(heads[:, sizes.q : sizes.q + sizes.k, :, :], scales.key)
    upper = _upper_queries(heads, tasks, sizes)
    product = score_products(0, heads, upper, keys, loads, context)
    new_values = []
    for rows in values:
        new_values.append(beside_cached(rows, scales.value))
    state = None
    result = None
    merges = ranks != None or sizes.divides_slots(core.count)
    begins = True
    for index in range(len(tasks)):
        task = tasks[index]
        # Nothing is merged with the softmax of a group's only block, which then is at once whole.
        own_sinks = None
        if not merges and index + 1 == len(tasks) and begins:
            own_sinks = _sinks_of(sink_rows, task.group, sizes)
        scores = masked_scores(task, product, masks, capped, sizes)
        peaks = column_peaks(scores, context.constants)
        ended = None
        if index > 0:
            before = tasks[index - 1]
            state = _add(state, result, before, scale, sizes)
            if before.ends:
                ended = AttendedGroup(state, before.group, context, sink_rows, scales, ranks)
                state = None
        if index + 1 < len(tasks):
            product = score_products(index + 1, heads, upper, keys, loads, context)
        result = _attend(index, scores, peaks, new_values, loads, scale, own_sinks, context)
        begins = task.ends
        if ahead != None and index + 1 == len(tasks):
            begin(ahead)
        if ended != None:
            # Only here, because by now the other core's part has arrived.
            ended.store(attended, scale, context)
    last = tasks[len(tasks) - 1]
    if state == None and not merges:
        state = _new_state(last.group, sizes)
        take_whole(state, result.peaks, result.sums, result.weighted, result.sunk)
        sink_rows = None
    else:
        state = _add(state, result, last, scale, sizes)
    ended = AttendedGroup(state, last.group, context, sink_rows, scales, ranks)
    ended.store(attended, scale, context)
    return (_of_all_sequences(attended, context), values)


def _upper_queries(heads, tasks, sizes):
    """[rows, q, chunks, T] on the upper half of the partitions: the queries of `heads`.

    None if no task's keys are there.
    """
    needed = False
    for task in tasks:
        for segment in task.block.segments:
            needed = needed or segment.half == 1
    if not needed:
        return None
    queries = heads[:, 0 : sizes.q, :, :]
    both = nl.ndarray((PARTITIONS, sizes.q, 1, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    upper = both[PARTITIONS // 2 : PARTITIONS, :, :, :]
    nisa.tensor_copy(dst=upper, src=queries)
    return upper


def _of_all_sequences(attended, context):
    """[rows, q * chunks, T], of what this core has of its sequences."""
    sizes = context.sizes
    core = context.core
    if not divides_sequences(sizes.B, core.count):
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
    merge(state, result.peaks, result.sums, result.weighted, scale)
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
        both = context.sizes.divides_slots(core.count)
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
            # The softmax is whole by now.
            state = self.state
            sinks = _sinks_of(self.sink_rows, self.group, sizes)
            sunk = sink_weights(state.peak, sinks, scale)
            nisa.tensor_tensor(dst=state.total, data1=state.total, data2=sunk, op=nl.add)
        first, _ = sequence_share(sizes, context.core)
        token = (self.group.first - first) * sizes.S
        inverse_scale = self.scales.inverse_value
        _store_attended(attended, self.state, self.group, token, inverse_scale, sizes)


def _load_sinks(sinks, q, context):
    """[128, q] float32: each query head's sink on all partitions; None without sinks."""
    if sinks == None:
        return None
    constants = context.constants
    row = context.loaded.take(1, q, nl.float32)
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
    nisa.tensor_copy(dst=rows, src=spread, engine=nisa.engine.scalar)
    return rows


def _sinks_of(sink_rows, group, sizes):
    """[128, sequences, q, S] of `_load_sinks`, as a group's columns are; None of None."""
    if sink_rows == None:
        return None
    by_sequence = sink_rows.expand_dim(1).broadcast(1, group.count)
    return by_sequence.expand_dim(3).broadcast(3, sizes.S)


def _attend(number, scores, peaks, values, loads, scale, sinks, context):
    """The `BlockResult` of a task: its values weighted by the softmax of their scores.

    `sinks` are `_sinks_of` its group, if its peaks are those of all of the group's keys; or None.
    """
    sizes = context.sizes
    task = loads.tasks[number]
    block = task.block
    group = task.group
    # Only here, so that the merge of the block before does not wait for the Scalar Engine.
    kept = nl.ndarray(peaks.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=kept, src=peaks, engine=nisa.engine.scalar)
    weights = exponentials(scores, peaks, scale, sizes.dtype)
    sunk = None
    if sinks != None:
        # While the Tensor Engine multiplies.
        sunk = sink_weights(peaks, sinks, scale)
    # Before the values, which may still be on their way.
    sums = column_sums(weights, context.constants)
    weighted = _weighted_tile(group, sizes)
    if block.active_rows > 0:
        # Many sequences at once: the weights of other sequences' new keys are zero.
        own = weights[0 : block.active_rows, block.active_chunk, :]
        own_values = values[group.tokens_number]
        for kv_head in range(sizes.k):
            for head_chunk in range(sizes.head_chunks):
                feature = head_chunk * sizes.head_rows
                nisa.nc_matmul(
                    dst=group.of_kv_head(weighted[:, head_chunk, :], kv_head),
                    stationary=own_values[:, kv_head, feature : feature + sizes.head_rows],
                    moving=group.of_kv_head(own, kv_head),
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
    return BlockResult(kept, sums, weighted, sunk)


def _weighted_tile(group, sizes):
    """[rows, chunks, columns] float32 in PSUM, of which no chunk crosses from bank to bank."""
    width = group.columns
    if sizes.head_chunks * width > PSUM_BANK:
        width = PSUM_BANK
    shape = (sizes.head_rows, sizes.head_chunks, width)
    tile = nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum)
    return tile[:, :, 0 : group.columns]


def _store_attended(attended, state, group, token, inverse_scale, sizes):
    """Normalizes, and writes columns (sequence, head, token) to [rows, (head, chunk), token].

    The group's tokens begin with `token`.
    """
    chunks = sizes.head_chunks
    weighted = state.weighted
    factor = normalizing_factor(state, inverse_scale=inverse_scale)
    by_column = factor.reshape_dim(1, (group.count, sizes.q, sizes.S))
    by_head = attended.reshape_dim(1, (sizes.q, chunks))
    for chunk in range(chunks):
        target = by_head[:, :, chunk, token : token + group.count * sizes.S]
        own = weighted[:, chunk, :].reshape_dim(1, (group.count, sizes.q, sizes.S))
        nisa.tensor_tensor(
            dst=target.reshape_dim(2, (group.count, sizes.S)),
            data1=own.permute((0, 2, 1, 3)),
            data2=by_column.permute((0, 2, 1, 3)),
            op=nl.multiply,
        )
