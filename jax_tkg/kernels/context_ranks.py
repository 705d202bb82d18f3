"""The context of a KV head shared out over ranks: queries go to all of them, softmaxes come back.

Each rank attends its own cache slots with the query heads of all ranks, and then merges what all
ranks have of its own heads.
"""

import nki.collectives as nccl
import nki.isa as nisa
import nki.language as nl
from nki.collectives import ReplicaGroup
from nki.language import NKIObject

from .limits import PARTITIONS
from .softmax import SoftmaxState, merge_parts


class ContextRanks(NKIObject):
    """The ranks that share out the context of their KV head.

    Attributes:
      count: how many.
      group: their ReplicaGroup.
      on_chip: whether queries are gathered from SBUF to SBUF, else through HBM.
      sizes: `Sizes` with this rank's query heads. Those of attention have the heads of all ranks.
    """

    def __init__(self, count, group, on_chip, sizes):
        self.count = count
        self.group = group
        self.on_chip = on_chip
        self.sizes = sizes

    def gather_queries(self, heads, core):
        """`heads` [rows, q + 2k, chunks, T] with the queries of all ranks in place of this one's.

        Returns:
          [rows, count * q + 2k, chunks, T].
        """
        sizes = self.sizes
        rows = sizes.head_rows
        each = sizes.head_chunks * sizes.T
        width = sizes.q * each
        gathered = self.count * width
        flat = nl.ndarray((rows, gathered + 2 * sizes.k * each), dtype=sizes.dtype, buffer=nl.sbuf)
        whole = flat.reshape_dim(
            1, (self.count * sizes.q + 2 * sizes.k, sizes.head_chunks, sizes.T)
        )
        own = nl.ndarray((rows, width), dtype=sizes.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(
            dst=own.reshape_dim(1, (sizes.q, sizes.head_chunks, sizes.T)),
            src=heads[:, 0 : sizes.q, :, :],
        )
        queries = flat[:, 0:gathered]
        if self.on_chip:
            nccl.all_gather(srcs=[own], dsts=[queries], replica_group=self.group, collective_dim=1)
        else:
            self._gather_in_hbm(queries, own, core)
        nisa.tensor_copy(
            dst=whole[:, self.count * sizes.q : self.count * sizes.q + 2 * sizes.k, :, :],
            src=heads[:, sizes.q : sizes.q + 2 * sizes.k, :, :],
            engine=nisa.engine.scalar,
        )
        return whole

    def _gather_in_hbm(self, queries, own, core):
        """queries [rows, count * width] = all ranks' `own` [rows, width], which both cores have."""
        rows, width = own.shape
        sent = nl.ndarray((rows, width), dtype=own.dtype, buffer=core.hbm)
        shape = (self.count, rows, width)
        received = nl.ndarray(shape, dtype=own.dtype, buffer=core.hbm)
        if core.index == 0:
            nisa.dma_copy(
                dst=sent, src=own, dge_mode=nisa.dge_mode.hwdge, engine=nisa.engine.scalar
            )
        if core.count > 1:
            nisa.core_barrier(data=sent, cores=(0, 1))
        nccl.all_gather(
            srcs=[sent],
            dsts=[received.reshape((self.count * rows, width))],
            replica_group=self.group,
            collective_dim=0,
        )
        if core.count > 1:
            nisa.core_barrier(data=received, cores=(0, 1))
        nisa.dma_copy(
            dst=queries.reshape_dim(1, (self.count, width)),
            src=received.permute((1, 0, 2)),
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.scalar,
        )


def context_ranks(count, replica_groups, on_chip, sizes):
    """The `ContextRanks` of a launch, `count` neighbors of each replica group; None if alone."""
    if count == 1:
        return None
    groups = []
    for group in replica_groups:
        first = 0
        while first < len(group):
            members = []
            for index in range(count):
                members.append(group[first + index])
            groups.append(members)
            first += count
    return ContextRanks(count, ReplicaGroup(groups), on_chip, sizes)


class StateExchange(NKIObject):
    """The softmax of a group of sequences, sent to the ranks whose query heads it has.

    Attributes:
      ranks: `ContextRanks`.
      core: `Core`.
      columns: of the group that belong to one rank.
      both: whether each of two cores attended some keys of the group, and not all.
      received: [count, cores, 128, (2 + chunks) * columns] in HBM: what all ranks and cores have
        of this rank's columns, as `SoftmaxState.packed`.
    """

    def __init__(self, state, group, ranks, core, both):
        sizes = ranks.sizes
        parts = 2 + sizes.head_chunks
        each = sizes.q * sizes.S
        self.ranks = ranks
        self.core = core
        self.both = both
        self.columns = group.count * each
        width = parts * self.columns
        # Columns are (sequence, rank, head, token); each rank gets its own in one run.
        tile = nl.ndarray((PARTITIONS, ranks.count, width), dtype=nl.float32, buffer=nl.sbuf)
        by_part = tile.reshape_dim(2, (parts, group.count, each))
        by_rank = state.packed.reshape_dim(2, (group.count, ranks.count, each))
        for rank in range(ranks.count):
            nisa.tensor_copy(dst=by_part[:, rank, :, :, :], src=by_rank[:, :, :, rank, :])
        shape = (ranks.count, core.count, PARTITIONS, width)
        sent = nl.ndarray(shape, dtype=nl.float32, buffer=core.hbm)
        self.received = nl.ndarray(shape, dtype=nl.float32, buffer=core.hbm)
        own = sent[:, core.index, :, :]
        nisa.dma_copy(
            dst=own.permute((1, 0, 2)),
            src=tile,
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.scalar,
        )
        if core.count > 1:
            nisa.core_barrier(data=sent, cores=(0, 1))
        nccl.all_to_all(
            srcs=[sent], dsts=[self.received], replica_group=ranks.group, collective_dim=0
        )

    def merged(self, scale):
        """The `SoftmaxState` of this rank's columns over all keys; `scale` is of the scores."""
        ranks = self.ranks
        core = self.core
        sizes = ranks.sizes
        if core.count > 1:
            nisa.core_barrier(data=self.received, cores=(0, 1))
        source = self.received
        count = ranks.count
        if self.both:
            count = ranks.count * core.count
            width = source.shape[3]
            source = source.reshape((count, PARTITIONS, width))
        else:
            source = source[:, core.index, :, :]
        parts = 2 + sizes.head_chunks
        shape = (PARTITIONS, count, parts * self.columns)
        tile = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=tile,
            src=source.permute((1, 0, 2)),
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.scalar,
        )
        state = SoftmaxState(sizes.head_rows, sizes.head_chunks, self.columns)
        merge_parts(state, tile.reshape_dim(2, (parts, self.columns)), scale)
        return state
