"""Matrix products of transposed activations with weights streamed from HBM.

The weight is the stationary operand: its [rows, 128 columns] tiles multiply the few tokens as
moving operand, and the product comes out with its features on the partitions.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .exchange import add_other_core, tiles_at_once
from .limits import PSUM_BANK, PSUM_GROUP_BANKS, ceiling_divide
from .sizes import bytes_of


class Columns(NKIObject):
    """Columns of a weight: tiles of `width` columns, at most 128, that begin at column `first`.

    Attributes:
      scale: the factor of each column, [width, tiles] float32 on chip, or None.
      bias: what is added to each column, [width, tiles] on chip, or None.
    """

    def __init__(self, first, width, scale=None, bias=None):
        self.first = first
        self.width = width
        self.scale = scale
        self.bias = bias


def linear(dst, x, weight, columns, context, normed=None, first_chunk=0, by_partition=False):
    """dst = (x^T @ weight[:, columns])^T, accumulated in float32.

    Args:
      dst: [width, tiles, T]: column `columns.first` + tile * width + partition of the product.
      x: [rows, chunks, T]: feature (first_chunk + chunk) * rows + partition of the contraction.
      weight: `LayerTensor` [n * rows, m], in x's dtype or float8.
      columns: which columns.
      context: the launch's `Context`.
      normed: the `Normed` that x is a tile of, if products are multiplied by its tokens' factors;
        or None.
      first_chunk: chunk of the weight's rows where x begins.
      by_partition: whether feature partition * chunks + chunk of all of the contraction is there
        in x, so that each partition's rows of the weight are neighbors in HBM.
    """
    ring = context.ring
    T = dst.shape[2]
    width = columns.width
    tiles = dst.shape[1]
    per_bank = PSUM_BANK // T
    # A result is read out in the pieces in which it is then swapped, or which a bank holds.
    at_once = min(per_bank, tiles_at_once(tiles, T))
    # The products of a group share PSUM, and one chunk of rows of its columns fits in a buffer.
    item = bytes_of(weight.view.dtype)
    group = min(per_bank * PSUM_GROUP_BANKS, ring.slot_bytes // (width * item))
    done = 0
    while done < tiles:
        count = min(group, tiles - done)
        banks = ceiling_divide(count, per_bank)
        product = nl.ndarray((width, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
        start = columns.first + done * width
        loads = RowLoads(weight, x, start, count, width, first_chunk, ring, by_partition)
        _accumulate(product, x, loads, context, normed)
        factor = None
        if normed != None:
            factor = normed.token_factor(context)
        first = 0
        while first < count:
            place = first % per_bank
            size = min(min(at_once, per_bank - place), count - first)
            part = product[:, first // per_bank, place * T : (place + size) * T]
            scale = None
            if columns.scale != None:
                scale = columns.scale[:, done + first : done + first + size]
            bias = None
            if columns.bias != None:
                bias = columns.bias[:, done + first : done + first + size]
            _store_product(
                dst[:, done + first : done + first + size, :],
                part.reshape_dim(1, (size, T)),
                scale,
                factor,
                bias,
            )
            first += size
        done += count


def linear_of_shares(dst, normed, weight, columns, context, multiplier=None, urgent=True):
    """dst = (x^T @ weight[:, columns])^T of the whole residual stream x, complete on every core.

    Each core multiplies the features that it holds, and adds the other core's product.

    Args:
      dst: [width, tiles, T]: column `columns.first` + tile * width + partition of the product.
      normed: the `Normed` x: this core's share of the features.
      weight: `LayerTensor` [H, m], in x's dtype or float8.
      columns: which columns.
      context: the launch's `Context`.
      multiplier: [width, tiles, T] float32, by which the product is multiplied; or None.
      urgent: whether the next stage waits for the product.
    """
    core = context.core
    if core.count == 1 and multiplier == None:
        linear(dst, normed.tile, weight, columns, context, normed=normed)
        return
    partial = nl.ndarray(dst.shape, dtype=nl.float32, buffer=nl.sbuf)
    if core.count == 1:
        linear(partial, normed.tile, weight, columns, context, normed=normed)
        nisa.tensor_tensor(dst=dst, data1=partial, data2=multiplier, op=nl.multiply)
        return
    share = context.hidden_share()
    if core.index > 0:
        # The first core adds the bias.
        columns = Columns(columns.first, columns.width, scale=columns.scale)
    if share.count > share.skipped:
        x = normed.tile[:, share.skipped : share.count, :]
        chunk = share.first + share.skipped
        linear(partial, x, weight, columns, context, normed=normed, first_chunk=chunk)
    else:
        nisa.memset(dst=partial, value=0.0)
    add_other_core(dst, partial, core, multiplier=multiplier, urgent=urgent)


def _store_product(dst, summed, scale, factor, bias):
    """dst [width, n, T] = summed * scale [width, n] * factor [128, T] + bias [width, n].

    Scale, factor and bias may each be None.
    """
    if bias != None:
        shape = (dst.shape[0], dst.shape[1], dst.shape[2])
        product = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        _store_product(product, summed, scale, factor, None)
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
        scaled = nl.ndarray((width, tiles, T), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=scaled, data1=summed, data2=by_column, op=nl.multiply)
        nisa.tensor_tensor(dst=dst, data1=scaled, data2=by_token, op=nl.multiply)


class RowLoads(NKIObject):
    """The loads of the rows of a weight for `count` tiles of columns, block by block.

    Attributes:
      count, width: tiles of columns, and columns of a tile.
      by_partition: whether chunk c of x has row p * chunks + c of the weight on partition p, not
        row c * rows + p.
      blocks: (first, size) of the chunks of rows that each load brings, in blocks of similar size.
    """

    def __init__(self, weight, x, first_column, count, width, first_chunk, ring, by_partition):
        self.weight = weight
        self.rows = x.shape[0]
        self.dtype = x.dtype
        self.first_column = first_column
        self.count = count
        self.width = width
        self.first_chunk = first_chunk
        self.ring = ring
        self.by_partition = by_partition
        self.blocks = row_blocks(weight.view.dtype, count * width, x.shape[1], ring)

    def load(self, block):
        """[rows, size, count * width]: a block's rows, in a dtype that x can be multiplied with."""
        start, size = block
        rows = self.rows
        columns = self.count * self.width
        weight = self.weight
        view = weight.view
        ring = self.ring
        buffer = ring.take(view.dtype)
        loaded = buffer[0:rows, 0 : size * columns].reshape_dim(1, (size, columns))
        chunk = self.first_chunk + start
        first = self.first_column
        if self.by_partition:
            by_rows = view.reshape((rows, view.shape[0] // rows, view.shape[1]))
            source = by_rows[:, chunk : chunk + size, first : first + columns]
        else:
            by_chunk = view.reshape((view.shape[0] // rows, rows, view.shape[1]))
            chunks = by_chunk[chunk : chunk + size, :, first : first + columns]
            source = chunks.permute((1, 0, 2))
        weight.load(loaded, source)
        if self.dtype == nl.float32 and view.dtype != nl.float32:
            # The Tensor Engine multiplies float32 with nothing else.
            wide = nl.ndarray((rows, size, columns), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=wide, src=loaded)
            return wide
        return loaded


def _accumulate(product, x, loads, context, normed):
    """Multiplies all rows, as many at a time as a buffer of the ring holds."""
    chunks = x.shape[1]
    blocks = loads.blocks
    for block in blocks:
        start, size = block
        if normed != None and len(blocks) > 2 and start + size == chunks:
            # Its inputs are ready by now, so that the first tiles need not wait for the last.
            normed.token_factor(context)
        loaded = loads.load(block)
        if start + size < chunks:
            # The first rows of x may be ready before the others.
            for chunk in range(size):
                for tile in range(loads.count):
                    _multiply(product, loaded, x, start, chunk, tile, loads.width)
        else:
            # Tile by tile, so that the first is read out while the others are multiplied.
            for tile in range(loads.count):
                for chunk in range(size):
                    _multiply(product, loaded, x, start, chunk, tile, loads.width)


def _multiply(product, loaded, x, start, chunk, tile, width):
    """Adds the product of one tile of the weight: of chunk `chunk` of the loaded block."""
    T = x.shape[2]
    per_bank = PSUM_BANK // T
    place = (tile % per_bank) * T
    nisa.nc_matmul(
        dst=product[:, tile // per_bank, place : place + T],
        stationary=loaded[:, chunk, tile * width : (tile + 1) * width],
        moving=x[:, start + chunk, :],
        accumulate=start + chunk > 0,
    )


def row_blocks(dtype, columns, chunks, ring):
    """(first, count) of the chunks of rows that are loaded together, in blocks of similar size."""
    at_once = max(1, ring.slot_bytes // (columns * bytes_of(dtype)))
    number = ceiling_divide(chunks, at_once)
    blocks = []
    first = 0
    for index in range(number):
        last = (index + 1) * chunks // number
        blocks.append((first, last - first))
        first = last
    return blocks
