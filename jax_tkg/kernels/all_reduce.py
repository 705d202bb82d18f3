"""The sum over ranks, and the residual that it is added to."""

import nki.collectives as nccl
import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS
from .rms_norm import normalize_update
from .row_loads import begin
from .sizes import pieces


class Reduction(NKIObject):
    """How the ranks' partial results are summed.

    Attributes:
      group: the ReplicaGroup whose ranks sum, or None for no all-reduce.
      on_chip: whether to reduce from SBUF to SBUF, else through HBM.
    """

    def __init__(self, group, on_chip):
        self.group = group
        self.on_chip = on_chip


def add_reduced(x, partial, reduction, context, bias=None, gain=None, ahead=None):
    """x + the sum of `partial` over the ranks, rounded once to the compute dtype.

    The sum gets the bias and is then normalized, if they are given.

    Args:
      x: [128, n, T], the chunks of the residual stream that this core holds.
      partial: [128, n, T] float32, this rank's part of them; may be overwritten.
      reduction: the launch's `Reduction`.
      context: the launch's `Context`.
      bias: `load_features` of it, or None.
      gain: `load_features` of the norm's gain, or None.
      ahead: `product_loads` of the next product, which begin before the reduction; or None.

    Returns:
      A tile like x.
    """
    sizes = context.sizes
    share = context.hidden_share()
    if ahead != None:
        begin(ahead)
    reduced = partial
    if reduction.group != None:
        if reduction.on_chip:
            reduced = _reduce_on_chip(partial, reduction.group, share, sizes)
        else:
            reduced = _reduce_in_hbm(partial, reduction.group, share, context)
    if bias != None:
        by_chunk = bias.expand_dim(2).broadcast(2, sizes.T)
        nisa.tensor_tensor(dst=reduced, data1=reduced, data2=by_chunk, op=nl.add)
    if gain != None:
        normalize_update(reduced, gain, context)
    after = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    # In pieces, so that the next stage can begin with the first.
    for piece in pieces(share.count, sizes.T):
        first, last = piece
        nisa.tensor_tensor(
            dst=after[:, first:last, :],
            data1=x[:, first:last, :],
            data2=reduced[:, first:last, :],
            op=nl.add,
        )
    return after


def _reduce_on_chip(partial, group, share, sizes):
    shape = (PARTITIONS, share.count, sizes.T)
    reduced = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    flat = (PARTITIONS, share.count * sizes.T)
    nccl.all_reduce(
        srcs=[partial.reshape(flat)],
        dsts=[reduced.reshape(flat)],
        replica_group=group,
        op=nl.add,
    )
    return reduced


def _reduce_in_hbm(partial, group, share, context):
    """Reduces one tensor of the logical core, to which both cores write their tiles."""
    sizes = context.sizes
    core = context.core
    shape = (PARTITIONS, share.total, sizes.T)
    whole = nl.ndarray(shape, dtype=nl.float32, buffer=core.hbm)
    summed = nl.ndarray(shape, dtype=nl.float32, buffer=core.hbm)
    # The first core writes a tile that both have computed.
    skipped = share.skipped
    if share.count > skipped:
        nisa.dma_copy(
            dst=whole[:, share.first + skipped : share.first + share.count, :],
            src=partial[:, skipped : share.count, :],
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.scalar,
        )
    if core.count > 1:
        nisa.core_barrier(data=whole, cores=(0, 1))
    nccl.all_reduce(srcs=[whole], dsts=[summed], replica_group=group, op=nl.add)
    if core.count > 1:
        nisa.core_barrier(data=summed, cores=(0, 1))
    reduced = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=reduced,
        src=summed[:, share.first : share.first + share.count, :],
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.scalar,
    )
    return reduced
