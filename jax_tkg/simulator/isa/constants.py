"""The configuration enumerations of ``nki.isa``."""

import enum
import warnings
from typing import Any, TypeVar

__all__ = [
    "dge_mode",
    "dma_engine",
    "engine",
    "gpsimd_engine",
    "matmul_perf_mode",
    "nc_version",
    "oob_mode",
    "reduce_cmd",
    "scalar_engine",
    "tensor_engine",
    "unknown_engine",
    "vector_engine",
]


class engine(enum.Enum):
    """Neuron Device engines."""

    tensor = 1
    vector = 5
    scalar = 2
    gpsimd = 3
    dma = 4
    sync = 6
    unknown = 0


class reduce_cmd(enum.Enum):
    """Engine register reduce commands."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(enum.Enum):
    """Descriptor Generation Engine mode."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(enum.Enum):
    """Out-of-bounds access mode."""

    error = 0
    skip = 1


class matmul_perf_mode(enum.Enum):
    """Performance mode for matmul."""

    none = "none"
    double_row = "double_row"


class nc_version(enum.IntEnum):
    """NeuronCore version. It is ordered, because kernels compare it."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class dma_engine(enum.Enum):
    """DMA transfer engine."""

    dma = 1
    gpsimd_dma = 2


tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown

_Member = TypeVar("_Member", bound=enum.Enum)


def member(kind: type[_Member], value: Any, argument: str) -> _Member:
    """Returns the member of an enumeration, also for its raw value, which newer NKI rejects.

    Raises:
      TypeError: no member has that value.
    """
    if isinstance(value, kind):
        return value
    if value is None and hasattr(kind, "unknown"):
        return kind["unknown"]
    try:
        found = kind(value)
    except ValueError:
        raise TypeError(f"{argument}={value!r}: expected one of {[str(m) for m in kind]}") from None
    warnings.warn(
        f"{argument}={value!r}: newer NKI accepts only {kind.__name__}.{found.name}",
        DeprecationWarning,
        stacklevel=4,
    )
    return found
