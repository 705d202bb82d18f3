"""Between rows in HBM and the transposed tiles on chip."""

import nki.isa as nisa
import nki.language as nl

from .sizes import PARTITIONS


def load_tokens(X, sizes):
    """X [B, S, H] in HBM as a tile [128, n, T]: the chunks of H that this core holds."""
    T = sizes.T
    share = sizes.hidden_share()
    first = share.first * PARTITIONS
    rows = nl.ndarray((T, share.count * PARTITIONS), dtype=sizes.dtype, buffer=nl.sbuf)
    columns = X.reshape((T, sizes.H))
    nisa.dma_copy(dst=rows, src=columns[:, first : first + share.count * PARTITIONS])
    tile = nl.ndarray((PARTITIONS, share.count, T), dtype=sizes.dtype, buffer=nl.sbuf)
    for chunk in range(share.count):
        turned = nl.ndarray((PARTITIONS, T), dtype=sizes.dtype, buffer=nl.psum)
        nisa.nc_transpose(
            dst=turned,
            data=rows[:, chunk * PARTITIONS : (chunk + 1) * PARTITIONS],
            engine=nisa.engine.tensor,
        )
        nisa.tensor_copy(dst=tile[:, chunk, :], src=turned)
    return tile


def store_tokens(out, tile, sizes):
    """A tile [128, n, T] as its columns of `out` [B, S, H] in HBM."""
    T = sizes.T
    share = sizes.hidden_share()
    # Where both cores hold the middle chunk, the first stores it.
    count = share.count - share.skipped
    first = share.first + share.skipped
    if count > 0:
        rows = nl.ndarray((T, count * PARTITIONS), dtype=sizes.dtype, buffer=nl.sbuf)
        for index in range(count):
            turned = nl.ndarray((T, PARTITIONS), dtype=sizes.dtype, buffer=nl.psum)
            nisa.nc_transpose(
                dst=turned, data=tile[:, share.skipped + index, :], engine=nisa.engine.tensor
            )
            nisa.tensor_copy(dst=rows[:, index * PARTITIONS : (index + 1) * PARTITIONS], src=turned)
        columns = out.reshape((T, sizes.H))
        nisa.dma_copy(dst=columns[:, first * PARTITIONS : (first + count) * PARTITIONS], src=rows)


def load_columns(vector, first, count):
    """Elements first*128 .. (first+count)*128 of row 0 of a `LayerTensor` as [128, count].

    Element c * 128 + p comes to partition p of column c: a vector of features as a per-partition
    operand. It is loaded as rows of 128, which DMA moves in one piece each, and turned on chip.
    """
    row = vector.view[0:1, :]
    dtype = row.dtype
    columns = nl.ndarray((PARTITIONS, count), dtype=dtype, buffer=nl.sbuf)
    done = 0
    while done < count:
        size = min(PARTITIONS, count - done)
        start = (first + done) * PARTITIONS
        rows = nl.ndarray((size, PARTITIONS), dtype=dtype, buffer=nl.sbuf)
        piece = row[:, start : start + size * PARTITIONS].reshape((size, PARTITIONS))
        nisa.dma_copy(dst=rows, src=vector.select_layer(piece))
        turned = nl.ndarray((PARTITIONS, size), dtype=dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=rows, engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=columns[:, done : done + size], src=turned)
        done += size
    return columns
