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

PSUM_BANKS = 8
"""PSUM banks per partition (`ARCH_V2`, PSUM)."""

PSUM_BANK_BYTES = 2 * KIB
"""Bytes of one PSUM bank in one partition: 512 float32 values (`ARCH_V2`, PSUM)."""

PSUM_PARTITION_BYTES = PSUM_BANKS * PSUM_BANK_BYTES
"""Bytes of PSUM in one partition, equal on all generations (architecture guides)."""

MATMUL_STATIONARY_COLUMNS = 128
"""Largest free size of the stationary operand of a matrix product (NKI API, nki.isa.nc_matmul)."""

MATMUL_MOVING_COLUMNS = 512
"""Largest free size of the moving operand up to NeuronCore-v3 (NKI API, nki.isa.nc_matmul)."""

DMA_ENGINES = 16
"""DMA engines of a core (`BANDWIDTH`, table)."""

PARTITIONS_PER_DMA_ENGINE = 8
"""Partitions of SBUF that one DMA engine serves (`DMA`, performance considerations)."""

DMA_QUEUES = 16
"""Queues of a DMA engine (`DMA`: queues 0 to 15)."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One generation of Trainium.

    Attributes:
      name: the instance family: "trn1", "trn2" or "trn3".
      generation: the number in NeuronCore-v<number>.
      sbuf_partition_bytes: bytes of SBUF in one partition (architecture guide of the generation).
      float8_dtypes: the float8 formats of matrix products (NKI API, nki.isa.nc_matmul).
    """

    name: str
    generation: int
    sbuf_partition_bytes: int
    float8_dtypes: tuple[str, ...]


_FLOAT8 = ("float8_e4m3", "float8_e5m2")

TRN1 = Target("trn1", 2, 192 * KIB, _FLOAT8)
TRN2 = Target("trn2", 3, 224 * KIB, _FLOAT8)
TRN3 = Target("trn3", 4, 256 * KIB, (*_FLOAT8, "float8_e4m3fn"))

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
