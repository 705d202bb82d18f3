"""The sum over ranks, and the residual that it is added to."""

import nki.collectives as nccl
import nki.isa as nisa
import nki.language as nl

from .sizes import PARTITIONS, pieces


def add_reduced(x, partial, replica_group, on_chip, sizes):
    """x + the sum of `partial` over the ranks, rounded once to the compute dtype.

    Args:
      x: [128, n, T], the chunks of the residual stream that this core holds.
      partial: [128, n, T] f32, this rank's part of them.
      replica_group: whose ranks sum, or None where there is one.
      on_chip: reduce from SBUF to SBUF, else through HBM.
      sizes: the launch's sizes.

    Returns:
      A tile like x.
    """
    share = sizes.hidden_share()
    reduced = partial
    if replica_group != None:
        if on_chip:
            reduced = _reduce_on_chip(partial, replica_group, share, sizes)
        else:
            reduced = _reduce_in_hbm(partial, replica_group, share, sizes)
    after = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    # Piece by piece, so that the next stage can begin with the first.
    for piece in pieces(share.count, sizes.T):
        first, last = piece
        nisa.tensor_tensor(
            dst=after[:, first:last, :],
            data1=x[:, first:last, :],
            data2=reduced[:, first:last, :],
            op=nl.add,
        )
    return after


def _reduce_on_chip(partial, replica_group, share, sizes):
    shape = (PARTITIONS, share.count, sizes.T)
    reduced = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    flat = (PARTITIONS, share.count * sizes.T)
    nccl.all_reduce(
        srcs=[partial.reshape(flat)],
        dsts=[reduced.reshape(flat)],
        replica_group=replica_group,
        op=nl.add,
    )
    return reduced


def _reduce_in_hbm(partial, replica_group, share, sizes):
    """Both cores write their tiles into one tensor of the logical core, which is reduced whole."""
    shape = (PARTITIONS, share.total, sizes.T)
    whole = nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm)
    summed = nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm)
    # The first core writes a tile that both have computed.
    skipped = share.skipped
    if share.count > skipped:
        nisa.dma_copy(
            dst=whole[:, share.first + skipped : share.first + share.count, :],
            src=partial[:, skipped : share.count, :],
        )
    if sizes.cores > 1:
        nisa.core_barrier(data=whole, cores=(0, 1))
    nccl.all_reduce(srcs=[whole], dsts=[summed], replica_group=replica_group, op=nl.add)
    if sizes.cores > 1:
        nisa.core_barrier(data=summed, cores=(0, 1))
    reduced = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=reduced, src=summed[:, share.first : share.first + share.count, :])
    return reduced
