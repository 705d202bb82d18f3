"""Matrix products of transposed activations with weights streamed from HBM.

The weight is the stationary operand: its [rows, 128 columns] tiles multiply the few tokens as
moving operand, and the product comes out with its features on the partitions.
"""

import nki.isa as nisa
import nki.language as nl

from .double_rows import add_terms, split
from .exchange import add_other_core, tiles_at_once
from .feature_order import FeatureOrder, even_blocks
from .limits import PSUM_BANK, TERMS, ceiling_divide
from .row_loads import Columns, begin, in_double_rows, product_loads, share_loads
from .sizes import pieces


def linear(
    dst,
    x,
    weight,
    columns,
    context,
    normed=None,
    first_chunk=0,
    rows=None,
    loads=None,
    ahead=None,
    terms=None,
    early=None,
    adds=False,
):
    """dst = (x^T @ weight[:, columns])^T, accumulated in float32.

    Args:
      dst: [width, tiles, T]: the product's columns, where `columns` says.
      x: [width of `rows`, chunks, T]: features of the contraction.
      weight: `LayerTensor` [n * rows, m], in x's dtype or float8.
      columns: which columns.
      context: the launch's `Context`.
      normed: the `Normed` that x is a tile of, if products are multiplied by its tokens' factors;
        or None.
      first_chunk: chunk of the weight's rows where x begins.
      rows: the `FeatureOrder` of the weight's rows, of which x has chunks; None: feature
        chunk * width + partition, of the width of x.
      loads: `product_loads` of this product, which may have begun; None: they begin here.
      ahead: `product_loads` of the next product, which begin once all rows are multiplied; or None.
      terms: the `Terms` of x, for loads `in_double_rows`; None: they are made here.
      early: (first, last) of the tiles of the product that are ready before the others; or None.
      adds: whether the product is added to `dst`, which is float32; only of products that have no
        scale, bias or factors of tokens.
    """
    T = dst.shape[2]
    width = columns.width
    tiles = dst.shape[1]
    if loads == None:
        if rows == None:
            rows = FeatureOrder(x.shape[0])
        loads = product_loads(weight, columns, tiles, x.shape[1], context, rows, first_chunk)
    moving = T
    if in_double_rows(loads):
        moving = TERMS * T
        if terms == None and normed != None:
            terms = normed.terms(context, weight.view.dtype)
        elif terms == None:
            terms = split(x, context, weight.view.dtype)
    per_bank = PSUM_BANK // moving
    # A result is read out in the pieces in which it is then swapped, or which a bank holds.
    at_once = min(per_bank, tiles_at_once(tiles, T))
    for group in loads:
        done = group.done
        count = group.count
        banks = ceiling_divide(count, per_bank)
        product = nl.ndarray((width, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
        ranges = ranges_of_tiles(done, count, early)
        _accumulate(product, x, terms, group, context, normed, ranges=ranges)
        if ahead != None and done + count == tiles:
            begin(ahead)
        factor = _token_factor(normed, terms, context)
        for part_range in parts_of_banks(ranges, at_once, per_bank):
            first, size = part_range
            place = first % per_bank
            part = product[:, first // per_bank, place * moving : (place + size) * moving]
            if terms == None:
                summed = part.reshape_dim(1, (size, T))
            else:
                summed = add_terms(part, size, T)
            target = dst[:, done + first : done + first + size, :]
            if adds:
                nisa.tensor_tensor(dst=target, data1=target, data2=summed, op=nl.add)
            else:
                scale = columns.scale_of(done + first, done + first + size)
                bias = columns.bias_of(done + first, done + first + size)
                store_product(target, summed, scale, factor, bias)


def add_product(product, x, weight, columns, tiles, context, rows, added, early=None):
    """Adds (x^T @ weight[:, columns])^T to sums that stay in PSUM.

    Args:
      product: [128, banks, 512] float32 in PSUM: as many tiles of columns in a bank as it holds.
      x: [width, chunks, T], all features of the contraction.
      weight: `LayerTensor` [width * chunks, m], in x's dtype.
      columns: which columns.
      tiles: of columns.
      context: the launch's `Context`.
      rows: the `FeatureOrder` of the weight's rows, of which x has all chunks.
      added: whether there are sums already; else the product begins them.
      early: (first, last) of the tiles whose sums are complete before the others, for which their
        part of the last rows loads first; or None.
    """
    loads = product_loads(weight, columns, tiles, x.shape[1], context, rows)
    for group in loads:
        ranges = ranges_of_tiles(group.done, group.count, early)
        group.part_last(ranges)
        _accumulate(
            product, x, None, group, context, None, added=added, ranges=ranges, first=group.done
        )


def linear_of_shares(
    dst,
    normed,
    weight,
    columns,
    context,
    multiplier=None,
    urgent=True,
    loads=None,
    ahead=None,
    kept=None,
):
    """dst = (x^T @ weight[:, columns])^T of the whole residual stream x, complete on every core.

    Each core multiplies the features that it holds, and adds the other core's product.

    Args:
      dst: [width, tiles, T]: the product's columns, where `columns` says; or those `kept`.
      normed: the `Normed` x: this core's share of the features.
      weight: `LayerTensor` [H, m], in x's dtype or float8.
      columns: which columns, with scale and bias on chip if there are any.
      context: the launch's `Context`.
      multiplier: [width, tiles, T] float32, by which the product is multiplied; or None.
      urgent: whether the next stage waits for the product.
      loads: its `share_loads`, which may have begun; None: they begin here.
      ahead: `product_loads` of the next product, which begin before the cores swap; or None.
      kept: the first of the tiles that `dst` has, if each core has half of them; or None.
    """
    core = context.core
    width, tiles, T = dst.shape
    if kept != None:
        tiles = 2 * tiles
    if loads == None:
        loads = share_loads(weight, columns, tiles, context)
    # If each core keeps half, it sends the other half, and has that before its own.
    sent = (0, tiles)
    if kept != None:
        sent = (tiles // 2 - kept, tiles - kept)
    if core.count == 1 and multiplier == None:
        x = normed.tile
        linear(dst, x, weight, columns, context, normed=normed, loads=loads, ahead=ahead)
        return
    partial = nl.ndarray((width, tiles, T), dtype=nl.float32, buffer=nl.sbuf)
    if core.index > 0:
        # The first core adds the bias.
        columns = Columns(columns.first, columns.width, scale=columns.scale, order=columns.order)
    linear_of_share(partial, normed, weight, columns, context, loads, ahead=ahead, early=sent)
    if core.count > 1:
        first = 0
        if kept != None:
            first = kept
        add_other_core(
            dst,
            partial[:, first : first + dst.shape[1], :],
            core,
            multiplier=multiplier,
            urgent=urgent,
            sent=partial[:, sent[0] : sent[1], :],
        )
    else:
        nisa.tensor_tensor(dst=dst, data1=partial, data2=multiplier, op=nl.multiply)


def linear_of_share(
    dst, normed, weight, columns, context, loads, ahead=None, early=None, scaled=True
):
    """dst = (x^T @ weight[:, columns])^T, of the features of x that this core holds.

    Args:
      dst: [width, tiles, T] float32.
      normed: the `Normed` x: this core's share of the features.
      weight: `LayerTensor` [H, m], in x's dtype or float8.
      columns: which columns.
      context: the launch's `Context`.
      loads: `share_loads`, which may have begun.
      ahead: `product_loads` of the next product, which begin once all rows are multiplied; or None.
      early: as `linear` takes it.
      scaled: whether the product is multiplied by the tokens' factors; else it is in single rows.
    """
    share = context.hidden_share()
    x = normed.tile
    if share.count == share.skipped:
        nisa.memset(dst=dst, value=0.0)
        if ahead != None:
            begin(ahead)
        return
    x = x[:, share.skipped : share.count, :]
    if not scaled:
        linear(dst, x, weight, columns, context, loads=loads, ahead=ahead, early=early)
        return
    terms = None
    if in_double_rows(loads):
        terms = normed.terms(context, weight.view.dtype)
        terms = terms.part(share.skipped, share.count)
    linear(
        dst,
        x,
        weight,
        columns,
        context,
        normed=normed,
        loads=loads,
        ahead=ahead,
        terms=terms,
        early=early,
    )


def ranges_of_tiles(done, count, early):
    """(first, last) of ranges of `count` tiles from tile `done` on: first those that are early."""
    if early == None:
        return [(0, count)]
    first = min(max(early[0] - done, 0), count)
    last = min(max(early[1] - done, first), count)
    return [(first, last), (last, count), (0, first)]


def parts_of_banks(ranges, at_once, per_bank):
    """(first, size) of the parts in which ranges of tiles are read out of their banks."""
    parts = []
    for each in ranges:
        first, last = each
        while first < last:
            size = min(min(at_once, per_bank - first % per_bank), last - first)
            parts.append((first, size))
            first += size
    return parts


def store_product(dst, summed, scale, factor, bias):
    """dst [width, n, T] = summed * scale [width, n] * factor [128, T] + bias [width, n].

    Scale, factor and bias may each be None. `summed`, in PSUM, may be overwritten, because the
    Vector Engine multiplies at the full rate where one operand is there and the other in SBUF.
    """
    if bias != None:
        shape = (dst.shape[0], dst.shape[1], dst.shape[2])
        product = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        store_product(product, summed, scale, factor, None)
        by_column = bias.expand_dim(2).broadcast(2, dst.shape[2])
        nisa.tensor_tensor(dst=dst, data1=product, data2=by_column, op=nl.add)
        return
    width = dst.shape[0]
    tiles = dst.shape[1]
    T = dst.shape[2]
    if factor != None:
        by_token = factor[0:width, :].expand_dim(1).broadcast(1, tiles)
    if scale != None:
        by_column = scale.expand_dim(2).broadcast(2, T)
    if scale == None and factor == None:
        nisa.tensor_copy(dst=dst, src=summed)
    elif scale == None:
        nisa.tensor_tensor(dst=dst, data1=summed, data2=by_token, op=nl.multiply)
    elif factor == None:
        nisa.tensor_tensor(dst=dst, data1=summed, data2=by_column, op=nl.multiply)
    else:
        nisa.tensor_tensor(dst=summed, data1=summed, data2=by_column, op=nl.multiply)
        nisa.tensor_tensor(dst=dst, data1=summed, data2=by_token, op=nl.multiply)


def _token_factor(normed, terms, context):
    """[128, T] float32 by which a product is multiplied, or None."""
    factor = None
    if normed != None:
        factor = normed.token_factor(context)
    if terms == None:
        return factor
    scale = terms.scale
    return scale.undo(factor)


def _accumulate(product, x, terms, loads, context, normed, added=False, ranges=None, first=0):
    """Multiplies all rows, as many at a time as a buffer of the ring holds.

    Products are complete in the order of `ranges` of tiles; None: in their order. The first tile of
    `loads` is tile `first` of `product`.
    """
    if ranges == None:
        ranges = [(0, loads.count)]
    chunks = x.shape[1]
    blocks = loads.blocks
    # Blocks of rows until whose products the squares are added up; of few numbers they are sooner.
    enough = 2
    if len(pieces(chunks, x.shape[2])) == 1:
        enough = 1
    for number in range(len(blocks)):
        start, size = blocks[number]
        if normed != None and number >= enough and start + size == chunks:
            # Its inputs are ready by now, so that the first tiles need not wait for the last.
            _token_factor(normed, terms, context)
        loaded = loads.load(number, x.dtype)
        # Chunks that are multiplied at once: in double rows two, but for the last of an odd number.
        at_once = 1
        if terms != None:
            at_once = 2
        steps = even_blocks(0, size, at_once, at_once)
        if start + size < chunks:
            # The first rows of x may be ready before the others.
            for step in steps:
                for tile in range(loads.count):
                    _multiply(product, loads, loaded, x, terms, start, step, tile, added, first)
        else:
            # Tile by tile, so that the first is read out while the others are multiplied.
            for each in ranges:
                for tile in range(each[0], each[1]):
                    for step in steps:
                        _multiply(product, loads, loaded, x, terms, start, step, tile, added, first)


def _multiply(product, loads, loaded, x, terms, start, step, tile, added, first):
    """Adds the product of one tile of the weight: of chunks `step` of the loaded block.

    It is tile `first` + `tile` of `product`.
    """
    chunk, rows = step
    mode = nisa.matmul_perf_mode.none
    if rows == 2:
        stationary = loads.tile_of_rows(loaded, chunk, rows, tile)
        mode = nisa.matmul_perf_mode.double_row
    else:
        stationary = loads.tile(loaded, chunk, tile)
    if terms == None:
        columns = x.shape[2]
        moving = x[:, start + chunk, :]
    else:
        columns = terms.columns
        moving = terms.moving(start + chunk, rows)
    per_bank = PSUM_BANK // columns
    bank = (first + tile) // per_bank
    place = (first + tile) % per_bank * columns
    nisa.nc_matmul(
        dst=product[:, bank, place : place + columns],
        stationary=stationary,
        moving=moving,
        accumulate=added or start + chunk > 0,
        perf_mode=mode,
    )
