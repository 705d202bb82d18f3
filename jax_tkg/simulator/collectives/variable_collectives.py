"""Collectives whose sizes are known only at run time, from a table of counts and displacements.

The table has one column per rank of the group. Its rows hold the counts and the displacements of
the chunks that this rank sends, in elements; the counts of the chunks that it receives, which the
collective writes unless the caller knows them; and, optionally, the displacements of the received
chunks. Without the last row the received chunks go to equally spaced slots.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.collectives.rank_exchange import Contribution, communicate
from jax_tkg.simulator.isa.operands import Step
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory.tensor import NkiTensor

_ALL_GATHER_V_RANKS = 4


class Group(Protocol):
    """The part of a replica group that these collectives use."""

    def group_of(self, rank: int) -> list[int]:
        """Returns the group of a rank."""


def all_gather_v(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    replica_group: Group,
    metadata_tensor: NkiTensor,
    recv_counts_known: bool = False,
    has_rdispls: bool = False,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Sends one chunk of each rank, of any size, to all ranks of the group."""
    step = Step("all_gather_v", "dma")
    if has_rdispls:
        step.fail("has_rdispls=True is not supported by the collective")
    if step.core.machine.lnc != 2:
        step.fail("needs LNC 2")
    ranks = replica_group.group_of(step.core.rank)
    if len(ranks) != _ALL_GATHER_V_RANKS:
        step.fail(f"the group must have exactly {_ALL_GATHER_V_RANKS} ranks, got {ranks}")
    _exchange(
        step, srcs, dsts, ranks, metadata_tensor, recv_counts_known, False, priority, uniform=True
    )


def all_to_all_v(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    replica_group: Group,
    metadata_tensor: NkiTensor,
    recv_counts_known: bool = False,
    has_rdispls: bool = False,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Sends a chunk of any size from each rank to each rank of the group."""
    step = Step("all_to_all_v", "dma")
    ranks = replica_group.group_of(step.core.rank)
    _exchange(
        step,
        srcs,
        dsts,
        ranks,
        metadata_tensor,
        recv_counts_known,
        has_rdispls,
        priority,
        uniform=False,
    )


def _exchange(
    step: Step,
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    ranks: list[int],
    metadata: NkiTensor,
    recv_counts_known: bool,
    has_rdispls: bool,
    priority: int | None,
    uniform: bool,
) -> None:
    if priority is not None:
        require_generation(step.core, 4, f"{step.opcode}: priority")
    if len(srcs) != 1 or len(dsts) != 1:
        step.fail(f"srcs and dsts must have exactly one tensor, got {len(srcs)} and {len(dsts)}")
    step.check_spaces(("hbm",), **{"srcs[0]": srcs[0], "dsts[0]": dsts[0]})
    step.check_dtype((srcs[0].dtype,), **{"dsts[0]": dsts[0]})
    step.check_dtype(("uint32",), metadata_tensor=metadata)
    rows = 4 if has_rdispls else 3
    if metadata.size != rows * len(ranks) or metadata.shape[-2:] != (rows, len(ranks)):
        step.fail(
            f"metadata_tensor must have shape ({rows}, {len(ranks)}), or (1, {rows}, "
            f"{len(ranks)}) in SBUF, got {list(metadata.shape)}"
        )
    inputs = [_row(metadata, row) for row in (0, 1, *((3,) if has_rdispls else ()))]

    def compute(brought: list[Contribution], position: int) -> list[np.ndarray | None]:
        for sender in range(len(ranks)):
            column = 0 if uniform else position
            count, start = (int(brought[sender].sources[row + 1].flat[column]) for row in (0, 1))
            _deliver(brought, position, sender, count, start, recv_counts_known, has_rdispls)
        return []

    communicate(step, [srcs[0], *inputs], [dsts[0], metadata], ranks, compute, "hbm", alike=False)


def _row(metadata: NkiTensor, row: int) -> NkiTensor:
    return metadata[:, row : row + 1, :] if metadata.on_chip else metadata[row : row + 1]


def _deliver(
    brought: list[Contribution],
    position: int,
    sender: int,
    count: int,
    start: int,
    recv_counts_known: bool,
    has_rdispls: bool,
) -> None:
    """Writes the chunk of one sender, and its count, to one receiver."""
    receiver = brought[position]
    dst, metadata = receiver.dsts
    sent = brought[sender].sources[0].reshape(-1)
    target = sender * (dst.size // len(brought))
    if has_rdispls:
        target = int(receiver.sources[3].flat[sender])
    if start + count > sent.size or target + count > dst.size:
        raise errors.PeerMismatchError(
            f"{receiver.operation}: rank {brought[sender].rank} sends elements {start}.."
            f"{start + count} of its {sent.size} to {target}..{target + count} of the {dst.size} "
            f"of rank {receiver.rank} ({brought[sender].place})"
        )
    if count:
        flat = dst.reshape((dst.size,))
        receiver.step.write_exact(
            "dsts[0]", flat[target : target + count], sent[start : start + count]
        )
    if not recv_counts_known:
        cell = _row(metadata, 2)[..., sender : sender + 1]
        receiver.step.write_exact("metadata_tensor", cell, np.full(cell.shape, count, np.uint32))
