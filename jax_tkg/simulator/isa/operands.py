"""Reads and writes the operands of an instruction, and records what it accesses."""

import hashlib
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller, running_functions
from jax_tkg.simulator.isa.operand_checks import OperandChecks
from jax_tkg.simulator.machine.accumulators import Accumulators
from jax_tkg.simulator.machine.device_loops import Scope, loop_of
from jax_tkg.simulator.machine.machine import Core, current_core
from jax_tkg.simulator.machine.record import Access, Instruction
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.addressing import VirtualRegister
from jax_tkg.simulator.memory.layout import Layout, are_distinct
from jax_tkg.simulator.memory.storage import Storage
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

_ALL_WRITTEN = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}


class NkiInstruction:
    """Handle to an executed instruction.

    Dependencies that a kernel adds do not change the result: the simulator executes the
    instructions of a core in program order.
    """

    def __init__(self, handle: Any, scope: Scope = ()):
        self.handle = handle
        self._scope = scope

    def depends_on(self, *producers: "NkiInstruction") -> "NkiInstruction":
        """Adds scheduling dependencies to the record.

        Raises:
          NkiValidationError: a producer is in a device loop, or a turn of one, that does not
            enclose this instruction.
        """
        for producer in producers:
            if self._scope[: len(producer._scope)] != producer._scope:
                file, line = caller()
                raise errors.NkiValidationError(
                    "depends_on: the producer ran in a turn of a device loop that does not enclose "
                    f"this instruction, which cannot wait for it ({file}:{line})"
                )
        if self.handle is not None:
            indices = [p.handle.index for p in producers if p.handle is not None]
            self.handle.attributes.setdefault("depends_on", []).extend(indices)
        return self


class Step(OperandChecks):
    """One instruction during its execution."""

    __slots__ = ("instruction",)

    def __init__(
        self,
        opcode: str,
        engine: str,
        chosen: bool = True,
        attributes: dict[str, Any] | None = None,
    ):
        core = current_core()
        super().__init__(opcode, core)
        index = core.instruction_count
        core.instruction_count = index + 1
        self.instruction: Instruction | None = None
        if core.machine.keeps_record:
            file, line = caller()
            self.instruction = Instruction(
                index,
                engine,
                opcode,
                core.rank,
                core.index,
                core.epoch,
                file,
                line,
                [],
                attributes or {},
                chosen,
                running_functions(),
            )
            core.instructions.append(self.instruction)

    def done(self) -> NkiInstruction:
        """Returns the handle of the instruction."""
        return NkiInstruction(self.instruction, self.core.loops.scope)

    def set_engine(self, engine: str, chosen: bool) -> None:
        """Records the engine of an instruction that determines it late."""
        if self.instruction is not None:
            self.instruction.engine = engine
            self.instruction.engine_chosen = chosen

    def read(self, operand: str, tensor: NkiTensor) -> np.ndarray:
        """Returns a view of the elements in their storage dtype, in the tensor's shape."""
        storage, place = self._resolve(operand, tensor)
        info = dtypes.info(tensor.dtype)
        if storage.shadow is not None:
            written = storage.shadow_view(
                storage.shadow, info.bits, tensor.shape, place.partition, place.start, place.strides
            )
            if written.min() != _ALL_WRITTEN[info.itemsize]:
                self.report_unwritten(operand, tensor, written != _ALL_WRITTEN[info.itemsize])
        self.note(operand, tensor, storage, place, info, False)
        return storage.view(info.storage, tensor.shape, place.partition, place.start, place.strides)

    def read_moved(self, operand: str, tensor: NkiTensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the elements as bit patterns, and which of them are written (None: all).

        For instructions that only move bytes: they may move bytes that were never written; only
        the use of these bytes is an error.
        """
        storage, place = self._resolve(operand, tensor)
        info = dtypes.info(tensor.dtype)
        where = (info.bits, tensor.shape, place.partition, place.start, place.strides)
        written = None
        if storage.shadow is not None:
            written = storage.shadow_view(storage.shadow, *where) == _ALL_WRITTEN[info.itemsize]
            written = None if written.all() else written
        self.note(operand, tensor, storage, place, info, False)
        return storage.view(*where), written

    def write_moved(
        self, operand: str, tensor: NkiTensor, values: np.ndarray, written: np.ndarray | None
    ) -> None:
        """Stores the result of `read_moved`. Elements that were never written stay so."""
        self.write_exact(operand, tensor, values)
        storage = tensor.storage
        if written is None or storage is None or not storage.track:
            return
        place = tensor.layout()
        info = dtypes.info(tensor.dtype)
        shadow = storage.shadow_view(
            storage.shadow_or_full(),
            info.bits,
            tensor.shape,
            place.partition,
            place.start,
            place.strides,
        )
        shadow[~written] = 0

    def read_float(self, operand: str, tensor: NkiTensor) -> np.ndarray:
        """Returns the elements as float32, [partitions, elements per partition]."""
        values = dtypes.to_float32(self.read(operand, tensor))
        return values.reshape(tensor.shape[0], -1)

    def read_rows(self, operand: str, tensor: NkiTensor) -> np.ndarray:
        """Returns the elements in their storage dtype, [partitions, elements per partition]."""
        return self.read(operand, tensor).reshape(tensor.shape[0], -1)

    def write(
        self, operand: str, tensor: NkiTensor, values: np.ndarray, matmul: bool = False
    ) -> None:
        """Rounds computed values to the tensor's dtype and stores them.

        The shape of `values` may differ from the tensor's if the number of elements is equal.
        """
        info = dtypes.info(tensor.dtype)
        rounded = dtypes.round_to(values, info)
        if info.name in dtypes.FLOAT8:
            self._report_overflow(operand, tensor, values, rounded)
        self.write_exact(operand, tensor, rounded, matmul)

    def _report_overflow(
        self, operand: str, tensor: NkiTensor, values: np.ndarray, rounded: np.ndarray
    ) -> None:
        """Adds a finding if finite values exceed the largest value of a float8 format."""
        lost = np.isfinite(values) & ~np.isfinite(rounded)
        if not lost.any():
            return
        file, line = caller()
        self.core.machine.report(
            "overflow",
            f"{self.opcode}: {int(lost.sum())} values written to {operand} {tensor.label} are "
            f"past the largest {tensor.dtype}, such as {float(values[lost][0]):g} ({file}:{line})",
        )

    def write_exact(
        self, operand: str, tensor: NkiTensor, values: np.ndarray, matmul: bool = False
    ) -> None:
        """Stores values of the tensor's storage dtype, or of the unsigned dtype of that size."""
        storage, place = self._resolve(operand, tensor)
        info = dtypes.info(tensor.dtype)
        storage.prepare_write()
        target = storage.view(
            values.dtype if values.dtype == info.bits else info.storage,
            tensor.shape,
            place.partition,
            place.start,
            place.strides,
        )
        values = values if values.shape == tensor.shape else values.reshape(tensor.shape)
        if 0 in place.strides:
            # Of elements with the same address, the last one stays.
            last = tuple(
                slice(-1, None) if stride == 0 else slice(None) for stride in place.strides
            )
            target, values = target[last], values[last]
        target[...] = values
        self._mark_written(storage, place, tensor, info, matmul)
        self.note(
            operand,
            tensor,
            storage,
            place,
            info,
            True,
            digest=digest_of(self.core, storage, target),
        )

    def _mark_written(
        self,
        storage: Storage,
        place: Layout,
        tensor: NkiTensor,
        info: dtypes.DTypeInfo,
        matmul: bool,
    ) -> None:
        where = (tensor.shape, place.partition, place.start, place.strides)
        if storage.matmul_shadow is not None:
            storage.shadow_view(storage.matmul_shadow, info.bits, *where)[...] = (
                _ALL_WRITTEN[info.itemsize] if matmul else 0
            )
        overlaps = storage.live_overlaps()
        if storage.shadow is not None:
            # As many distinct elements as the allocation holds are all of them.
            first = 1 if storage.space != "hbm" else 0
            whole = tensor.size * info.itemsize == storage.nbytes and are_distinct(
                tensor.shape[first:], place.strides[first:], info.itemsize
            )
            if whole and not overlaps:
                storage.shadow = None
            else:
                storage.shadow_view(storage.shadow, info.bits, *where)[...] = _ALL_WRITTEN[
                    info.itemsize
                ]
        if overlaps:
            written = storage.blank_shadow()
            storage.shadow_view(written, info.bits, *where)[...] = _ALL_WRITTEN[info.itemsize]
            storage.overwrite_overlaps(written.reshape(storage.partitions, storage.row_bytes))

    def _resolve(self, operand: str, tensor: NkiTensor) -> tuple[Storage, Layout]:
        """Returns the place of the elements, including the run-time offset."""
        if not isinstance(tensor, NkiTensor):
            self.fail(f"{operand} must be a tensor, got {described(tensor)}")
        storage = tensor.storage
        assert storage is not None
        place = tensor.layout()
        indirection = tensor.indirection
        if indirection is None:
            return storage, place
        if indirection.is_vector:
            self.fail(f"{operand} {tensor.label}: only DMA instructions take a vector_offset")
        index = self.index_values(operand, indirection.index)
        size = dtypes.info(tensor.dtype).itemsize
        start = place.start + int(index[0]) * indirection.stride * size
        row = storage.row_bytes
        if not (0 <= index[0] < indirection.limit) or start + place.extent > row or start < 0:
            file, line = caller()
            raise errors.OutOfBoundsError(
                f"{self.opcode}: {operand} {tensor.label}: run-time index {int(index[0])} must be "
                f"in 0..{indirection.limit - 1}, and the access end within {row} bytes, "
                f"got {start + place.extent} ({file}:{line})"
            )
        return storage, Layout(place.partition, start, place.strides, place.extent)

    def index_values(self, operand: str, index: Any) -> np.ndarray:
        """Returns the run-time indices of an access, as int64."""
        if isinstance(index, VirtualRegister):
            return np.array([self.read_register(index)], np.int64)
        if isinstance(index, NkiTensor):
            info = dtypes.info(index.dtype)
            if info.kind not in ("int", "uint"):
                self.fail(
                    f"the index of {operand} must be an integer tensor, got {described(index)}"
                )
            if index.buffer.value != "sbuf":
                self.fail(f"the index of {operand} must be in SBUF, got {described(index)}")
            return self.read(f"{operand} index", index).astype(np.int64).T.reshape(-1)
        return np.array([int(index)], np.int64)

    def read_register(self, register: VirtualRegister) -> int:
        """Returns a register's value, and records the instruction that wrote it."""
        writer = self.core.register_writers.writer(register)
        if writer is not None and self.instruction is not None:
            writers = self.instruction.attributes.setdefault("register_writers", [])
            if writer not in writers:
                writers.append(writer)
        return register.read()

    def write_register(self, register: VirtualRegister, value: int) -> None:
        """Writes a register, as a result of this instruction."""
        register.value = value
        self.core.register_writers.set_writer(register, self.core.instruction_count - 1)

    def report_unwritten(self, operand: str, tensor: NkiTensor, missing: np.ndarray) -> None:
        """Reports the elements of an operand that were never written.

        Raises:
          UninitializedReadError: the option `uninitialized` is "error".
        """
        storage = tensor.storage
        assert storage is not None
        count = int(missing.sum())
        first = tuple(int(i) for i in np.argwhere(missing)[0])
        lost = [o for o in storage.live_overlaps() if o.written]
        because = "".join(f"; overlapped by the {o.describe()}" for o in lost[:2])
        file, line = caller()
        message = (
            f"{self.opcode}: {operand} {tensor.label} of the {storage.describe()} reads {count} of "
            f"{tensor.size} elements that were never written"
            f"{' or were overwritten' if lost else ''}, the first at index {first}"
            f"{because} ({file}:{line})"
        )
        self._report_uninitialized(message)

    def check_accumulators(self, registers: Accumulators, lanes: slice, engine: str) -> None:
        """Checks that the reduction registers that the instruction reads were set.

        Raises:
          UninitializedReadError: they were not, and the option `uninitialized` is "error".
        """
        missing = ~registers.is_set[lanes]
        if not missing.any() or self.core.machine.options.uninitialized == "ignore":
            return
        file, line = caller()
        self._report_uninitialized(
            f"{self.opcode}: reads {int(missing.sum())} of {missing.size} reduction registers of "
            f"the {engine} Engine that were never set or were left undefined by reduce_cmd idle, "
            f"the first in partition {lanes.start + int(np.argmax(missing))}: begin with "
            f"reduce_cmd reset_reduce ({file}:{line})"
        )

    def _report_uninitialized(self, message: str) -> None:
        if self.core.machine.options.uninitialized == "error":
            raise errors.UninitializedReadError(message)
        self.core.machine.report("uninitialized", message)

    def note_access(self, operand: str, tensor: NkiTensor, is_write: bool) -> None:
        """Records an access that was not made by a method of this class."""
        storage, place = self._resolve(operand, tensor)
        self.note(operand, tensor, storage, place, dtypes.info(tensor.dtype), is_write)

    def note(
        self,
        operand: str,
        tensor: NkiTensor,
        storage: Storage,
        place: Layout,
        info: dtypes.DTypeInfo,
        is_write: bool,
        rows: np.ndarray | None = None,
        digest: bytes | None = None,
    ) -> None:
        """Records an access, and extends the lifetime of the allocation."""
        if self.core.loops.scope or storage.scope:
            self._check_scope(operand, tensor, storage, is_write)
        index = self.core.instruction_count - 1
        lifetime = storage.lifetime
        if lifetime is not None:
            if lifetime.first_use is None:
                lifetime.first_use = index
            lifetime.last_use = index
        if self.instruction is None:
            return
        access = Access()
        access.operand = operand
        access.is_write = is_write
        access.space = storage.space
        access.storage = storage.number
        access.name = storage.name
        access.rank = storage.rank
        access.core = storage.core
        access.address = storage.address
        on_chip = storage.space != "hbm"
        access.partition_start = storage.partition_start + place.partition
        access.partitions = tensor.shape[0] if on_chip else 1
        access.byte_start = place.start
        access.byte_end = place.start + place.extent
        access.shape = tensor.shape
        access.strides = (storage.row_bytes, *place.strides[1:]) if on_chip else place.strides
        access.offset = place.partition * storage.row_bytes + place.start
        access.row_bytes = storage.row_bytes
        access.itemsize = info.itemsize
        access.dtype = info.name
        access.rows = rows
        access.digest = digest
        self.instruction.accesses.append(access)

    def _check_scope(
        self, operand: str, tensor: NkiTensor, storage: Storage, is_write: bool
    ) -> None:
        """What is allocated in the body of a device loop exists in that turn only, and PSUM that a
        device loop writes must be allocated in its body."""
        scope = self.core.loops.scope
        around = storage.scope
        if scope[: len(around)] != around:
            self.fail(
                f"{operand} {tensor.label}: the {storage.describe()} was allocated in the body of "
                "a device loop, and cannot be used outside of that turn of the loop"
            )
        if storage.space != "psum" or scope == around:
            return
        outside = (
            f"{operand} {tensor.label}: the {storage.describe()} was not allocated in the body of "
            "the device loop that"
        )
        if is_write:
            self.fail(f"{outside} writes it; the compiler fails with NCC_IBIR092")
        loop = loop_of(scope)
        if storage.reading_loop not in (None, loop):
            self.fail(
                f"{outside} reads it, and another loop reads it too; the compiler fails with "
                "NCC_IBIR092"
            )
        storage.reading_loop = loop

    def scalar(
        self, operand: str, value: Any, data: NkiTensor, float_only: bool = True
    ) -> np.ndarray | np.float32:
        """Returns a scalar operand: a number, or a column of one float32 per partition."""
        if not isinstance(value, NkiTensor):
            if isinstance(value, VirtualRegister):
                return np.float32(self.read_register(value))
            if isinstance(value, (bool, int, float, np.integer, np.floating)):
                return np.float32(value)
            self.fail(
                f"{operand} must be a number or a (partitions, 1) tensor, got {described(value)}"
            )
        self.check_compute(**{operand: value})
        if value.shape[0] != data.shape[0] or value.size != value.shape[0]:
            self.fail(f"{operand} must have shape ({data.shape[0]}, 1), got {list(value.shape)}")
        if float_only and value.dtype != "float32":
            self.fail(f"{operand} must be float32, got {value.dtype}")
        return self.read_float(operand, value)


def digest_of(core: Core, storage: Storage, values: np.ndarray) -> bytes | None:
    """Returns a fingerprint of values written to HBM that two cores share; else None."""
    if core.machine.lnc == 1 or storage.space != "hbm" or storage.core is not None:
        return None
    return hashlib.blake2b(values.tobytes(), digest_size=16).digest()
