"""``nki.collectives``: communication between ranks, with their real data.

At LNC 2 both cores of a rank execute the call. In HBM both refer to the same shared tensors, and
the rank takes part once. In SBUF each core has its own tensors, and exchanges with the cores of the
same index in the other ranks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.collectives.rank_exchange import Contribution, check_tensors, communicate
from jax_tkg.simulator.collectives.variable_collectives import all_gather_v, all_to_all_v
from jax_tkg.simulator.isa.operands import Step
from jax_tkg.simulator.isa.operators import operator, operator_name
from jax_tkg.simulator.machine.machine import Core, current_core
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.addressing import VirtualRegister
from jax_tkg.simulator.memory.objects import NKIObject
from jax_tkg.simulator.memory.tensor import NkiTensor


@dataclasses.dataclass
class ReplicaGroup(NKIObject):
    """Groups of ranks that communicate: a list of disjoint lists of ranks."""

    groups: Any = None

    def __post_init__(self) -> None:
        if self.groups is None:
            raise ValueError("ReplicaGroup: groups must be a list of lists of ranks, got None")
        self.groups = [[int(rank) for rank in group] for group in self.groups]
        seen: set[int] = set()
        for group in self.groups:
            for rank in group:
                if rank in seen:
                    raise ValueError(
                        f"ReplicaGroup: rank {rank} occurs twice in {self.groups}; "
                        "groups must not overlap"
                    )
                seen.add(rank)

    def group_of(self, rank: int) -> list[int]:
        """Returns the group that contains a rank.

        Raises:
          NkiValidationError: no group does.
        """
        for group in self.groups:
            if rank in group:
                return group
        raise errors.NkiValidationError(f"rank {rank} is in none of the groups {self.groups}")


_REDUCTIONS = ("add", "maximum", "minimum")


def _reduction(step: Step, op: Any) -> Callable[[list[np.ndarray], str], np.ndarray]:
    name = operator_name(op)
    found = operator(op, step.opcode, "op")
    if found.name not in _REDUCTIONS:
        step.fail(f"op must be nl.add, nl.minimum or nl.maximum, got {name}")

    def reduce(parts: list[np.ndarray], dtype: str) -> np.ndarray:
        if dtypes.info(dtype).kind in ("int", "uint"):
            wide = [part.astype(np.int64) for part in parts]
        else:
            wide = [dtypes.to_float32(part) for part in parts]
        total = wide[0]
        for part in wide[1:]:
            total = found.apply(total, part)
        return dtypes.round_to(total, dtypes.info(dtype))

    return reduce


def _check_elements(step: Step, index: int, dst: NkiTensor, src: NkiTensor, expected: int) -> None:
    if dst.size != expected:
        step.fail(
            f"dsts[{index}] must have {expected} elements for srcs[{index}] {list(src.shape)}, "
            f"got {dst.size}, {list(dst.shape)}"
        )


def _check_regions(
    step: Step, srcs: Sequence[NkiTensor], dsts: Sequence[NkiTensor], space: str
) -> None:
    """Checks that sources in HBM are all private or all shared, and destinations likewise."""
    for label, tensors in (("srcs", srcs), ("dsts", dsts)):
        if space == "hbm" and len({tensor.buffer for tensor in tensors}) > 1:
            step.fail(f"{label} must be all in private HBM or all in shared HBM, got both")


def _check_dim(step: Step, collective_dim: int, allowed: tuple[int, ...]) -> None:
    if collective_dim not in allowed:
        step.fail(f"collective_dim must be one of {allowed}, got {collective_dim}")


def all_reduce(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    replica_group: ReplicaGroup,
    op: Any,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Writes the reduction of all ranks' `srcs` to every `dsts`: in float32, in rank order."""
    step = Step("all_reduce", "dma")
    space = check_tensors(step, srcs, dsts, ("hbm", "sbuf"), priority)
    _check_regions(step, srcs, dsts, space)
    reduce = _reduction(step, op)
    for i, (src, dst) in enumerate(zip(srcs, dsts, strict=True)):
        _check_elements(step, i, dst, src, src.size)
    ranks = replica_group.group_of(step.core.rank)
    cache: list[np.ndarray] = []

    def compute(brought: list[Contribution], position: int) -> list[np.ndarray | None]:
        if not cache:
            for i in range(len(srcs)):
                cache.append(reduce([c.sources[i] for c in brought], srcs[i].dtype))
        return list(cache)

    communicate(step, srcs, dsts, ranks, compute, space)


def all_gather(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Writes all ranks' `srcs`, concatenated in rank order, to every `dsts`."""
    step = Step("all_gather", "dma")
    space = check_tensors(step, srcs, dsts, ("hbm", "sbuf"), priority)
    _check_regions(step, srcs, dsts, space)
    _check_dim(step, collective_dim, (0,) if space == "hbm" else (0, 1))
    ranks = replica_group.group_of(step.core.rank)
    for i, (src, dst) in enumerate(zip(srcs, dsts, strict=True)):
        _check_elements(step, i, dst, src, src.size * len(ranks))
        if space == "sbuf" and src.ndim != 2:
            step.fail(f"srcs[{i}] must be 2-d in SBUF, got {list(src.shape)}")

    def compute(brought: list[Contribution], position: int) -> list[np.ndarray | None]:
        return [
            np.concatenate([c.sources[i] for c in brought], axis=collective_dim)
            for i in range(len(srcs))
        ]

    communicate(step, srcs, dsts, ranks, compute, space)


def reduce_scatter(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    op: Any,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Writes part i of the reduction of all ranks' `srcs` to the `dsts` of rank i of the group."""
    step = Step("reduce_scatter", "dma")
    space = check_tensors(step, srcs, dsts, ("hbm", "sbuf"), priority)
    _check_dim(step, collective_dim, (0,))
    reduce = _reduction(step, op)
    ranks = replica_group.group_of(step.core.rank)
    for i, (src, dst) in enumerate(zip(srcs, dsts, strict=True)):
        _check_divides(step, i, src, len(ranks))
        _check_elements(step, i, dst, src, src.size // len(ranks))

    def compute(brought: list[Contribution], position: int) -> list[np.ndarray | None]:
        parts: list[np.ndarray | None] = []
        for i in range(len(srcs)):
            slices = [np.split(c.sources[i], len(ranks))[position] for c in brought]
            parts.append(reduce(slices, srcs[i].dtype))
        return parts

    communicate(step, srcs, dsts, ranks, compute, space)


def _check_divides(step: Step, index: int, src: NkiTensor, ranks: int) -> None:
    if src.shape[0] % ranks:
        step.fail(
            f"dimension 0 of srcs[{index}] {list(src.shape)} must divide by the {ranks} ranks"
        )


def all_to_all(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Writes the parts i of all ranks' `srcs`, in rank order, to the `dsts` of rank i."""
    step = Step("all_to_all", "dma")
    space = check_tensors(step, srcs, dsts, ("hbm",), priority)
    _check_dim(step, collective_dim, (0,))
    ranks = replica_group.group_of(step.core.rank)
    for i, (src, dst) in enumerate(zip(srcs, dsts, strict=True)):
        _check_divides(step, i, src, len(ranks))
        _check_elements(step, i, dst, src, src.size)

    def compute(brought: list[Contribution], position: int) -> list[np.ndarray | None]:
        return [
            np.concatenate([np.split(c.sources[i], len(ranks))[position] for c in brought])
            for i in range(len(srcs))
        ]

    communicate(step, srcs, dsts, ranks, compute, space)


def collective_permute(
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    source_target_pairs: Sequence[tuple[int, int]],
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Writes, for each (source, target), the source's `srcs` to the target's `dsts`."""
    step = Step("collective_permute", "dma")
    space = check_tensors(step, srcs, dsts, ("hbm",), priority)
    if len(srcs) != 1:
        step.fail(f"srcs and dsts must have exactly one tensor, got {len(srcs)}")
    _check_elements(step, 0, dsts[0], srcs[0], srcs[0].size)
    pairs = [(int(source), int(target)) for source, target in source_target_pairs]
    for label, ranks in (("source", [s for s, _ in pairs]), ("target", [t for _, t in pairs])):
        if len(set(ranks)) != len(ranks):
            step.fail(f"a rank occurs twice as {label} in source_target_pairs {pairs}")
    _permute(step, srcs, dsts, pairs, space)


def _permute(
    step: Step,
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    pairs: list[tuple[int, int]],
    space: str,
) -> None:
    ranks = sorted({rank for pair in pairs for rank in pair})
    if step.core.rank not in ranks:
        return
    source_of = {target: source for source, target in pairs}

    def compute(brought: list[Contribution], position: int) -> list[np.ndarray | None]:
        source = source_of.get(ranks[position])
        if source is None:
            return [None]
        return [brought[ranks.index(source)].sources[0]]

    communicate(step, srcs, dsts, ranks, compute, space)


def _ring_pairs(group: list[int]) -> list[tuple[int, int]]:
    return [(rank, group[(i + 1) % len(group)]) for i, rank in enumerate(group)]


def _check_channels(step: Step, channel_ids: Sequence[int], *by_channel: Sequence[Any]) -> None:
    if list(channel_ids) != list(range(len(channel_ids))):
        step.fail(f"channel_ids must be consecutive integers from 0, got {list(channel_ids)}")
    for tensors in by_channel:
        if len(tensors) != len(channel_ids) or any(len(inner) != 1 for inner in tensors):
            step.fail(
                f"each of the {len(channel_ids)} channels must have exactly one tensor, got "
                f"{[len(inner) for inner in tensors]}"
            )


def collective_permute_implicit(
    srcs_by_channel: Sequence[Sequence[NkiTensor]],
    dsts_by_channel: Sequence[Sequence[NkiTensor]],
    replica_group: ReplicaGroup,
    channel_ids: Sequence[int] = (0,),
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Sends from each rank to its successor in the ring of its group."""
    for srcs, dsts in zip(srcs_by_channel, dsts_by_channel, strict=True):
        step = Step("collective_permute_implicit", "dma")
        _check_channels(step, channel_ids, srcs_by_channel, dsts_by_channel)
        space = check_tensors(step, srcs, dsts, ("hbm", "sbuf"), priority)
        _check_elements(step, 0, dsts[0], srcs[0], srcs[0].size)
        pairs = _ring_pairs(replica_group.group_of(step.core.rank))
        _permute(step, srcs, dsts, pairs, space)


def collective_permute_implicit_reduce(
    srcs0_by_channel: Sequence[Sequence[NkiTensor]],
    srcs1_by_channel: Sequence[Sequence[NkiTensor]],
    dsts_by_channel: Sequence[Sequence[NkiTensor]],
    replica_group: ReplicaGroup,
    op: Any,
    channel_ids: Sequence[int] = (0,),
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Sends ``op(srcs0, srcs1)`` from each rank to its successor in the ring of its group."""
    for lefts, rights, dsts in zip(
        srcs0_by_channel, srcs1_by_channel, dsts_by_channel, strict=True
    ):
        step = Step("collective_permute_implicit_reduce", "dma")
        _check_channels(step, channel_ids, srcs0_by_channel, srcs1_by_channel, dsts_by_channel)
        space = check_tensors(step, [*lefts, *rights], [*dsts, *dsts], ("hbm", "sbuf"), priority)
        _check_elements(step, 0, dsts[0], lefts[0], lefts[0].size)
        reduce = _reduction(step, op)
        group = replica_group.group_of(step.core.rank)
        source_of = {target: source for source, target in _ring_pairs(group)}

        def compute(
            brought: list[Contribution],
            position: int,
            group: list[int] = group,
            source_of: dict[int, int] = source_of,
            reduce: Any = reduce,
            dtype: str = lefts[0].dtype,
        ) -> list[np.ndarray | None]:
            sent = brought[group.index(source_of[group[position]])].sources
            return [reduce(sent[:2], dtype)]

        communicate(step, [*lefts, *rights], dsts, group, compute, space)


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: int,
    replica_group: ReplicaGroup,
    channel_id: int = 0,
    name: str | None = None,
) -> VirtualRegister:
    """Returns the rank whose data has arrived after `iteration_id` steps around the ring."""
    core: Core = current_core()
    group = replica_group.group_of(core.rank)
    position = group.index(core.rank)
    return VirtualRegister(group[(position - int(iteration_id)) % len(group)], frozen=True)


def rank_id(name: str | None = None) -> VirtualRegister:
    """Returns the number of the current rank."""
    return VirtualRegister(current_core().rank, frozen=True)


__all__ = [
    "ReplicaGroup",
    "all_gather",
    "all_gather_v",
    "all_reduce",
    "all_to_all",
    "all_to_all_v",
    "collective_permute",
    "collective_permute_implicit",
    "collective_permute_implicit_current_processing_rank_id",
    "collective_permute_implicit_reduce",
    "rank_id",
    "reduce_scatter",
]
