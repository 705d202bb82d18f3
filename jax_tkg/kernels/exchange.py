"""Swapping halves between the two physical cores of a logical core."""

import nki.isa as nisa

MAX_SWAPS = 16
"""Pieces that a swap is cut into at most, to fit the DMA of the GpSimd Engine."""

SWAP_ELEMENTS = 256
"""Most numbers per partition that this DMA moves at once, of any dtype; from the documentation of
nki.isa.sendrecv."""


def exchange_tiles(tile, share, sizes):
    """Completes `tile` [P, total, T], of which this core has computed its share of the tiles."""
    if sizes.cores > 1 and share.sent > 0:
        _swap(
            tile[:, share.send_first : share.send_first + share.sent, :],
            tile[:, share.receive_first : share.receive_first + share.sent, :],
            sizes,
        )


def swap(mine, theirs, sizes):
    """Receives the other core's `mine` [P, n, T] into `theirs`, of the same shape and dtype."""
    _swap(mine, theirs, sizes)


def _swap(mine, theirs, sizes):
    """Small tiles go by the GpSimd Engine's own DMA, which does not queue behind the weights."""
    other = 1 - sizes.core
    count = mine.shape[1]
    at_once = SWAP_ELEMENTS // mine.shape[2]
    if at_once * MAX_SWAPS < count:
        nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    else:
        first = 0
        while first < count:
            last = min(first + at_once, count)
            nisa.sendrecv(
                src=mine[:, first:last, :],
                dst=theirs[:, first:last, :],
                send_to_rank=other,
                recv_from_rank=other,
                pipe_id=0,
                dma_engine=nisa.dma_engine.gpsimd_dma,
            )
            first = last
