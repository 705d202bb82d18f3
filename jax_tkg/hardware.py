"""The published numbers of AWS Trainium, each once and with its source.

They hold for one physical NeuronCore unless they say otherwise. Where no document gives a number,
its `Figure.assumed` says so. This module imports nothing but the standard library, so that every
other part of the package can read it.
"""

from __future__ import annotations

import dataclasses
import os

# Titles of AWS's documents, all in the repository aws-neuron/aws-neuron-sdk.
ARCH_V2 = "Trainium/Inferentia2 architecture guide for NKI"
ARCH_V3 = "Trainium2 architecture guide for NKI"
ARCH_V4 = "Trainium3 architecture guide for NKI"
BANDWIDTH = "NKI guideline to avoid under-utilizing DMA bandwidth"
DMA = "NKI DMA overview"
DGE = "NKI descriptor generation engine guide"
HARDWARE_V1 = "Neuron hardware overview, Trainium1"
HARDWARE = "Neuron hardware overview, Trainium2 and Trainium3"


class Figure(float):
    """A number, its unit, and where it comes from.

    Attributes:
      unit: such as "GHz", "cycles", "ns", "bytes/ns" or "".
      source: the document, and what in it.
      assumed: no document gives the number; `source` says what it rests on.
    """

    unit: str
    source: str
    assumed: bool

    def __new__(cls, value: float, unit: str, source: str, assumed: bool = False) -> Figure:
        """Makes a figure of that value."""
        figure = super().__new__(cls, value)
        figure.unit = unit
        figure.source = source
        figure.assumed = assumed
        return figure


KIB = 1024

PARTITIONS = 128
"""Partitions of SBUF and of PSUM, and rows of the Tensor Engine (architecture guides)."""

RESERVED_SBUF_BYTES = 16 * KIB
"""Bytes of an SBUF partition that are left to the compiler; assumed: no document says how many it
keeps. AWS's kernels use up to 200 of 224 KiB (aws-neuron/nki-library)."""

PSUM_BANKS = 8
"""PSUM banks per partition (`ARCH_V2`, PSUM)."""

PSUM_BANK_BYTES = 2 * KIB
"""Bytes of one PSUM bank in one partition: 512 float32 values (`ARCH_V2`, PSUM)."""

PSUM_PARTITION_BYTES = PSUM_BANKS * PSUM_BANK_BYTES
"""Bytes of PSUM in one partition, equal on all generations (architecture guides)."""

STATIONARY_FMAX = 128
"""Largest free size of the stationary operand of a matrix product (NKI API, nki.isa.nc_matmul)."""

MOVING_FMAX = 512
"""Largest free size of the moving operand up to NeuronCore-v3: the float32 values of a PSUM bank
(NKI API, nki.isa.nc_matmul)."""

DMA_ENGINES = Figure(16, "", f"{BANDWIDTH}, table")
"""DMA engines of a core."""

PARTITIONS_PER_DMA_ENGINE = Figure(8, "", f"{DMA}, performance considerations")
"""Partitions of SBUF that one DMA engine serves."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One generation of Trainium.

    Attributes:
      name: the instance family: "trn1", "trn2" or "trn3".
      generation: the number in NeuronCore-v<number>.
      sbuf_partition_bytes: bytes of SBUF in one partition (architecture guide of the generation).
      float8_dtypes: the float8 formats of matrix products (NKI API, nki.isa.nc_matmul).
      tensor_clock, vector_clock, scalar_clock, gpsimd_clock: frequencies of the engines, in GHz.
      dma_bandwidth: of one DMA engine, in bytes/ns.
      hbm_bandwidth: a core's share of the chip's, in bytes/ns.
      link_bandwidth: a core's share of the links between chips, in bytes/ns; None where it is not
        known here.
    """

    name: str
    generation: int
    sbuf_partition_bytes: int
    float8_dtypes: tuple[str, ...]
    tensor_clock: Figure
    vector_clock: Figure
    scalar_clock: Figure
    gpsimd_clock: Figure
    dma_bandwidth: Figure
    hbm_bandwidth: Figure
    link_bandwidth: Figure | None


_FLOAT8 = ("float8_e4m3", "float8_e5m2")

_CLOCKS_V2 = f"{ARCH_V2}, compute engine specifications"
_CLOCKS_V3 = f"{ARCH_V3}, compute engine specifications"
_CLOCKS_V4 = f"{ARCH_V4}, compute engine specifications"

TRN1 = Target(
    name="trn1",
    generation=2,
    sbuf_partition_bytes=192 * KIB,
    float8_dtypes=_FLOAT8,
    tensor_clock=Figure(2.8, "GHz", _CLOCKS_V2),
    vector_clock=Figure(1.12, "GHz", _CLOCKS_V2),
    scalar_clock=Figure(1.4, "GHz", _CLOCKS_V2),
    gpsimd_clock=Figure(1.4, "GHz", _CLOCKS_V2),
    dma_bandwidth=Figure(17, "bytes/ns", f"{BANDWIDTH}, table"),
    hbm_bandwidth=Figure(410, "bytes/ns", f"{HARDWARE_V1}: 820 GB/s over 2 cores"),
    link_bandwidth=None,
)

TRN2 = Target(
    name="trn2",
    generation=3,
    sbuf_partition_bytes=224 * KIB,
    float8_dtypes=_FLOAT8,
    tensor_clock=Figure(2.4, "GHz", _CLOCKS_V3),
    vector_clock=Figure(0.96, "GHz", _CLOCKS_V3),
    scalar_clock=Figure(1.2, "GHz", _CLOCKS_V3),
    gpsimd_clock=Figure(1.2, "GHz", _CLOCKS_V3),
    dma_bandwidth=Figure(23, "bytes/ns", f"{BANDWIDTH}, table"),
    hbm_bandwidth=Figure(362.5, "bytes/ns", f"{HARDWARE}: 2.9 TB/s over 8 cores"),
    link_bandwidth=Figure(160, "bytes/ns", f"{HARDWARE}: 1.28 TB/s over 8 cores"),
)

TRN3 = Target(
    name="trn3",
    generation=4,
    sbuf_partition_bytes=256 * KIB,
    float8_dtypes=(*_FLOAT8, "float8_e4m3fn"),
    tensor_clock=Figure(2.4, "GHz", _CLOCKS_V4),
    vector_clock=Figure(1.2, "GHz", _CLOCKS_V4),
    scalar_clock=Figure(1.2, "GHz", _CLOCKS_V4),
    gpsimd_clock=Figure(1.2, "GHz", _CLOCKS_V4),
    dma_bandwidth=Figure(33, "bytes/ns", f"{BANDWIDTH}, table"),
    hbm_bandwidth=Figure(
        587.5, "bytes/ns", f"{ARCH_V4}: 4.7 TB/s over 8 cores (the hardware overview has 4.9)"
    ),
    link_bandwidth=Figure(320, "bytes/ns", f"{HARDWARE}: 2.56 TB/s over 8 cores"),
)

TARGETS = {target.name: target for target in (TRN1, TRN2, TRN3)}
"""By name, oldest first."""

TARGET_ALIASES = {
    "inf2": TRN1.name,
    "gen2": TRN1.name,
    "gen3": TRN2.name,
    "gen4": TRN3.name,
}
"""Other names that `TARGET_VARIABLE` may have (NKI API, nki.simulate)."""

TARGET_VARIABLE = "NEURON_PLATFORM_TARGET_OVERRIDE"
"""Environment variable of NKI's compiler: the machine that kernels are compiled for."""


def target_named(name: str | None) -> Target:
    """Returns the target of a name; for None, the one that `TARGET_VARIABLE` names, or else trn2.

    Raises:
      ValueError: there is no such target.
    """
    chosen = name or os.environ.get(TARGET_VARIABLE) or TRN2.name
    target = TARGETS.get(TARGET_ALIASES.get(chosen, chosen))
    if target is None:
        known = [*TARGETS, *TARGET_ALIASES]
        raise ValueError(f"target {chosen!r} is unknown; expected one of {known}")
    return target
