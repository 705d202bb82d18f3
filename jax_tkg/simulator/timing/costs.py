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


@dataclasses.dataclass(frozen=True)
class Costs:
    """The cost constants of one target, per physical core. Clocks are cycles per ns, times are ns.

    Attributes:
      target: "trn2" or "trn3".
      tensor_clock, vector_clock, scalar_clock, gpsimd_clock, sync_clock: engine frequencies.
      minimum_interval: minimum cycles between instructions of the Vector or Scalar Engine.
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
      dma_packet: least time of a DMA engine for one partition's row.
      dma_run_bytes: a contiguous run of fewer bytes costs as much as this many.
      dma_start: from the semaphore that allows a DMA to its first byte.
      dma_queues: queues of a DMA engine; a transfer takes the same queue on all engines, and
        transfers of one queue run in order, so that one that waits for data blocks its queue.
      dge_interval, dge_queues: time of one hardware descriptor generation, and generators.
      software_descriptor: time on the GpSimd Engine to generate descriptors of one DMA.
      dma_transpose_hbm, dma_transpose_sbuf, dma_compute: share of DMA bandwidth reached.
      hbm_bandwidth: a core's share of the chip's HBM bandwidth.
      all_reduce_latency: latency of any collective, without the transfer.
      collective_bandwidth: a core's share of the links between chips.
      barrier: time for the two cores of a logical core to wait for each other.
      loop_turn: added at the start of each turn of a device loop, after everything earlier on the
        core has ended.
    """

    target: str
    tensor_clock: float
    vector_clock: float
    scalar_clock: float
    gpsimd_clock: float
    sync_clock: float
    minimum_interval: float
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
    dma_packet: float
    dma_run_bytes: float
    dma_start: float
    dma_queues: float
    dge_interval: float
    dge_queues: float
    software_descriptor: float
    dma_transpose_hbm: float
    dma_transpose_sbuf: float
    dma_compute: float
    hbm_bandwidth: float
    all_reduce_latency: float
    collective_bandwidth: float
    barrier: float
    loop_turn: float

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
    dma_packet=Figure(
        107.5,
        "ns",
        f"{DMA}, read off the figure of throughput by bytes per partition: a transfer of 128 "
        "partitions takes at least 0.86 us, which is 8 rows on each engine",
    ),
    dma_run_bytes=Figure(64, "bytes", "no document gives the cost of short runs", assumed=True),
    dma_start=Figure(1300, "ns", f"{BANDWIDTH}: semaphore to start, across engines"),
    dma_queues=hardware.DMA_QUEUES,
    dge_interval=Figure(600, "ns", f"{DGE}, performance implications"),
    dge_queues=hardware.DESCRIPTOR_GENERATORS,
    software_descriptor=Figure(
        500, "ns", f"{DGE} says only that it uses GpSimd cycles", assumed=True
    ),
    dma_transpose_hbm=Figure(0.9, "", f"{ARCH_V3}, DMA transpose from HBM"),
    dma_transpose_sbuf=Figure(0.5, "", f"{ARCH_V3}, DMA transpose from SBUF"),
    dma_compute=Figure(0.5, "", f"{ARCH_V4}, SBUF read-add-write: before NeuronCore-v4"),
    all_reduce_latency=Figure(
        10_000, "ns", f"{COLLECTIVES}: 1 to 10 us, 1-2 us a hop; to be swept", assumed=True
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

TRN3 = dataclasses.replace(
    TRN2,
    **_rates(hardware.TRN3),
    dma_packet=Figure(
        74.9,
        "ns",
        "that of Trainium2, shortened as the bandwidth of an engine is raised",
        assumed=True,
    ),
)

TRN1 = dataclasses.replace(
    TRN2,
    **_rates(hardware.TRN1),
    dma_packet=Figure(
        145.4,
        "ns",
        "that of Trainium2, lengthened as the bandwidth of an engine is lower",
        assumed=True,
    ),
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
        elif isinstance(value, int | float):
            yield field.name, float(value), "", "set by the caller"
