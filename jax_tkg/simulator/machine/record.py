"""The instruction stream of a run: the instructions of each core, and the memory they access.

A record does not refer to the tensors of the run, so a scheduler can find read-after-write,
write-after-read and write-after-write dependencies long after it.
"""

import dataclasses
from typing import Any

import numpy as np


class Access:
    """One operand of one instruction: the bytes of the tensor that it accesses.

    Attributes:
      operand: the name of the instruction's argument.
      is_write: whether the instruction writes these bytes, or reads them.
      space: "sbuf", "psum" or "hbm".
      storage: number of the allocation; equal for all views of it, unique in the run. Both cores
        of a rank have the same number for a shared HBM tensor.
      name: the tensor's name, or "" if it has none.
      rank, core: the owner of the memory; core is None for HBM that the cores of a rank share.
      address: byte address in a partition of element 0 of the allocation, for tensors placed by
        address; None where the compiler chooses the place (each such allocation is its own
        memory).
      partition_start, partitions: the partitions accessed, for SBUF and PSUM (0 and 1 in HBM).
      byte_start, byte_end: the extent accessed in each partition (in HBM: in the tensor), relative
        to the allocation. A strided access may skip bytes of the extent.
      shape: elements per dimension.
      strides: bytes between elements per dimension, dimension 0 being the partition on chip.
      offset: byte offset of the first element (partition_start * row_bytes + byte_start on chip).
      row_bytes: bytes of the allocation in one partition (in HBM: of the whole tensor).
      dtype: NKI dtype.
      rows: for a gather or scatter, byte offsets of the entries of dimension 0 that it moves; else
        None.
      entries: where a transfer skips entries of dimension 0, those that it moves; None: all.
      digest: for a write to HBM that two cores share, a fingerprint of the values; else None.
    """

    __slots__ = (
        "address",
        "byte_end",
        "byte_start",
        "core",
        "digest",
        "dtype",
        "entries",
        "is_write",
        "itemsize",
        "name",
        "offset",
        "operand",
        "partition_start",
        "partitions",
        "rank",
        "row_bytes",
        "rows",
        "shape",
        "space",
        "storage",
        "strides",
    )

    operand: str
    is_write: bool
    space: str
    storage: int
    name: str
    rank: int
    core: int | None
    address: int | None
    partition_start: int
    partitions: int
    byte_start: int
    byte_end: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    row_bytes: int
    itemsize: int
    dtype: str
    rows: np.ndarray | None
    entries: np.ndarray | None
    digest: bytes | None

    def __init__(self) -> None:
        """Leaves it to the caller to set the attributes but `entries`."""
        self.entries = None

    @property
    def nbytes(self) -> int:
        """Bytes moved through the access: elements times bytes per element."""
        if self.entries is None:
            return self.whole_bytes
        return self.whole_bytes // self.shape[0] * len(self.entries)

    @property
    def whole_bytes(self) -> int:
        """What `nbytes` would be if nothing were skipped."""
        return int(np.prod(self.shape)) * self.itemsize

    @property
    def row_offsets(self) -> np.ndarray | None:
        """In HBM, byte offsets of the entries of dimension 0 that are moved, relative to
        `byte_start`; None where they are all at the places that `strides` tells."""
        if self.rows is None and self.entries is not None and self.space == "hbm":
            return self.entries * self.strides[0]
        return self.rows

    @property
    def memory(self) -> tuple[str, int, int | None, int | None]:
        """Identifies the physical memory: only accesses to the same memory can conflict.

        Tensors placed by address share one memory per core. Each other allocation is a memory of
        its own.
        """
        return (
            self.space,
            self.rank,
            self.core,
            None if self.address is not None else self.storage,
        )

    @property
    def byte_range(self) -> tuple[int, int]:
        """First byte, and one past the last byte, in each partition of `memory`."""
        base = self.address or 0
        return base + self.byte_start, base + self.byte_end

    def __repr__(self) -> str:
        arrow = "->" if self.is_write else "<-"
        return (
            f"{self.operand}{arrow}{self.space}[{self.name or self.storage}]"
            f"{list(self.shape)}{self.dtype}"
        )


@dataclasses.dataclass(slots=True)
class Instruction:
    """One executed instruction.

    Attributes:
      index: position in its core's program order.
      engine: "tensor", "vector", "scalar", "gpsimd", "dma" or "sync".
      opcode: the name of the ``nki.isa`` or ``nki.collectives`` function; or "loop_turn" where a
        turn of a loop on the device begins, and "loop_end" behind the last.
      rank, core: the core that executed it.
      epoch: how many meetings (barriers, exchanges, collectives) the core had passed.
      file, line: the statement of the kernel.
      accesses: the operands in memory.
      attributes: other properties that affect timing, such as the operator or the descriptor
        generation mode of a DMA; "register_writers": the instructions that loaded the registers
        that it reads.
      engine_chosen: whether the kernel chose the engine. If not, `engine` is the one that the
        compiler would most likely choose.
      functions: the kernel's functions in which that statement ran, innermost first, then those
        that called the kernel; of each the name of its file, without folders and ending, and its
        own.
    """

    index: int
    engine: str
    opcode: str
    rank: int
    core: int
    epoch: int
    file: str
    line: int
    accesses: list[Access]
    attributes: dict[str, Any]
    engine_chosen: bool = True
    functions: tuple[tuple[str, str], ...] = ()

    @property
    def reads(self) -> list[Access]:
        """The operands it reads."""
        return [access for access in self.accesses if not access.is_write]

    @property
    def writes(self) -> list[Access]:
        """The operands it writes."""
        return [access for access in self.accesses if access.is_write]

    @property
    def where(self) -> str:
        """File and line of the kernel's statement."""
        return f"{self.file}:{self.line}"

    def __repr__(self) -> str:
        return f"{self.index}:{self.engine}.{self.opcode}({self.accesses})"


@dataclasses.dataclass
class Record:
    """All instructions of a run.

    Attributes:
      target: "trn1", "trn2" or "trn3".
      lnc: cores per rank.
      ranks: number of ranks.
      streams: instructions in program order, by (rank, core).
    """

    target: str
    lnc: int
    ranks: int
    streams: dict[tuple[int, int], list[Instruction]]

    def __len__(self) -> int:
        return sum(len(stream) for stream in self.streams.values())
