"""The scores of a block of keys: queries times keys, masked."""

import nki.isa as nisa
import nki.language as nl

from .attention_loads import keys_of
from .divisions import stacks_heads
from .limits import PARTITIONS, PSUM_BANK, ceiling_divide
from .softmax import MASKED


def score_products(number, heads, upper, new_keys, loads, context):
    """Scores of a task before masks, [rows, banks, 512] in PSUM; new keys [rows, k, chunks, T].

    `upper` has the queries of `heads` on the upper half of the partitions, or is None.
    """
    sizes = context.sizes
    task = loads.tasks[number]
    block = task.block
    group = task.group
    banks = ceiling_divide(block.chunks, group.per_bank)
    product = nl.ndarray((block.rows, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
    if block.active_rows > 0:
        # The new keys of many sequences at once: other sequences' keys are masked.
        tokens = group.tokens
        last = tokens.first_token + tokens.tokens
        own_keys = new_keys[:, :, :, tokens.first_token : last]
        bank, first = group.place(block.active_chunk)
        columns = product[0 : block.active_rows, bank, first : first + group.columns]
        for kv_head in range(sizes.k):
            queries = _queries(heads, group, 0, group.count, kv_head, sizes)
            for head_chunk in range(sizes.head_chunks):
                nisa.nc_matmul(
                    dst=group.of_kv_head(columns, kv_head),
                    stationary=own_keys[:, kv_head, head_chunk, :],
                    moving=queries[:, head_chunk, :, :, :],
                    accumulate=head_chunk > 0,
                )
    of_task = loads.pairs[number]
    for index in range(len(of_task)):
        pairs = of_task[index]
        keys = loads.keys(number, index)
        for segment in block.segments:
            own = keys_of(keys, segment, sizes)
            of_half = heads
            if segment.half == 1:
                of_half = upper
            position = ()
            size = ()
            if stacks_heads(sizes.d):
                # The rows of the Tensor Engine that the partitions feed.
                position = (segment.half * sizes.head_rows, 0)
                size = (sizes.head_rows, PARTITIONS)
            for pair in range(pairs.first, pairs.first + pairs.count):
                by_chunk = own[:, pair - pairs.first, :, :]
                by_chunk = by_chunk.reshape_dim(2, (segment.rows, segment.chunks))
                queries = _queries(of_half, group, pair // sizes.k, 1, pair % sizes.k, sizes)
                for chunk in range(segment.chunks):
                    bank, first = group.place(segment.first_chunk + chunk)
                    first += pair * group.per_pair
                    out = product[0 : segment.rows, bank, first : first + group.per_pair]
                    for head_chunk in range(sizes.head_chunks):
                        nisa.nc_matmul(
                            dst=out,
                            stationary=by_chunk[:, head_chunk, :, chunk],
                            moving=queries[:, head_chunk, :, :, :],
                            accumulate=head_chunk > 0,
                            tile_position=position,
                            tile_size=size,
                        )
    return product


def masked_scores(task, product, masks, capped, sizes):
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
    if block.active_rows > 0:
        own = masks.of_new_keys(group)
        _copy_attended(scores, product, own.expand_dim(1), block.active_chunk, group, capped)
    tiles = masks.get(task)
    for index in range(len(tiles)):
        first_chunk = block.segments[index].first_chunk
        _copy_attended(scores, product, tiles[index], first_chunk, group, capped)
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


def _queries(heads, group, first, count, kv_head, sizes):
    """[rows, chunks, count, q / k, S]: the queries of some sequences that share a KV head."""
    shared = sizes.q // sizes.k
    token = (group.first + first) * sizes.S
    queries = heads[:, kv_head * shared : (kv_head + 1) * shared, :, :]
    queries = queries[:, :, :, token : token + count * sizes.S]
    return queries.reshape_dim(3, (count, sizes.S)).permute((0, 2, 3, 1, 4))
