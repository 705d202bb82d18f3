"""Conversions between rows in HBM and the transposed tiles on chip."""

import nki.isa as nisa
import nki.language as nl

from .limits import PARTITIONS
from .sizes import hidden_order, hidden_share
from .token_blocks import token_blocks


def load_tokens(X, sizes, core):
    """X [B, S, H] in HBM as a tile [128, n, T]: the chunks of H that this core holds."""
    share = hidden_share(sizes, core)
    order = hidden_order(sizes, core)
    first = share.first * PARTITIONS
    columns = X.reshape((sizes.T, sizes.H))
    tile = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    for block in token_blocks(sizes, core):
        tokens = block.tokens
        last = block.first_token + tokens
        rows = nl.ndarray((tokens, share.count * PARTITIONS), dtype=sizes.dtype, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=rows,
            src=columns[block.first_token : last, first : first + share.count * PARTITIONS],
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.sync,
        )
        for chunk in range(share.count):
            turned = nl.ndarray((PARTITIONS, tokens), dtype=sizes.dtype, buffer=nl.psum)
            nisa.nc_transpose(
                dst=turned,
                data=order.columns(rows, share.first, share.first + chunk),
                engine=nisa.engine.tensor,
            )
            nisa.tensor_copy(dst=tile[:, chunk, block.first_token : last], src=turned)
    return tile


def store_tokens(out, tile, sizes, core, engine=nisa.engine.vector):
    """Writes a tile [128, n, T] to its columns of `out` [B, S, H] in HBM; `engine` copies."""
    share = hidden_share(sizes, core)
    order = hidden_order(sizes, core)
    # If both cores hold the middle chunk, the first core stores it.
    count = share.count - share.skipped
    first = share.first + share.skipped
    if count == 0:
        return
    columns = out.reshape((sizes.T, sizes.H))
    for block in token_blocks(sizes, core):
        tokens = block.tokens
        last = block.first_token + tokens
        rows = nl.ndarray((tokens, count * PARTITIONS), dtype=sizes.dtype, buffer=nl.sbuf)
        for index in range(count):
            turned = nl.ndarray((tokens, PARTITIONS), dtype=sizes.dtype, buffer=nl.psum)
            nisa.nc_transpose(
                dst=turned,
                data=tile[:, share.skipped + index, block.first_token : last],
                engine=nisa.engine.tensor,
            )
            piece = order.columns(rows, first, first + index)
            nisa.tensor_copy(dst=piece, src=turned, engine=engine)
        nisa.dma_copy(
            dst=columns[
                block.first_token : last, first * PARTITIONS : (first + count) * PARTITIONS
            ],
            src=rows,
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.scalar,
        )


def load_features(vector, context):
    """This core's elements of row 0 of a vector, laid like the residual stream: a tile [128, n].

    Args:
      vector: `LayerTensor` [rows, H]; or None.
      context: the launch's `Context`.

    Returns:
      The tile, in the vector's dtype, or None if the vector is None.
    """
    share = context.hidden_share()
    return load_ordered(vector, context.hidden_order(), share.first, share.count, context)


def load_ordered(vector, order, first, count, context):
    """Elements of row 0 of a vector, those of chunks first .. first + count of a `FeatureOrder`.

    Args:
      vector: `LayerTensor` [rows, n]; or None.
      order: the order, in groups.
      first: the first chunk, with which a group begins.
      count: chunks, of whole groups.
      context: the launch's `Context`.

    Returns:
      The tile [width, count], in the vector's dtype, or None if the vector is None.
    """
    if vector == None:
        return None
    width = order.width
    row = vector.view[0:1, :]
    tile = nl.ndarray((width, count), dtype=row.dtype, buffer=nl.sbuf)
    for groups in order.equal_groups(first, count):
        begin, size, number = groups
        # A row for each group, of which a transpose takes a chunk of all groups.
        elements = size * width
        rows = context.loaded.take(number, elements, row.dtype)
        piece = row[:, begin * width : begin * width + number * elements]
        vector.load(rows, piece.reshape((number, elements)))
        turned = nl.ndarray((width, size, number), dtype=row.dtype, buffer=nl.psum)
        for chunk in range(size):
            nisa.nc_transpose(
                dst=turned[:, chunk, :],
                data=order.columns(rows, begin, begin + chunk),
                engine=nisa.engine.tensor,
            )
        start = begin - first
        of_groups = tile[:, start : start + number * size].reshape_dim(1, (number, size))
        nisa.tensor_copy(dst=of_groups, src=turned.permute((0, 2, 1)))
    return tile


def load_columns(vector, first, count, context, width=PARTITIONS, dtype=None):
    """Elements first * width .. (first + count) * width of a vector, as a tile [width, count].

    Element c * width + p goes to partition p of column c, so that a vector of features becomes a
    per-partition operand. It is loaded as rows of `width`, each one piece for DMA, and transposed
    on chip.

    Args:
      vector: `LayerTensor` [rows, n], of which row 0 is used; or None.
      first: first chunk of `width` elements.
      count: chunks.
      context: the launch's `Context`.
      width: elements of a chunk, at most 128.
      dtype: of the tile; None: the vector's.

    Returns:
      The tile, or None if the vector is None.
    """
    if vector == None:
        return None
    row = vector.view[0:1, :]
    if dtype == None:
        dtype = row.dtype
    columns = nl.ndarray((width, count), dtype=dtype, buffer=nl.sbuf)
    done = 0
    while done < count:
        size = min(PARTITIONS, count - done)
        start = (first + done) * width
        rows = context.loaded.take(size, width, row.dtype)
        piece = row[:, start : start + size * width].reshape((size, width))
        vector.load(rows, piece)
        turned = nl.ndarray((width, size), dtype=row.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=rows, engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=columns[:, done : done + size], src=turned)
        done += size
    return columns
