"""Cost constants of instructions on Trainium2 and Trainium3, from AWS's documentation.

Every figure carries its source; `Figure.assumed` marks the few that no document gives. Cycle counts
are the documentation's estimates for well-pipelined code. We have measured none of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jax_tkg import hardware
from jax_tkg.hardware import ARCH_V2, ARCH_V3, ARCH_V4, BANDWIDTH, DGE, DMA, Figure

ISA = "NKI API reference of Neuron SDK 2.26.1, nki.isa, estimated instruction cost"
PERFORMANCE = "NKI performance guide"
THROTTLE = "Neuron Explorer summary viewer, understanding throttling"
COLLECTIVES = "Neuron intra-node collectives guide"
MATMUL = "NKI kernel-optimization tutorial"

TRIGGERS = ("gpsimd", "sync", "scalar")
"""Engines that may trigger a DMA."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """The cost constants of one target, per physical core. Clocks are cycles per ns, times are ns.

    Attributes:
      target: "trn2" or "trn3".
      tensor_clock, vector_clock, scalar_clock, gpsimd_clock, sync_clock: engine frequencies.
      minimum_interval: minimum cycles between instructions of the Vector or Scalar Engine.
      stationary_load: cycles to load a stationary tile of 128 columns into the Tensor Engine.
      strided_rate: share of its rate at which an engine accesses a tile whose innermost stride is
        more than 16 bytes.
      gpsimd_start: start-up cycles of a GpSimd instruction.
      overhead: cycles until a result can be used by the next instruction, and cycles added to an
        instruction with few elements per partition.
      overhead_elements: an instruction with fewer elements per partition than this is small.
      activation_table: time to load the table of another activation function.
      semaphore: time until another engine sees a signal.
      tensor_throttled_rate: share of the Tensor Engine's rate while it is throttled.
      tensor_ramp: time over which the throttle is decided.
      float32_passes: how much slower the Tensor Engine is for float32.
      dma_engines: DMA engines of a core.
      dma_bandwidth: of one DMA engine.
      partitions_per_dma_engine: SBUF partitions that one DMA engine serves.
      dma_run: time of a DMA engine for each contiguous run in HBM, or shorter piece of a row in
        SBUF, beside its bytes.
      dma_trigger: time of the engine that triggers a DMA.
      dma_start: from the trigger of a DMA to its first byte.
      dge_interval: time of one hardware descriptor generation. The Sync and the Scalar Engine have
        a generator each.
      software_descriptor: time on the GpSimd Engine to generate descriptors of one DMA.
      gpsimd_dma_bandwidth: of the GpSimd Engine's own DMA, in each direction.
      dma_transpose_hbm, dma_transpose_sbuf, dma_compute: share of DMA bandwidth reached.
      hbm_bandwidth: a core's share of the chip's HBM bandwidth.
      all_reduce_latency: latency of any collective, without the transfer.
      collective_bandwidth: a core's share of the links between chips.
      barrier: time for the two cores of a logical core to wait for each other.
      loop_turn: added at the start of each turn of a device loop, after everything earlier on the
        core has ended.
      vector_and_gpsimd_share_sbuf: whether those engines cannot access SBUF at the same time, and
        the Vector and the Scalar Engine not PSUM.
      tiles_in_parallel: whether matrix products on different tiles of the Tensor Engine's array run
        at once, as the API reference says of nc_matmul; else one after another.
      runs_end_with_rows: whether a contiguous run in HBM ends where the row of the next partition
        begins.
      default_trigger: engine that triggers a DMA for which the kernel names neither engine nor
        mode: "gpsimd", whose descriptors are then made in software, "sync" or "scalar". The DMA
        overview's profile of example 2 shows the GpSimd Engine, that of example 1 the Sync Engine
        for the load and the GpSimd Engine for the store. Trainium1 has descriptors made beforehand.
      only_trigger: engine that triggers every DMA, whatever the kernel names; None for as named.
    """

    target: str
    tensor_clock: float
    vector_clock: float
    scalar_clock: float
    gpsimd_clock: float
    sync_clock: float
    minimum_interval: float
    stationary_load: float
    strided_rate: float
    gpsimd_start: float
    overhead: float
    overhead_elements: float
    activation_table: float
    semaphore: float
    tensor_throttled_rate: float
    tensor_ramp: float
    float32_passes: float
    dma_engines: float
    dma_bandwidth: float
    partitions_per_dma_engine: float
    dma_run: float
    dma_trigger: float
    dma_start: float
    dge_interval: float
    software_descriptor: float
    gpsimd_dma_bandwidth: float
    dma_transpose_hbm: float
    dma_transpose_sbuf: float
    dma_compute: float
    hbm_bandwidth: float
    all_reduce_latency: float
    collective_bandwidth: float
    barrier: float
    loop_turn: float
    vector_and_gpsimd_share_sbuf: bool = False
    tiles_in_parallel: bool = True
    runs_end_with_rows: bool = False
    default_trigger: str = "gpsimd"
    only_trigger: str | None = None

    def __post_init__(self) -> None:
        for name in ("default_trigger", "only_trigger"):
            value = getattr(self, name)
            if value not in TRIGGERS and not (name == "only_trigger" and value is None):
                raise ValueError(f"{name}={value!r}: expected one of {list(TRIGGERS)}")

    def clock(self, engine: str) -> float:
        """Cycles per ns of "tensor", "vector", "scalar", "gpsimd" or "sync".

        Raises:
          ValueError: there is no such engine.
        """
        if engine not in _ENGINES:
            raise ValueError(f"engine {engine!r} is unknown; expected one of {list(_ENGINES)}")
        return getattr(self, f"{engine}_clock")


_ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync")


def _rates(target: hardware.Target) -> dict[str, Any]:
    """The fields of `Costs` that are figures of the hardware alone."""
    rates = {
        "target": target.name,
        "tensor_clock": target.tensor_clock,
        "vector_clock": target.vector_clock,
        "scalar_clock": target.scalar_clock,
        "gpsimd_clock": target.gpsimd_clock,
        "dma_bandwidth": target.dma_bandwidth,
        "hbm_bandwidth": target.hbm_bandwidth,
    }
    if target.link_bandwidth is not None:
        rates["collective_bandwidth"] = target.link_bandwidth
    return rates


TRN2 = Costs(
    **_rates(hardware.TRN2),
    sync_clock=Figure(hardware.TRN2.scalar_clock, "GHz", "that of the Scalar Engine", assumed=True),
    minimum_interval=Figure(64, "cycles", f"{ISA}: MIN_II"),
    stationary_load=Figure(64, "cycles", f"{ISA}: nc_matmul, min(64, N_stationary)"),
    strided_rate=Figure(
        1,
        "",
        f"{ARCH_V3} does not repeat the half rate of NeuronCore-v2",
        assumed=True,
    ),
    gpsimd_start=Figure(150, "cycles", f"{ISA}: GPSIMD_START"),
    overhead=Figure(100, "cycles", f"{ARCH_V2}, Vector Engine cost model: static overhead"),
    overhead_elements=Figure(
        64,
        "elements",
        f"{ARCH_V2}, Vector Engine cost model: N << 128, taken as below 64",
        assumed=True,
    ),
    activation_table=Figure(1300, "ns", f"{DMA}, read off the profile of example 2"),
    semaphore=Figure(
        50, "ns", f"{ARCH_V2}, tensor access overhead of 60 cycles of about 1.2 GHz", assumed=True
    ),
    tensor_throttled_rate=Figure(0.5, "", f"{THROTTLE}: roughly 50% at first"),
    tensor_ramp=Figure(3000, "ns", f"{THROTTLE}: about 3 microseconds"),
    float32_passes=Figure(4, "", f"{ISA}: nc_matmul of float32"),
    dma_engines=hardware.DMA_ENGINES,
    partitions_per_dma_engine=hardware.PARTITIONS_PER_DMA_ENGINE,
    dma_run=Figure(
        20,
        "ns",
        f"assumed at its upper bound: {MATMUL}, tiled product, 39.89 ms for 32,768 pairs of loads "
        "with runs of 512 and 2,048 bytes leaves at most 20 beside their bytes; the DMA overview's "
        "graph leaves 6 at 4 KiB and more, and its profile at most 8 (2 KiB in 97 ns)",
        assumed=True,
    ),
    dma_trigger=Figure(
        80, "ns", f"{DMA}, read off the profile of example 1: Sync Engine (8 in that of example 2)"
    ),
    dma_start=Figure(
        1300,
        "ns",
        f"{BANDWIDTH}: semaphore to start, across engines (0.74 and 1.01 us in the profiles of the "
        "DMA overview, and 0.3 us from the last byte to the reader)",
    ),
    dge_interval=Figure(600, "ns", f"{DGE}, performance implications"),
    software_descriptor=Figure(
        600,
        "ns",
        f"{DGE} says only that it uses GpSimd cycles; {MATMUL}, tiled product, leaves at most 609 "
        "for each of its loads, and the DMA overview's graph shows 850 from copy to copy",
        assumed=True,
    ),
    gpsimd_dma_bandwidth=Figure(
        153, "bytes/ns", f"{ARCH_V3}, GpSimd Engine: 153 GB/s per direction of its integrated DMA"
    ),
    dma_transpose_hbm=Figure(0.9, "", f"{ARCH_V3}, DMA transpose from HBM"),
    dma_transpose_sbuf=Figure(0.5, "", f"{ARCH_V3}, DMA transpose from SBUF"),
    dma_compute=Figure(0.5, "", f"{ARCH_V4}, SBUF read-add-write: before NeuronCore-v4"),
    all_reduce_latency=Figure(
        17_500,
        "ns",
        "a third party's fit on Trainium2, 17.5 us + bytes / (100 GB/s), which "
        f"`collective_bandwidth` gives within a fifth; {COLLECTIVES}: 1 to 10 us, 1-2 us a hop; to "
        "be swept",
        assumed=True,
    ),
    barrier=Figure(1000, "ns", "no document gives it", assumed=True),
    loop_turn=Figure(
        9000,
        "ns",
        "a design note of AWS says about 9 us; others measured from 1.4 us (each of 64 turns of "
        "one instruction, Trainium1) to 37 us (all of a loop of one turn)",
        assumed=True,
    ),
)

TRN3 = dataclasses.replace(TRN2, **_rates(hardware.TRN3))

TRN1 = dataclasses.replace(
    TRN2,
    **_rates(hardware.TRN1),
    strided_rate=Figure(0.5, "", f"{ARCH_V2}, accessing SBUF and PSUM: access pattern"),
    vector_and_gpsimd_share_sbuf=True,
    default_trigger="sync",
)
"""One core of Trainium1, for kernels whose latency is published; not its collectives."""

TARGETS = {"trn2": TRN2, "trn3": TRN3}


def figures(costs: Costs) -> Iterator[tuple[str, float, str, str]]:
    """Rows of a table: name, value, unit, source. A number set by the caller says so."""
    for field in dataclasses.fields(costs):
        value = getattr(costs, field.name)
        if isinstance(value, Figure):
            source = f"assumed: {value.source}" if value.assumed else value.source
            yield field.name, float(value), value.unit, source
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield field.name, float(value), "", "set by the caller"
