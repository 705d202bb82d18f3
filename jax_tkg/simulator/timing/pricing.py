"""Prices recorded instructions: engine time and DMA transfers from operands in memory."""

from __future__ import annotations

import math

import numpy as np

from jax_tkg.simulator.machine.record import Access, Instruction
from jax_tkg.simulator.timing.costs import Costs
from jax_tkg.simulator.timing.instruction_costs import (
    Operand,
    Transfer,
    instruction_cycles,
    loading_cycles,
)

# A copy within HBM is spread over the engines in pieces of at least this many bytes: the DMA
# guides speak of transfers below it as inefficient, and do not say how such a copy is split.
_HBM_PIECE = 512

# Bytes; an innermost stride beyond them slows the access to SBUF or PSUM (Trainium/Inferentia2
# architecture guide for NKI, accessing SBUF and PSUM: access pattern).
_WIDE_STRIDE = 16


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction exchanges data with other ranks."""
    return "ranks" in instruction.attributes


def engine_time(costs: Costs, instruction: Instruction) -> float:
    """Time for which a compute instruction occupies its engine at full rate, in ns.

    Raises:
      ValueError: the instruction has no cost formula.
    """
    cycles = instruction_cycles(
        costs,
        instruction.opcode,
        instruction.engine,
        _operands(instruction),
        instruction.attributes,
    )
    return cycles / costs.clock(instruction.engine)


def loading_time(costs: Costs, instruction: Instruction) -> float:
    """Time in which a matrix product's stationary tile loads at full rate, in ns."""
    return loading_cycles(costs, _operands(instruction), instruction.attributes) / costs.clock(
        instruction.engine
    )


def _operands(instruction: Instruction) -> dict[str, Operand]:
    return {access.operand: _operand(access) for access in instruction.accesses}


def _operand(access: Access) -> Operand:
    on_chip = access.space != "hbm"
    dims = list(zip(access.shape, access.strides, strict=True))[1 if on_chip else 0 :]
    strides = [stride for size, stride in dims if size > 1]
    contiguous = not strides or strides[-1] == access.itemsize
    elements = math.prod(size for size, _ in dims)
    wide = on_chip and bool(strides) and abs(strides[-1]) > _WIDE_STRIDE
    return Operand(access.dtype, access.space, access.partitions, elements, contiguous, wide)


def moved(instruction: Instruction) -> tuple[list[Access], list[Access]]:
    """The sources and destinations of a DMA or collective, without index tensors.

    A gather or scatter whose indices are all out of bounds moves nothing. A transposed gather that
    skips rows keeps these elements of its destination, and does not move them.
    """
    data = [
        access
        for access in instruction.accesses
        if not access.operand.endswith(" index") and (access.is_write or access.operand != "dst")
    ]
    if any(access.rows is not None and len(access.rows) == 0 for access in data):
        return [], []
    return [a for a in data if not a.is_write], [a for a in data if a.is_write]


def trigger_of(costs: Costs, instruction: Instruction) -> str:
    """The engine that triggers a DMA: one of `TRIGGERS`.

    The kernel names it with `engine`. Without, hardware descriptors are triggered by the Sync
    Engine; gathers and scatters by the GpSimd Engine, which makes their descriptors. If they are
    made beforehand, the Sync Engine triggers loads, the GpSimd Engine stores, as the profile of
    example 1 of the DMA overview shows. What is left to the compiler is triggered by
    `default_trigger`; "sync" stands for that profile's choice.
    """
    attributes = instruction.attributes
    mode = attributes.get("dge_mode")
    if attributes.get("indirect") or mode == "swdge":
        return "gpsimd"
    if costs.only_trigger is not None:
        return costs.only_trigger
    named = attributes.get("trigger")
    if named is not None:
        return str(named)
    if mode == "hwdge":
        return "sync"
    if mode == "none" or costs.default_trigger == "sync":
        return "gpsimd" if _is_store(instruction) else "sync"
    return costs.default_trigger


def _is_store(instruction: Instruction) -> bool:
    """Whether a DMA writes HBM and reads none."""
    sources, destinations = moved(instruction)
    return any(a.space == "hbm" for a in destinations) and all(a.space != "hbm" for a in sources)


def descriptors_of(costs: Costs, instruction: Instruction) -> str:
    """What makes a DMA's descriptors: "hardware", "software" on the GpSimd Engine, or "none".

    Those of a DMA that the GpSimd Engine triggers are made there, except if they were made before
    the kernel runs. The compiler's choice for another trigger is taken to be hardware, which only
    NeuronCore-v3 and later have.
    """
    attributes = instruction.attributes
    needs_software = bool(attributes.get("indirect")) or attributes.get("dge_mode") == "swdge"
    if attributes.get("dge_mode") == "none" or (costs.target == "trn1" and not needs_software):
        return "none"
    return "software" if trigger_of(costs, instruction) == "gpsimd" else "hardware"


def transfer_of(costs: Costs, instruction: Instruction) -> tuple[int, Transfer]:
    """The first DMA engine that a DMA instruction uses, and what it moves.

    A DMA engine serves eight partitions. A copy within HBM is spread evenly over the engines. What
    a gather or scatter skips is not moved: it takes no longer than with all of its rows.
    """
    sources, destinations = moved(instruction)
    ends = [*destinations, *sources]
    if not ends:
        return 0, Transfer(instruction.opcode, 0, (), 1, 0)
    whole = max(access.whole_bytes for access in ends) * max(1, len(sources))
    least = min(ends, key=lambda access: access.nbytes / access.whole_bytes)
    nbytes = -(-whole * least.nbytes // least.whole_bytes)
    sides = sum(any(a.space == "hbm" for a in group) for group in (sources, destinations))
    on_chip = next((a for a in ends if a.space != "hbm"), None)
    run = _shortest_run(instruction, ends, nbytes)
    if on_chip is None:
        pieces = max(1, min(int(costs.dma_engines), whole // _HBM_PIECE))
        count = max(1, -(-nbytes // -(-whole // pieces)))
        rows: tuple[int, ...] = (1,) * count
        return instruction.index % int(costs.dma_engines), Transfer(
            instruction.opcode, -(-nbytes // count), rows, run, sides
        )
    first, rows = _rows_by_engine(on_chip, int(costs.partitions_per_dma_engine))
    row_bytes = -(-nbytes // sum(rows))
    if costs.runs_end_with_rows:
        run = min(run, row_bytes)
    return first, Transfer(instruction.opcode, row_bytes, rows, run, sides)


def _rows_by_engine(access: Access, lanes: int) -> tuple[int, tuple[int, ...]]:
    """The first DMA engine of an access on chip, and the partitions of it and of those after it."""
    first = access.partition_start
    last = first + access.partitions
    if access.entries is not None:
        engines = (first + access.entries) // lanes
        counts = np.bincount(engines - engines[0])
        return int(engines[0]), tuple(counts.tolist())
    rows = (
        min(last, (engine + 1) * lanes) - max(first, engine * lanes)
        for engine in range(first // lanes, (last - 1) // lanes + 1)
    )
    return first // lanes, tuple(rows)


def _shortest_run(instruction: Instruction, ends: list[Access], nbytes: int) -> int:
    """Bytes of the contiguous runs of a transfer: in HBM, or in a partition if it is shorter there
    than the partition's row."""
    if instruction.opcode == "dma_transpose":
        # Its price by the byte is that of whole transfers.
        return nbytes
    runs = []
    for access in ends:
        run = run_bytes(access)
        if access.space == "hbm" or run < access.whole_bytes // max(1, access.partitions):
            runs.append(run)
    return min(runs, default=nbytes)


def run_bytes(access: Access) -> int:
    """Contiguous bytes of an access, within a partition on chip."""
    run = access.itemsize
    start = 0 if access.space == "hbm" and access.rows is None else 1
    dims = list(zip(access.shape, access.strides, strict=True))[start:]
    for size, stride in reversed(dims):
        if size == 1:
            continue
        if stride != run:
            break
        run *= size
    return run
