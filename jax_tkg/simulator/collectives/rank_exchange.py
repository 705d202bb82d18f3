"""The meeting of ranks at a collective: their contributions, and the writing of the results."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa.operands import Step
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described


@dataclasses.dataclass
class Contribution:
    """The contribution of one core to a collective.

    Attributes:
      rank: of the core.
      leads: whether the core reads and writes for its rank; the other core of a pair does not.
      operation: the collective's name.
      srcs, dsts: the operands.
      step: the instruction.
      place: its file and line.
      sources: the values of `srcs`, of a core that leads, once all have arrived.
    """

    rank: int
    leads: bool
    operation: str
    srcs: list[NkiTensor]
    dsts: list[NkiTensor]
    step: Step
    place: str
    sources: list[np.ndarray] = dataclasses.field(default_factory=list)


# From the contributions in rank order and the position of one rank: the values of its `dsts`.
Compute = Callable[[list[Contribution], int], list[np.ndarray | None]]


def check_tensors(
    step: Step,
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    spaces: tuple[str, ...],
    priority: int | None,
) -> str:
    """Checks the operands that all collectives have, and returns their memory."""
    if priority is not None:
        require_generation(step.core, 4, f"{step.opcode}: priority")
    if len(srcs) != len(dsts) or not srcs:
        step.fail(f"srcs and dsts must be lists of equal length, got {len(srcs)} and {len(dsts)}")
    for label, tensors in (("srcs", srcs), ("dsts", dsts)):
        for i, tensor in enumerate(tensors):
            step.check_spaces(spaces, **{f"{label}[{i}]": tensor})
    found = {t.storage.space for t in (*srcs, *dsts) if t.storage is not None}
    if len(found) > 1:
        step.fail("all tensors must be in HBM or all in SBUF, got both")
    space = found.pop()
    if space == "sbuf" and len(srcs) > 1:
        step.fail(f"several tensors at once need HBM; SBUF takes one, got {len(srcs)}")
    for i, (src, dst) in enumerate(zip(srcs, dsts, strict=True)):
        if src.dtype != dst.dtype:
            step.fail(f"dsts[{i}] must have the dtype of srcs[{i}], {src.dtype}, got {dst.dtype}")
    return space


def communicate(
    step: Step,
    srcs: Sequence[NkiTensor],
    dsts: Sequence[NkiTensor],
    ranks: Sequence[int],
    compute: Compute,
    space: str,
    alike: bool = True,
) -> None:
    """Meets the other ranks. The last to arrive reads all sources and writes all destinations.

    Args:
      step: the instruction.
      srcs: the sources of this rank.
      dsts: the destinations of this rank.
      ranks: the group, in order.
      compute: computes the values of one rank's destinations.
      space: "hbm" or "sbuf".
      alike: whether the sources of all ranks must have equal shapes and dtypes.

    Raises:
      PeerMismatchError: the contributions of the ranks do not match.
      MissingPeerError: a rank never arrives.
    """
    core = step.core
    paired = space == "hbm" and core.machine.lnc > 1
    cores = range(core.machine.lnc) if paired else (core.index,)
    file, line = caller()
    # Both cores of a rank are one participant: the first core reads and writes.
    leads = not paired or core.index == 0
    contribution = Contribution(
        core.rank, leads, step.opcode, list(srcs), list(dsts), step, f"{file}:{line}"
    )
    if paired:
        core.epoch += 1
        if step.instruction is not None:
            step.instruction.epoch = core.epoch
            storages = [t.storage.number for t in (*srcs, *dsts) if t.storage is not None]
            step.instruction.attributes["meeting"] = tuple(storages)
    if step.instruction is not None:
        step.instruction.attributes["ranks"] = tuple(ranks)
        step.instruction.attributes["bytes"] = sum(t.size for t in srcs) * (
            dtypes.info(srcs[0].dtype).itemsize
        )
    lane = None if paired else core.index
    group = tuple(ranks)
    key = ("collective", group, space, lane, core.occurrence(("collective", group, space)))
    core.machine.board.meet(
        (core.rank, core.index),
        key,
        [(rank, index) for rank in ranks for index in cores],
        contribution,
        lambda brought: _finish(brought, compute, alike),
        f"{step.opcode} of ranks {list(ranks)}",
        contribution.place,
    )
    if paired:
        core.epoch += 1


def _finish(brought: list[Contribution], compute: Compute, alike: bool) -> None:
    first = brought[0]
    for other in brought[1:]:
        if other.operation != first.operation:
            raise errors.PeerMismatchError(
                f"rank {first.rank} calls {first.operation} at {first.place}, but rank "
                f"{other.rank} calls {other.operation} at {other.place}"
            )
    for mine, theirs in itertools.pairwise(brought):
        if mine.rank == theirs.rank:
            _check_pair(mine, theirs)
    leaders = [c for c in brought if c.leads]
    # Only now: the call orders what either core of a pair wrote before it.
    for leader in leaders:
        step = leader.step
        leader.sources = [step.read(f"srcs[{i}]", t).copy() for i, t in enumerate(leader.srcs)]
    for other in leaders[1:] if alike else ():
        _check_alike(leaders[0], other)
    results = [compute(leaders, position) for position in range(len(leaders))]
    for contribution, values in zip(leaders, results, strict=True):
        for i, value in enumerate(values):
            if value is not None:
                contribution.step.write_exact(f"dsts[{i}]", contribution.dsts[i], value)


def _check_pair(mine: Contribution, theirs: Contribution) -> None:
    """Checks that the two cores of a rank name the same tensors, where they share them."""
    for label in ("srcs", "dsts"):
        pairs = itertools.zip_longest(getattr(mine, label), getattr(theirs, label))
        for i, (one, other) in enumerate(pairs):
            if one is None or other is None:
                raise errors.PeerMismatchError(
                    f"{mine.operation} of rank {mine.rank}: only one core names {label}[{i}], at "
                    f"{(theirs if one is None else mine).place}"
                )
            if _shared_view(one) != _shared_view(other):
                raise errors.PeerMismatchError(
                    f"{mine.operation} of rank {mine.rank}: {label}[{i}] is {described(one)} on "
                    f"the first core at {mine.place}, but {described(other)} on the second at "
                    f"{theirs.place}"
                )


def _shared_view(tensor: NkiTensor) -> tuple[object, ...] | None:
    """What a tensor in HBM that both cores share is a view of; None if a core has it alone."""
    storage = tensor.storage
    if storage is None or storage.core is not None:
        return None
    return (storage.number, tensor.dtype, tensor.shape, tensor.strides, tensor.offset)


def _check_alike(first: Contribution, other: Contribution) -> None:
    if len(first.sources) != len(other.sources):
        raise errors.PeerMismatchError(
            f"{first.operation}: rank {first.rank} brings {len(first.sources)} tensors at "
            f"{first.place}, rank {other.rank} {len(other.sources)} at {other.place}"
        )
    for i, (mine, theirs) in enumerate(zip(first.sources, other.sources, strict=True)):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise errors.PeerMismatchError(
                f"{first.operation}: srcs[{i}] of rank {first.rank} is {list(mine.shape)} "
                f"{mine.dtype} at {first.place}, but that of rank {other.rank} is "
                f"{list(theirs.shape)} {theirs.dtype} at {other.place}"
            )
