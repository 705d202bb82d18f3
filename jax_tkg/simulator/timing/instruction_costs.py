"""The documented cost of an instruction, computed from its opcode and operands.

The formulas come from AWS's documentation; `FORMULAS` names the document of each. An instruction
without a documented cost is priced like the others of its engine, and its entry says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.timing.costs import ARCH_V3, ARCH_V4, ISA, Costs


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """The properties of one operand that a cost can depend on.

    Attributes:
      dtype: NKI dtype.
      space: "sbuf", "psum" or "hbm".
      partitions: partitions of the access.
      free_size: elements per partition.
      contiguous: whether the elements of the innermost dimension are adjacent.
      wide_stride: whether the innermost dimension on chip has a stride of more than 16 bytes.
    """

    dtype: str
    space: str
    partitions: int
    free_size: int
    contiguous: bool = True
    wide_stride: bool = False


Operands = Mapping[str, Operand]
_HALF = ("bfloat16", "float16")
_FLOAT8 = ("float8_e4m3", "float8_e4m3fn", "float8_e5m2")


@dataclasses.dataclass(frozen=True)
class _Case:
    """One instruction whose cost is computed."""

    costs: Costs
    engine: str
    operands: Operands
    attributes: Mapping[str, Any]

    @property
    def elements(self) -> int:
        """The documentation's N: elements per partition of the largest operand."""
        return max(o.free_size for o in self.operands.values())

    def at_least(self, cycles: float) -> float:
        return max(self.costs.minimum_interval, cycles)

    def inputs(self) -> list[Operand]:
        """The operands except the destination and columns of one element per partition."""
        return [o for name, o in self.operands.items() if name != "dst" and o.free_size > 1]

    def all_of(self, dtypes: tuple[str, ...]) -> bool:
        return all(o.dtype in dtypes for o in self.operands.values() if o.free_size > 1)

    def all_in_sbuf(self) -> bool:
        return all(o.space == "sbuf" for o in self.operands.values())


def _one_per_element(case: _Case) -> float:
    return case.at_least(case.elements)


def _two_per_element(case: _Case) -> float:
    return case.at_least(2 * case.elements)


def _with_readout(case: _Case) -> float:
    return case.at_least(case.elements) + case.costs.minimum_interval


def _on_gpsimd(case: _Case) -> float:
    return case.costs.gpsimd_start + case.elements


def _activation(case: _Case) -> float:
    return _with_readout(case) if "reduce_res" in case.operands else _one_per_element(case)


def _copy_or_scalar(case: _Case) -> float:
    """tensor_copy and tensor_scalar, with the performance modes of NeuronCore-v3 and v4."""
    if case.costs.target == "trn1":
        return _one_per_element(case)
    fast = (*_HALF, *_FLOAT8) if case.costs.target == "trn3" else _HALF
    wide = [o for o in case.operands.values() if o.free_size > 1]
    packed = all(o.contiguous for o in wide)
    in_psum = sum(o.space == "psum" for o in wide)
    speed = 1
    if all(o.dtype in fast for o in wide):
        if case.engine == "vector":
            if in_psum == 0:
                speed = 4 if packed else 2
            elif in_psum == 1 and packed:
                speed = 2
        elif case.engine == "scalar" and case.costs.target == "trn3":
            speed = 2
    return case.at_least(case.elements / speed)


def _tensor_tensor(case: _Case) -> float:
    inputs = case.inputs()
    if len({o.space for o in inputs}) == 2:
        return _one_per_element(case)
    if case.all_in_sbuf() and case.all_of(_HALF):
        return _one_per_element(case)
    return _two_per_element(case)


def _scalar_tensor_tensor(case: _Case) -> float:
    operators = (case.attributes.get("op0"), case.attributes.get("op1"))
    even = case.elements % 2 == 0
    if (
        all(o.dtype == "bfloat16" for o in case.inputs())
        and operators == ("subtract", "multiply")
        and even
    ):
        return _one_per_element(case)
    return _two_per_element(case)


def _tensor_reduce(case: _Case) -> float:
    fast = case.attributes.get("op") in ("add", "maximum", "max")
    if fast and all(o.dtype == "bfloat16" for o in case.operands.values()):
        return case.at_least(case.elements / 2)
    return _one_per_element(case)


def _copy_predicated(case: _Case) -> float:
    spaces = [case.operands[name].space for name in ("src", "predicate") if name in case.operands]
    return _one_per_element(case) if len(set(spaces)) == 2 else _two_per_element(case)


def _memset(case: _Case) -> float:
    if case.all_of(_HALF) and case.attributes.get("value") == 0:
        return case.at_least(case.elements / 2)
    return _one_per_element(case)


def _reciprocal(case: _Case) -> float:
    return case.at_least(8 * case.elements)


def _bn_aggr(case: _Case) -> float:
    return case.at_least(13 * case.elements / 3)


def _four_per_cycle(case: _Case) -> float:
    return case.at_least(case.elements / 4)


def _matmul(case: _Case) -> float:
    moving = case.operands["moving"].free_size / _pairs(case.attributes)
    return max(_load(case), _passes(case) * moving)


def _load(case: _Case) -> float:
    """Cycles in which the stationary tile of a product loads."""
    stationary = case.operands["stationary"].free_size / _pairs(case.attributes)
    return _passes(case) * min(case.costs.stationary_load, stationary)


def _pairs(attributes: Mapping[str, Any]) -> int:
    """How many rows of the contraction a cycle takes of each partition."""
    return 2 if attributes.get("double_row") else 1


def _passes(case: _Case) -> float:
    """How often a product passes through the Tensor Engine."""
    if case.operands["moving"].dtype != "float32":
        return 1
    # NeuronCore-v3: transpose mode is twice as fast for float32.
    halves = 2 if case.attributes.get("is_transpose") else 1
    return case.costs.float32_passes / halves


def _transpose(case: _Case) -> float:
    data = case.operands["data"]
    if case.engine == "vector":
        return case.at_least(data.free_size)
    return max(data.partitions, min(case.costs.stationary_load, data.free_size))


def _topk(case: _Case) -> float:
    searched = case.attributes.get("n", 16 * case.operands["src"].free_size)
    return 4 * searched + case.operands["val_dst"].free_size


def _local_gather(case: _Case) -> float:
    each = int(case.attributes.get("num_elem_per_idx", 1))
    size = dtypes.info(case.operands["src_buffer"].dtype).itemsize
    per_cycle = ((28 + 4 * each) / (4 * each)) / min(4 / size, each)
    return case.costs.gpsimd_start + case.operands["dst"].free_size / per_cycle


def _interval(case: _Case) -> float:
    return case.costs.minimum_interval


@dataclasses.dataclass(frozen=True)
class Formula:
    """How an instruction is priced.

    Attributes:
      cycles: the function.
      text: the formula, N being elements per partition.
      source: the document.
    """

    cycles: Callable[[_Case], float]
    text: str
    source: str


_NOT_PRICED = "no document prices it; as other instructions of its engine"
_SAME = "max(64, N)"

FORMULAS: dict[str, Formula] = {
    "nc_matmul": Formula(
        _matmul, "max(min(64, N_stationary), N_moving), 4 times that for float32", ISA
    ),
    "nc_matmul_mx": Formula(
        _matmul, "max(min(64, N_stationary), N_moving)", f"{ARCH_V4}, quad-MXFP8 matmul"
    ),
    "nc_transpose": Formula(
        _transpose, "Tensor Engine max(P, min(64, N)), Vector Engine max(64, N)", ISA
    ),
    "activation": Formula(_activation, "max(64, N), and 64 to read out a reduction", ISA),
    "activation_reduce": Formula(_with_readout, "max(64, N) + 64", ISA),
    "activate2": Formula(_activation, "as activation", _NOT_PRICED),
    "tensor_copy": Formula(
        _copy_or_scalar, "max(64, N / speed), speed 4 or 2 in performance mode", f"{ISA}; {ARCH_V3}"
    ),
    "tensor_scalar": Formula(
        _copy_or_scalar, "max(64, N / speed), speed 4 or 2 in performance mode", f"{ISA}; {ARCH_V3}"
    ),
    "tensor_tensor": Formula(
        _tensor_tensor,
        "max(64, N) for one input in PSUM or all 16-bit in SBUF, else max(64, 2N)",
        f"{ISA}; {ARCH_V3}",
    ),
    "scalar_tensor_tensor": Formula(
        _scalar_tensor_tensor, "max(64, N) for subtract and multiply of bfloat16, else 2N", ISA
    ),
    "tensor_tensor_scan": Formula(_two_per_element, "max(64, 2N)", ISA),
    "tensor_reduce": Formula(
        _tensor_reduce, "max(64, N/2) for sum or maximum of bfloat16, else N", ISA
    ),
    "tensor_scalar_reduce": Formula(_with_readout, "max(64, N) + 64", ISA),
    "tensor_scalar_cumulative": Formula(_one_per_element, _SAME, _NOT_PRICED),
    "tensor_copy_predicated": Formula(
        _copy_predicated, "max(64, N) for one of src and predicate in PSUM, else 2N", ISA
    ),
    "memset": Formula(_memset, "max(64, N/2) for zeros of 16 bits, else N", ISA),
    "reciprocal": Formula(_reciprocal, "max(64, 8N)", ISA),
    "nc_stream_shuffle": Formula(_one_per_element, _SAME, ISA),
    "range_select": Formula(_one_per_element, _SAME, ISA),
    "select_reduce": Formula(_one_per_element, _SAME, _NOT_PRICED),
    "exponential": Formula(
        _four_per_cycle, "max(64, N/4)", f"{ARCH_V4}, fast exponential: 4 times activation"
    ),
    "quantize_mx": Formula(
        _four_per_cycle, "max(64, N/4)", f"{ARCH_V4}, MX quantization: 4 elements a cycle"
    ),
    "max8": Formula(_one_per_element, "N, at least 64", ISA),
    "nc_find_index8": Formula(_one_per_element, "N, at least 64", ISA),
    "nc_match_replace8": Formula(
        _one_per_element, "N, at least 64 (the page has min for max)", ISA
    ),
    "bn_stats": Formula(_one_per_element, _SAME, ISA),
    "bn_aggr": Formula(_bn_aggr, "max(64, 13N/3)", ISA),
    "dropout": Formula(_one_per_element, _SAME, ISA),
    "rng": Formula(_one_per_element, _SAME, _NOT_PRICED),
    "rand2": Formula(_four_per_cycle, "max(64, N/4)", f"{ARCH_V4}, XORWOW: 4 values a cycle"),
    "set_rng_seed": Formula(_interval, "64", _NOT_PRICED),
    "iota": Formula(_on_gpsimd, "150 + N", ISA),
    "affine_select": Formula(_on_gpsimd, "150 + N", ISA),
    "tensor_partition_reduce": Formula(_on_gpsimd, "150 + N", _NOT_PRICED),
    "nc_n_gather": Formula(_on_gpsimd, "150 + N", _NOT_PRICED),
    "local_gather": Formula(
        _local_gather, "150 + N / C, C by element size and elements per index", ISA
    ),
    "nonzero_with_count": Formula(_on_gpsimd, "150 + N", _NOT_PRICED),
    "sequence_bounds": Formula(_on_gpsimd, "150 + N", _NOT_PRICED),
    "topk": Formula(
        _topk, "4n + K, n elements of 16 partitions being searched", "NKI API 0.6, nki.isa.topk"
    ),
    "register_load": Formula(_interval, "64", _NOT_PRICED),
    "register_store": Formula(_interval, "64", _NOT_PRICED),
}


def instruction_cycles(
    costs: Costs,
    opcode: str,
    engine: str,
    operands: Operands,
    attributes: Mapping[str, Any] | None = None,
) -> float:
    """Cycles of its engine for which an instruction keeps the next one waiting.

    Args:
      costs: the target's constants.
      opcode: name of the `nki.isa` function, not one that moves data by DMA.
      engine: "tensor", "vector", "scalar", "gpsimd" or "sync".
      operands: by the names of the function's arguments; the result is "dst".
      attributes: what else the cost depends on: `op`, `op0`, `op1`, `is_transpose`, `double_row`,
        `value`, `num_elem_per_idx`, `n`. Each is the argument of that name.

    Returns:
      The documented estimate. On the GpSimd Engine the start-up cycles are added to what the
      Vector Engine would take; small instructions also cost `overhead`. An operand with a wide
      stride slows the instruction down to `strided_rate`.

    Raises:
      ValueError: no formula is known for the opcode.
    """
    formula = FORMULAS.get(opcode)
    if formula is None:
        raise ValueError(f"opcode {opcode!r} has no cost formula; known are {sorted(FORMULAS)}")
    case = _Case(costs, engine, operands, attributes or {})
    cycles = formula.cycles(case)
    if any(operand.wide_stride for operand in operands.values()):
        cycles /= costs.strided_rate
    if engine == "gpsimd" and formula.cycles not in (_on_gpsimd, _local_gather, _topk):
        return cycles + costs.gpsimd_start
    if engine in ("vector", "scalar") and operands and case.elements < costs.overhead_elements:
        return cycles + costs.overhead
    return cycles


def loading_cycles(
    costs: Costs, operands: Operands, attributes: Mapping[str, Any] | None = None
) -> float:
    """Cycles of the Tensor Engine in which the stationary tile of a matrix product loads.

    The next product's tile, of another part of the array, can load after them. The arguments are
    those of `instruction_cycles`, of an nc_matmul.
    """
    return _load(_Case(costs, "tensor", operands, attributes or {}))


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """The bytes that a DMA instruction moves.

    Attributes:
      opcode: "dma_copy", "dma_transpose", "dma_compute" or "sendrecv".
      row_bytes: bytes of one row, which belongs to one partition.
      rows_by_engine: rows of each DMA engine from the first to the last that takes part; those
        between may have none.
      run_bytes: bytes of a contiguous run, on the side that has the shorter ones. Neighboring rows
        of one engine are a single run if they are contiguous in HBM.
      hbm_sides: how many sides (source, destination) are in HBM: 0, 1 or 2.
    """

    opcode: str
    row_bytes: int
    rows_by_engine: tuple[int, ...]
    run_bytes: int
    hbm_sides: int


def dma_engine_times(costs: Costs, transfer: Transfer) -> list[float]:
    """How long each DMA engine of the core is busy with a transfer, in ns.

    An engine moves its rows one after another, as fast as DMA and HBM bandwidth allow, and takes
    `dma_run` for each contiguous run.
    """
    speed = float(costs.dma_bandwidth)
    if transfer.hbm_sides:
        speed = min(speed, costs.hbm_bandwidth / costs.dma_engines / transfer.hbm_sides)
    if transfer.opcode == "dma_transpose":
        speed *= costs.dma_transpose_hbm if transfer.hbm_sides else costs.dma_transpose_sbuf
    elif transfer.opcode == "dma_compute":
        speed *= costs.dma_compute
    times = []
    for rows in transfer.rows_by_engine:
        nbytes = rows * transfer.row_bytes
        runs = max(1.0, nbytes / max(1, transfer.run_bytes)) if rows else 0.0
        times.append(nbytes / speed + runs * costs.dma_run)
    return times


def collective_time(costs: Costs, opcode: str, nbytes: int, ranks: int) -> float:
    """Time of a collective in ns: the latency, and the transfer over the links.

    Args:
      costs: the target's constants.
      opcode: name of the `nki.collectives` function.
      nbytes: bytes that a rank brings.
      ranks: ranks of the group. One rank alone has nothing to send.
    """
    if ranks <= 1:
        return 0.0
    share = (ranks - 1) / ranks
    # An all-reduce is a reduce-scatter and an all-gather; an all-gather's input is one share.
    factor = {"all_reduce": 2 * share, "all_gather": float(ranks - 1)}.get(opcode, share)
    return costs.all_reduce_latency + factor * nbytes / costs.collective_bandwidth
