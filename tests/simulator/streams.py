"""Instruction streams built by hand, for the tests of the timeline."""

from typing import Any

import numpy as np

from jax_tkg.simulator.machine.record import Access, Instruction, Record

_SIZES = {"float32": 4, "bfloat16": 2, "uint8": 1}


def access(
    operand: str,
    space: str,
    storage: int,
    shape: tuple[int, ...],
    start: int = 0,
    strides: tuple[int, ...] | None = None,
    dtype: str = "float32",
    partition: int = 0,
    write: bool | None = None,
    rows: list[int] | None = None,
    entries: list[int] | None = None,
    row_bytes: int | None = None,
    core: int | None = 0,
    address: int | None = None,
    name: str = "",
) -> Access:
    """An access of `shape` at byte `start` of each partition (in HBM: of the tensor); contiguous
    unless `strides` (in bytes, of all dimensions) says otherwise."""
    size = _SIZES[dtype]
    on_chip = space != "hbm"
    if strides is None:
        lengths = [size]
        for count in shape[:0:-1]:
            lengths.insert(0, lengths[0] * count)
        strides = tuple(lengths)
    free = list(zip(shape, strides, strict=True))[1 if on_chip else 0 :]
    made = Access()
    made.operand = operand
    made.is_write = operand == "dst" if write is None else write
    made.space, made.storage, made.name = space, storage, name
    made.rank, made.core, made.address = 0, core, address
    made.partition_start = partition if on_chip else 0
    made.partitions = shape[0] if on_chip else 1
    made.byte_start = start
    made.byte_end = start + sum((n - 1) * s for n, s in free) + size
    made.shape, made.strides, made.offset = shape, strides, start
    made.row_bytes = row_bytes or made.byte_end
    made.itemsize, made.dtype = size, dtype
    made.rows = None if rows is None else np.array(rows)
    made.entries = None if entries is None else np.array(entries)
    made.digest = None
    return made


class Stream:
    """A core's program."""

    def __init__(self, core: int = 0):
        self.core = core
        self.instructions: list[Instruction] = []

    def add(self, engine: str, opcode: str, *accesses: Access, **attributes: Any) -> Instruction:
        """Appends an instruction at line index + 1 of kernel.py."""
        index = len(self.instructions)
        made = Instruction(
            index,
            engine,
            opcode,
            0,
            self.core,
            0,
            "kernel.py",
            index + 1,
            list(accesses),
            attributes,
        )
        self.instructions.append(made)
        return made

    def load(self, storage: int, row: int, partitions: int = 128, **attributes: Any) -> Instruction:
        """A DMA of `row` bytes per partition from HBM tensor 1 to SBUF `storage`."""
        shape = (partitions, row)
        source = access("src", "hbm", 1, shape, dtype="uint8", core=None, name="W", write=False)
        return self.add(
            "dma",
            "dma_copy",
            source,
            access("dst", "sbuf", storage, shape, dtype="uint8"),
            **attributes,
        )

    def vector(self, dst: int, src: int, elements: int = 480) -> Instruction:
        """A float32 tensor_copy on the Vector Engine: 500 ns for 480 elements."""
        shape = (128, elements)
        return self.add(
            "vector",
            "tensor_copy",
            access("src", "sbuf", src, shape),
            access("dst", "sbuf", dst, shape),
        )

    def scalar(self, dst: int, src: int, elements: int = 600) -> Instruction:
        """A float32 tensor_copy on the Scalar Engine: 500 ns for 600 elements."""
        made = self.vector(dst, src, elements)
        made.engine = "scalar"
        return made


def record(*streams: Stream, target: str = "trn2") -> Record:
    """The record of one rank's cores."""
    found = {(0, stream.core): stream.instructions for stream in streams}
    return Record(target, len(streams), 1, found)
