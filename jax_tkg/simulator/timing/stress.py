"""Machines that differ in what the documents leave open, so that no figure depends on one guess.

Each takes one constant, or one choice of the compiler, to its unfavorable end; "unfavorable" takes
most of them there at once, and "favorable" those that have another end to it. What a kernel's
latency is on each says how far it depends on what nobody has published.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax_tkg.simulator.timing.costs import Costs
from jax_tkg.simulator.timing.placement import Placement


@dataclasses.dataclass(frozen=True)
class Machine:
    """One set of assumptions.

    Attributes:
      name: of the machine.
      assumes: what it assumes, in words.
      changes: fields of `Costs`. A field of `_FACTORS` is multiplied; others are replaced.
      tensor_rate: as in `timeline.schedule`.
      placement: of the tensors on chip that the compiler places.
    """

    name: str
    assumes: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    tensor_rate: str = "half"
    placement: Placement = Placement.APART

    def costs(self, costs: Costs) -> Costs:
        """The machine's constants, of a generation's."""
        changes = {
            name: getattr(costs, name) * value if name in _FACTORS else value
            for name, value in self.changes.items()
        }
        return dataclasses.replace(costs, **changes)


_FACTORS = ("semaphore", "overhead", "activation_table", "barrier", "dma_start", "dge_interval")

_ONE_AT_A_TIME = (
    Machine(
        "GpSimd triggers",
        "the compiler ignores the named engines: all DMAs on the GpSimd Engine, in software",
        {"only_trigger": "gpsimd"},
    ),
    Machine(
        "Scalar triggers",
        "the compiler ignores the named engines: all DMAs on the Scalar Engine",
        {"only_trigger": "scalar"},
    ),
    Machine(
        "engines take turns",
        "Vector and GpSimd Engine cannot access SBUF at once, Vector and Scalar not PSUM, as on v2",
        {"vector_and_gpsimd_share_sbuf": True},
    ),
    Machine(
        "slow strides",
        "an innermost stride of more than 16 bytes halves an engine's rate, as on v2",
        {"strided_rate": 0.5},
    ),
    Machine(
        "short runs",
        "a run in HBM ends with the row of a partition, though the next one's is its neighbor",
        {"runs_end_with_rows": True},
    ),
    Machine(
        "slow stationary loads",
        "a stationary tile of 128 columns loads in 128 cycles, not 64",
        {"stationary_load": 128.0},
    ),
    Machine(
        "tiles in turn",
        "matrix products on different tiles of the Tensor Engine's array run one after another",
        {"tiles_in_parallel": False},
    ),
    Machine(
        "slow signals",
        "semaphores, barriers, activation tables 3 times as long, results and DMA starts 2 times",
        {
            "semaphore": 3.0,
            "barrier": 3.0,
            "activation_table": 3.0,
            "overhead": 2.0,
            "dma_start": 2.0,
            "dge_interval": 2.0,
        },
    ),
    Machine(
        "lowest addresses",
        "the compiler places each tensor at the lowest address that is free in program order, so "
        "that it waits for what used these bytes last",
        placement=Placement.LOWEST,
    ),
    Machine("all-reduce 25 us", "an all-reduce takes 25 us", {"all_reduce_latency": 25e3}),
    Machine("all-reduce 100 us", "an all-reduce takes 100 us", {"all_reduce_latency": 100e3}),
)

_TOGETHER = {
    name: value
    for machine in _ONE_AT_A_TIME
    if machine.name not in ("Scalar triggers", "tiles in turn", "all-reduce 100 us")
    for name, value in machine.changes.items()
}

DOCUMENTED = Machine(
    "documented", "the constants of the table; a run in HBM costs its upper bound of 20 ns"
)
FAVORABLE = Machine(
    "favorable",
    "the Tensor Engine is never throttled, and runs in HBM cost nothing",
    {"dma_run": 0.0},
    "full",
)
UNFAVORABLE = Machine(
    "unfavorable",
    "all of the above at once but tiles in turn and lowest addresses, the Tensor Engine at half "
    "rate, DMAs on the GpSimd Engine, an all-reduce of 25 us",
    _TOGETHER,
)

MACHINES = (
    DOCUMENTED,
    Machine("full rate", "the Tensor Engine is never throttled", {}, "full"),
    Machine("ramp", "the Tensor Engine's rate ramps up under load", {}, "ramp"),
    Machine("free runs", "runs in HBM cost nothing beside their bytes", {"dma_run": 0.0}),
    *_ONE_AT_A_TIME,
    UNFAVORABLE,
    dataclasses.replace(
        UNFAVORABLE,
        name="unfavorable, as named",
        assumes="the same, but DMAs on the engines that the kernel names",
        changes={name: value for name, value in _TOGETHER.items() if name != "only_trigger"},
    ),
    FAVORABLE,
)
