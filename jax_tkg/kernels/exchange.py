"""Transfers between the two physical cores of a logical core."""

import nki.isa as nisa
import nki.language as nl

from .limits import DMA_ELEMENTS, GPSIMD_ELEMENTS, GPSIMD_SWAPS, GPSIMD_SWAPS_AT_LEISURE


def swap(mine, theirs, core):
    """Receives the other core's `mine` [P, n, T] into `theirs`, of the same shape and dtype."""
    count = mine.shape[1]
    at_once = tiles_at_once(count, mine.shape[2])
    first = 0
    while first < count:
        last = min(first + at_once, count)
        _send(mine[:, first:last, :], theirs[:, first:last, :], core)
        first = last


def add_other_core(dst, mine, core, multiplier=None, urgent=True, sent=None):
    """dst [P, n, T] = this core's `mine` + what the other core sends; `dst` may be `mine`.

    Args:
      dst: [P, n, T].
      mine: [P, n, T].
      core: the launch's `Core`.
      multiplier: [P, n, T] float32, by which the sum is multiplied; or None.
      urgent: whether the next stage waits for `dst`. If not, the swap may queue behind weights.
      sent: what this core sends, of the shape and dtype of `mine`; None: `mine`.
    """
    if sent == None:
        sent = mine
    partitions = mine.shape[0]
    count = mine.shape[1]
    T = mine.shape[2]
    at_once = tiles_at_once(count, T, urgent=urgent)
    first = 0
    while first < count:
        last = min(first + at_once, count)
        shape = (partitions, last - first, T)
        part = mine[:, first:last, :]
        theirs = nl.ndarray(shape, dtype=mine.dtype, buffer=nl.sbuf)
        _send(sent[:, first:last, :], theirs, core)
        target = dst[:, first:last, :]
        if multiplier == None:
            nisa.tensor_tensor(dst=target, data1=part, data2=theirs, op=nl.add)
        else:
            summed = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=summed, data1=part, data2=theirs, op=nl.add)
            factors = multiplier[:, first:last, :]
            nisa.tensor_tensor(dst=target, data1=summed, data2=factors, op=nl.multiply)
        first = last


def tiles_at_once(count, T, urgent=True):
    """How many of `count` tiles of T columns are swapped together.

    The GpSimd Engine's own DMA swaps small tiles, because the other queues are full of weights.
    """
    small = max(1, GPSIMD_ELEMENTS // T)
    swaps = GPSIMD_SWAPS
    if not urgent:
        swaps = GPSIMD_SWAPS_AT_LEISURE
    if count <= small * swaps:
        return small
    return max(1, DMA_ELEMENTS // T)


def _send(mine, theirs, core):
    other = 1 - core.index
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
