"""What the two physical cores of a logical core tell each other."""

import nki.isa as nisa
import nki.language as nl

GPSIMD_ELEMENTS = 256
"""Most numbers per partition that the GpSimd Engine's own DMA swaps at once, of any dtype; from the
documentation of nki.isa.sendrecv."""

GPSIMD_SWAPS = 16
"""Larger tiles, which would take more such swaps than this, go by the DMA engines."""

GPSIMD_SWAPS_AT_LEISURE = 2
"""The same where nothing waits for the tiles yet."""

DMA_ELEMENTS = 4096
"""Numbers per partition that the DMA engines swap at once."""


def swap(mine, theirs, sizes):
    """Receives the other core's `mine` [P, n, T] into `theirs`, of the same shape and dtype."""
    count = mine.shape[1]
    at_once = tiles_at_once(count, mine.shape[2])
    first = 0
    while first < count:
        last = min(first + at_once, count)
        _send(mine[:, first:last, :], theirs[:, first:last, :], sizes)
        first = last


def add_other_core(dst, mine, sizes, times=None, urgent=True):
    """dst [P, n, T] = `mine` of this core + `mine` of the other, in f32; both may be one tile.

    Where `times` [P, n, T] f32 is given, the sum is multiplied by it. What is not `urgent` may
    wait behind weights.
    """
    partitions = mine.shape[0]
    count = mine.shape[1]
    T = mine.shape[2]
    at_once = tiles_at_once(count, T, urgent)
    first = 0
    while first < count:
        last = min(first + at_once, count)
        shape = (partitions, last - first, T)
        part = mine[:, first:last, :]
        theirs = nl.ndarray(shape, dtype=mine.dtype, buffer=nl.sbuf)
        _send(part, theirs, sizes)
        target = dst[:, first:last, :]
        if times == None:
            nisa.tensor_tensor(dst=target, data1=part, data2=theirs, op=nl.add)
        else:
            summed = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=summed, data1=part, data2=theirs, op=nl.add)
            factors = times[:, first:last, :]
            nisa.tensor_tensor(dst=target, data1=summed, data2=factors, op=nl.multiply)
        first = last


def tiles_at_once(count, T, urgent=True):
    """How many of `count` tiles of T columns are swapped together.

    Small ones go by the GpSimd Engine's DMA, where no weights are queued before them.
    """
    small = max(1, GPSIMD_ELEMENTS // T)
    swaps = GPSIMD_SWAPS
    if not urgent:
        swaps = GPSIMD_SWAPS_AT_LEISURE
    if count <= small * swaps:
        return small
    return max(1, DMA_ELEMENTS // T)


def _send(mine, theirs, sizes):
    other = 1 - sizes.core
    engine = nisa.dma_engine.dma
    if mine.shape[1] * mine.shape[2] <= GPSIMD_ELEMENTS:
        engine = nisa.dma_engine.gpsimd_dma
    nisa.sendrecv(
        src=mine,
        dst=theirs,
        send_to_rank=other,
        recv_from_rank=other,
        pipe_id=0,
        dma_engine=engine,
    )
