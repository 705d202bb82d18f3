"""Matrix products of transposed activations with weights streamed from HBM.

The weight is the stationary operand: its [rows, 128 columns] tiles multiply the few tokens as
moving operand, and the product comes out with its features on the partitions.
"""

import nki.isa as nisa
import nki.language as nl

from .exchange import add_other_core, tiles_at_once
from .sizes import PSUM_BANK, PSUM_GROUP_BANKS, ceiling_divide


def linear(
    dst, x, weight, first_column, width, ring, sizes, scale=None, normed=None, first_chunk=0
):
    """dst = (x^T @ weight[:, columns])^T, accumulated in f32.

    Args:
      dst: [width, tiles, T], the product's columns first_column + tile * width + partition.
      x: [rows, chunks, T]: feature (first_chunk + chunk) * rows + partition of the contraction.
      weight: `LayerTensor` [n * rows, columns]: x's dtype or float8.
      first_column: of the weight.
      width: columns per tile, at most 128.
      ring: buffers for the weight.
      sizes: the launch's sizes.
      scale: [width, tiles] f32, factor of each output column, or None.
      normed: the `Normed` that x is the tile of: its tokens' factors are applied; or None.
      first_chunk: of the weight's rows.
    """
    tiles = dst.shape[1]
    per_bank = PSUM_BANK // sizes.T
    # Products are read out as many at a time as are then swapped, or as lie in a bank.
    at_once = min(per_bank, tiles_at_once(tiles, sizes.T))
    # A group's products share PSUM, and one row chunk of its columns fits in a buffer.
    group = min(
        per_bank * PSUM_GROUP_BANKS, ring.slot_bytes // (width * bytes_of(weight.view.dtype))
    )
    done = 0
    while done < tiles:
        count = min(group, tiles - done)
        banks = ceiling_divide(count, per_bank)
        product = nl.ndarray((width, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
        start = first_column + done * width
        _accumulate(product, x, weight, first_chunk, start, width, count, ring, sizes, normed)
        factor = None
        if normed != None:
            factor = normed.token_factor(sizes)
        first = 0
        while first < count:
            place = first % per_bank
            size = min(min(at_once, per_bank - place), count - first)
            part = product[:, first // per_bank, place * sizes.T : (place + size) * sizes.T]
            columns = None
            if scale != None:
                columns = scale[:, done + first : done + first + size]
            _store_product(
                dst[:, done + first : done + first + size, :],
                part.reshape_dim(1, (size, sizes.T)),
                columns,
                factor,
            )
            first += size
        done += count


def linear_of_shares(
    dst, normed, weight, first_column, width, ring, sizes, scale=None, times=None, urgent=True
):
    """dst = (x^T @ weight[:, columns])^T of the whole residual stream x, complete on every core.

    Each core multiplies the features that it holds, and adds what the other has.

    Args:
      dst: [width, tiles, T], the product's columns first_column + tile * width + partition.
      normed: the `Normed` x: this core's share of the features.
      weight: `LayerTensor` [H, columns]: x's dtype or float8.
      first_column: of the weight.
      width: columns per tile, at most 128.
      ring: buffers for the weight.
      sizes: the launch's sizes.
      scale: [width, tiles] f32, factor of each output column, or None.
      times: [width, tiles, T] f32, by which the product is multiplied; or None.
      urgent: whether what follows waits for the product.
    """
    if sizes.cores == 1 and times == None:
        linear(dst, normed.tile, weight, first_column, width, ring, sizes, scale, normed)
    else:
        partial = nl.ndarray((width, dst.shape[1], sizes.T), dtype=nl.float32, buffer=nl.sbuf)
        if sizes.cores == 1:
            linear(partial, normed.tile, weight, first_column, width, ring, sizes, scale, normed)
            nisa.tensor_tensor(dst=dst, data1=partial, data2=times, op=nl.multiply)
        else:
            share = sizes.hidden_share()
            if share.count > share.skipped:
                x = normed.tile[:, share.skipped : share.count, :]
                chunk = share.first + share.skipped
                linear(partial, x, weight, first_column, width, ring, sizes, scale, normed, chunk)
            else:
                nisa.memset(dst=partial, value=0.0)
            add_other_core(dst, partial, sizes, times, urgent)


def _store_product(dst, summed, scale, factor):
    """dst [width, n, T] = summed * scale [width, n] * factor [128, T]; either may be None."""
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
        scaled = nl.ndarray((width, tiles, T), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=scaled, data1=summed, data2=by_column, op=nl.multiply)
        nisa.tensor_tensor(dst=dst, data1=scaled, data2=by_token, op=nl.multiply)


def _accumulate(product, x, weight, first_chunk, first_column, width, count, ring, sizes, normed):
    """Multiplies all rows of `count` tiles of columns, as many rows at a time as a buffer holds."""
    rows = x.shape[0]
    chunks = x.shape[1]
    columns = count * width
    blocks = row_blocks(weight.view.dtype, columns, chunks, ring)
    for block in blocks:
        start, size = block
        if normed != None and len(blocks) > 2 and start + size == chunks:
            # What it takes is there by now, so that the first tiles need not wait for the last.
            normed.token_factor(sizes)
        loaded = load_rows(
            weight, rows, first_chunk + start, size, first_column, columns, x.dtype, ring
        )
        if start + size < chunks:
            # The first rows of x may be there before the others.
            for chunk in range(size):
                for tile in range(count):
                    _multiply(product, loaded, x, start, chunk, tile, width, sizes)
        else:
            # Tile by tile, so that the first can be read out while the others are multiplied.
            for tile in range(count):
                for chunk in range(size):
                    _multiply(product, loaded, x, start, chunk, tile, width, sizes)


def _multiply(product, loaded, x, start, chunk, tile, width, sizes):
    """Adds the product of one tile of the weight, of chunk `chunk` of those loaded."""
    per_bank = PSUM_BANK // sizes.T
    place = (tile % per_bank) * sizes.T
    nisa.nc_matmul(
        dst=product[:, tile // per_bank, place : place + sizes.T],
        stationary=loaded[:, chunk, tile * width : (tile + 1) * width],
        moving=x[:, start + chunk, :],
        accumulate=start + chunk > 0,
    )


def row_blocks(dtype, columns, chunks, ring):
    """(first, count) of the chunks of rows that are loaded together, in blocks of like size."""
    at_once = max(1, ring.slot_bytes // (columns * bytes_of(dtype)))
    number = ceiling_divide(chunks, at_once)
    blocks = []
    first = 0
    for index in range(number):
        last = (index + 1) * chunks // number
        blocks.append((first, last - first))
        first = last
    return blocks


def bytes_of(dtype):
    """Bytes of one number."""
    if dtype == nl.float32:
        return 4
    if dtype == nl.bfloat16 or dtype == nl.float16:
        return 2
    return 1


def load_rows(weight, rows, start, size, first_column, columns, dtype, ring):
    """Chunks start .. start + size of `rows` rows each, as a tile [rows, size, columns].

    The tile can be multiplied with one of `dtype`.
    """
    view = weight.view
    buffer = ring.take(view.dtype)
    loaded = buffer[0:rows, 0 : size * columns].reshape_dim(1, (size, columns))
    by_chunk = view.reshape((view.shape[0] // rows, rows, view.shape[1]))
    source = by_chunk[start : start + size, :, first_column : first_column + columns]
    nisa.dma_copy(dst=loaded, src=weight.select_layer(source.permute((1, 0, 2))))
    if dtype == nl.float32 and view.dtype != nl.float32:
        # The tensor engine multiplies f32 with nothing else.
        wide = nl.ndarray((rows, size, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=wide, src=loaded)
        return wide
    return loaded
