"""DMA engines: copies, gathers, scatters, transposes and sums."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.operands import NkiInstruction, Step, digest_of
from jax_tkg.simulator.isa.operators import operator_name
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

_DGE = constants.dge_mode
_OOB = constants.oob_mode
_DMA_SPACES = ("hbm", "sbuf")


class _Transfer:
    """One DMA operand: the elements at its run-time addresses, under the out-of-bounds mode."""

    def __init__(self, step: Step, operand: str, tensor: NkiTensor, oob: constants.oob_mode):
        self.step = step
        self.operand = operand
        self.tensor = tensor
        self.info = dtypes.info(tensor.dtype)
        self.skip = oob is _OOB.skip
        self.rows: np.ndarray | None = None
        # The entries of dimension 0 that are transferred; None: all of them.
        self.valid: np.ndarray | None = None
        self.skipped = False
        indirection = tensor.indirection
        if indirection is None:
            return
        index = step.index_values(operand, indirection.index)
        inside = (index >= 0) & (index < indirection.limit)
        inside &= self._fits(index)
        if not inside.all() and not self.skip:
            bad = int(np.argmax(~inside))
            file, line = caller()
            raise errors.OutOfBoundsError(
                f"{step.opcode}: {operand} {tensor.label}: run-time index {int(index[bad])} (entry "
                f"{bad}) is outside 0..{indirection.limit - 1} ({file}:{line})"
            )
        if not indirection.is_vector:
            if not inside.all():
                self.skipped = True
            return
        if index.size < tensor.shape[0]:
            step.fail(
                f"vector_offset of {operand} has {index.size} indices for {tensor.shape[0]} rows"
            )
        self.rows = index[: tensor.shape[0]]
        if not inside[: tensor.shape[0]].all():
            self.valid = inside[: tensor.shape[0]]

    def _fits(self, index: np.ndarray) -> np.ndarray:
        """Whether the access at each index ends within the allocation."""
        tensor = self.tensor
        assert tensor.indirection is not None
        assert tensor.storage is not None
        place = tensor.layout()
        size = self.info.itemsize
        first = place.start + index * tensor.indirection.stride * size
        extent = place.extent
        if tensor.indirection.is_vector:
            extent -= (tensor.shape[0] - 1) * place.strides[0]
        return (first >= 0) & (first + extent <= tensor.storage.row_bytes)

    def _gathered(self, base: np.dtype, shadow: np.ndarray | None = None) -> np.ndarray:
        """A view of all rows that an index can select: rows 0..limit-1 of the indexed dimension."""
        tensor = self.tensor
        indirection, storage = tensor.indirection, tensor.storage
        assert indirection is not None
        assert storage is not None
        place = tensor.layout()
        step = indirection.stride * self.info.itemsize
        extent = place.extent - (tensor.shape[0] - 1) * place.strides[0]
        count = min(indirection.limit, (storage.row_bytes - place.start - extent) // step + 1)
        shape = (count, *tensor.shape[1:])
        strides = (step, *place.strides[1:])
        if shadow is not None:
            return storage.shadow_view(shadow, base, shape, 0, place.start, strides)
        return storage.view(base, shape, 0, place.start, strides)

    def read(self, moved: np.ndarray | None = None) -> np.ndarray:
        """Returns the elements in their storage dtype.

        Args:
          moved: the entries of dimension 0 that are transferred, of all operands; None: those that
            this one does not skip. Of a gather the others are zeros.
        """
        moved = self.valid if moved is None else moved
        if self.rows is None:
            values = self.step.read(self.operand, self.tensor)
            self._note_entries(moved)
            return values
        storage = self.tensor.storage
        assert storage is not None
        rows = self.rows if moved is None else self.rows[moved]
        if storage.shadow is not None and rows.size:
            written = self._gathered(self.info.bits, storage.shadow)[rows]
            full = np.iinfo(self.info.bits).max
            if written.min() != full:
                self.step.report_unwritten(self.operand, self.tensor, written != full)
        values = np.zeros(self.tensor.shape, self.info.storage)
        found = self._gathered(self.info.storage)[rows]
        if moved is None:
            values = found
        else:
            values[moved] = found
        self._note(rows, False)
        self._note_entries(moved)
        return values

    def write_exact(self, values: np.ndarray, moved: np.ndarray | None) -> None:
        """Stores elements of the tensor's storage dtype.

        Args:
          values: the elements.
          moved: the entries of dimension 0 that are stored; None: all of them.
        """
        tensor = self.tensor
        values = values if values.shape == tensor.shape else values.reshape(tensor.shape)
        if self.rows is None:
            if moved is None:
                self.step.write_exact(self.operand, tensor, values)
            else:
                self._write_entries(values, moved)
            return
        storage = tensor.storage
        assert storage is not None
        keep = np.ones(len(self.rows), bool) if moved is None else moved
        rows = self.rows[keep]
        storage.prepare_write()
        target = self._gathered(values.dtype)
        target[rows] = values[keep]
        if storage.shadow is not None:
            full = np.iinfo(self.info.bits).max
            self._gathered(self.info.bits, storage.shadow)[rows] = full
        self._note(rows, True, values[keep])
        self._note_entries(moved)

    def _write_entries(self, values: np.ndarray, moved: np.ndarray) -> None:
        """Stores some entries of dimension 0 at their own places, which counts as one access."""
        step, tensor = self.step, self.tensor
        noted = 0 if step.instruction is None else len(step.instruction.accesses)
        for row in np.flatnonzero(moved):
            part = slice(int(row), int(row) + 1)
            step.write_exact(self.operand, tensor[part], values[part])
        if step.instruction is None or not moved.any():
            return
        del step.instruction.accesses[noted:]
        step.note_access(self.operand, tensor, True)
        assert tensor.storage is not None
        digest = digest_of(step.core, tensor.storage, values[moved])
        step.instruction.accesses[-1].digest = digest
        self._note_entries(moved)

    def _note_entries(self, moved: np.ndarray | None) -> None:
        """Limits the access that was noted last to some entries of dimension 0."""
        if moved is not None and self.step.instruction is not None:
            self.step.instruction.accesses[-1].entries = np.flatnonzero(moved)

    def _note(self, rows: np.ndarray, is_write: bool, written: np.ndarray | None = None) -> None:
        tensor = self.tensor
        assert tensor.indirection is not None
        assert tensor.storage is not None
        offsets = rows * (tensor.indirection.stride * self.info.itemsize)
        self.step.note(
            self.operand,
            tensor,
            tensor.storage,
            tensor.layout(),
            self.info,
            is_write,
            offsets,
            None if written is None else digest_of(self.step.core, tensor.storage, written),
        )


def _moved(transfers: Sequence[_Transfer]) -> list[np.ndarray | None]:
    """Of each operand the entries of dimension 0 of which no operand skips all; None: all of them.

    Operands have equal numbers of elements, in the same order.
    """
    if all(transfer.valid is None for transfer in transfers):
        return [None] * len(transfers)
    elements = np.ones(transfers[0].tensor.size, bool)
    for transfer in transfers:
        if transfer.valid is not None:
            elements &= np.repeat(transfer.valid, elements.size // transfer.valid.size)
    return [np.asarray(elements.reshape(t.tensor.shape[0], -1).any(axis=1)) for t in transfers]


def _dma_step(
    opcode: str, dst: NkiTensor, sources: Sequence[NkiTensor], dge: Any, engine: Any, priority: Any
) -> tuple[Step, constants.dge_mode]:
    mode = constants.member(_DGE, dge, "dge_mode")
    step = Step(opcode, "dma", attributes={"dge_mode": mode.name})
    for operand, tensor in (("dst", dst), *(("src", s) for s in sources)):
        if not isinstance(tensor, NkiTensor):
            step.fail(f"{operand} must be a tensor, got {described(tensor)}")
        if tensor.buffer.value == "psum":
            step.fail(f"{operand} {tensor.label} is in PSUM, which DMA cannot access")
    trigger = constants.member(constants.engine, engine, "engine")
    if trigger is not constants.engine.unknown:
        if mode is not _DGE.hwdge:
            step.fail(f"engine={trigger.name} needs dge_mode.hwdge, got {mode.name}")
        if trigger not in (constants.engine.sync, constants.engine.scalar):
            step.fail(f"engine must be sync or scalar, got {trigger.name}")
        if step.instruction is not None:
            step.instruction.attributes["trigger"] = trigger.name
    if mode is _DGE.hwdge:
        require_generation(step.core, 3, f"{opcode}: dge_mode.hwdge")
    if priority is not None:
        require_generation(step.core, 4, f"{opcode}: priority")
        if not 0 <= int(priority) <= 3:
            step.fail(f"priority must be in 0..3, got {priority}")
    indirect = [t for t in (dst, *sources) if t.indirection and t.indirection.is_vector]
    if indirect and mode not in (_DGE.unknown, _DGE.swdge):
        step.fail(f"a vector_offset needs dge_mode swdge or unknown, got {mode.name}")
    dynamic = any(t.indirection for t in (dst, *sources))
    if dynamic and mode is _DGE.none:
        step.fail("a run-time address needs a descriptor generation mode, got dge_mode.none")
    if step.instruction is not None and indirect:
        step.instruction.attributes["indirect"] = True
    if step.core.loops.scope:
        _check_in_loop(step, mode, dst, sources)
    return step, mode


def _check_in_loop(
    step: Step, mode: constants.dge_mode, dst: NkiTensor, sources: Sequence[NkiTensor]
) -> None:
    """In a device loop descriptors cannot be made before the kernel runs. The compiler may choose
    to make them so where the address is static and the mode is left to it."""
    if mode is _DGE.none:
        step.fail(
            "dge_mode.none is not possible inside a device loop, whose DMAs need their descriptors "
            "in each turn; the compiler fails with NCC_ISQI001"
        )
    for operand, tensor in (("dst", dst), *(("src", s) for s in sources)):
        storage = tensor.storage
        if mode is not _DGE.unknown or storage is None or not storage.is_input:
            continue
        if tensor.indirection is None:
            file, line = caller()
            step.core.machine.report(
                "device_loop",
                f"{step.opcode}: {operand} is the kernel's argument {storage.name!r} at a static "
                "address inside a device loop: the compiler was reported to fail on this with "
                "NCC_ISQI001; name dge_mode.hwdge or swdge, or copy before the loop "
                f"({file}:{line})",
            )


def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: Any = _OOB.error,
    dge_mode: Any = _DGE.unknown,
    engine: Any = constants.engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = src`` between HBM and SBUF, with gather and scatter."""
    step, mode = _dma_step("dma_copy", dst, [src], dge_mode, engine, priority)
    oob = constants.member(_OOB, oob_mode, "oob_mode")
    if src.size != dst.size:
        step.fail(
            f"dst must have as many elements as src ({src.size}, {list(src.shape)}), got "
            f"{dst.size}, {list(dst.shape)}"
        )
    if mode is _DGE.hwdge and src.dtype != dst.dtype:
        step.fail(f"hwdge needs equal dtypes, got src {src.dtype} and dst {dst.dtype}")
    source, target = _Transfer(step, "src", src, oob), _Transfer(step, "dst", dst, oob)
    if source.skipped or target.skipped:
        return step.done()
    if source.valid is not None and src.shape[0] != dst.shape[0]:
        step.fail("oob_mode.skip needs dst rows to match the gathered rows of src")
    read, written = _moved([source, target])
    target.write_exact(_convert(source.read(read), src, dst), written)
    return step.done()


def _convert(values: np.ndarray, src: NkiTensor, dst: NkiTensor) -> np.ndarray:
    """Converts from src's dtype through float32 to dst's; exact if the dtypes are equal."""
    if src.dtype == dst.dtype:
        # A copy of bit patterns keeps NaN payloads, and is faster.
        return values.view(dtypes.info(src.dtype).bits)
    return dtypes.round_to(dtypes.to_float32(values), dtypes.info(dst.dtype))


_TRANSPOSE_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: Sequence[int] | None = None,
    priority: int | None = None,
    dge_mode: Any = _DGE.unknown,
    oob_mode: Any = _OOB.error,
    name: str | None = None,
) -> NkiInstruction:
    """Transposes during the transfer: 2D [1, 0], 3D [2, 1, 0], 4D [3, 1, 2, 0]."""
    step, mode = _dma_step(
        "dma_transpose", dst, [src], dge_mode, constants.engine.unknown, priority
    )
    step.check_spaces(("sbuf",), dst=dst)
    if dst.dtype != src.dtype:
        step.fail(f"dst must have the dtype of src, {src.dtype}, got {dst.dtype}")
    order = _TRANSPOSE_AXES.get(src.ndim)
    if order is None or (axes is not None and tuple(axes) != order):
        step.fail(
            f"axes of a {src.ndim}-d src must be "
            f"{order if order else 'one of ' + str(list(_TRANSPOSE_AXES.values()))}, got {axes}"
        )
    indirect = src.indirection is not None and src.indirection.is_vector
    out_of_bounds = constants.member(_OOB, oob_mode, "oob_mode")
    if out_of_bounds is _OOB.skip and src.indirection is None:
        step.fail("oob_mode.skip needs a src with a run-time address")
    if indirect:
        _check_indirect_transpose(step, src)
    elif mode not in (_DGE.unknown, _DGE.hwdge):
        step.fail(
            f"a transpose without vector_offset needs dge_mode unknown or hwdge, got {mode.name}"
        )
    elif mode is _DGE.hwdge:
        _check_hardware_transpose(step, src)
    if dtypes.info(src.dtype).itemsize not in (2, 4):
        step.fail(f"src must have 2 or 4 bytes per element, got {src.dtype}")
    expected = tuple(src.shape[a] for a in order)
    if dst.size != src.size or dst.shape[0] != expected[0]:
        step.fail(f"dst must have shape {expected}, got {list(dst.shape)}")
    source = _Transfer(step, "src", src, out_of_bounds)
    if source.skipped:
        return step.done()
    values = source.read().view(dtypes.info(src.dtype).bits).transpose(order)
    if source.valid is None:
        step.write_exact("dst", dst, np.ascontiguousarray(values))
        return step.done()
    # Where a row of src is skipped, a column of dst keeps its elements, also if never written.
    kept, written = step.read_moved("dst", dst)
    moved = np.broadcast_to(source.valid, expected)
    step.write_moved(
        "dst",
        dst,
        np.where(moved, values, kept.reshape(expected)),
        None if written is None else written | moved.reshape(written.shape),
    )
    return step.done()


def _check_hardware_transpose(step: Step, src: NkiTensor) -> None:
    if dtypes.info(src.dtype).itemsize != 2:
        step.fail(f"hwdge transposes 2-byte types, got {src.dtype}")
    if src.shape[-1] > 128:
        step.fail(f"hwdge needs src.shape[-1] <= 128, got {src.shape[-1]}")
    if src.ndim == 2 and src.shape[0] != 16:
        step.fail(f"hwdge needs src.shape[0] == 16 for 2-d tiles, got {src.shape[0]}")
    if src.ndim > 2 and (
        src.shape[0] not in (1, 2, 4, 8, 16) or (src.shape[0] * src.shape[-2]) % 16
    ):
        step.fail(
            "hwdge needs src.shape[0] in {1, 2, 4, 8, 16} and src.shape[0] * src.shape[-2] a "
            f"multiple of 16, got {list(src.shape)}"
        )


def _check_indirect_transpose(step: Step, src: NkiTensor) -> None:
    require_generation(step.core, 3, "dma_transpose with a vector_offset")
    assert src.indirection is not None
    index = src.indirection.index
    if src.ndim == 4 and 1 not in src.shape[1:3]:
        step.fail(f"src.shape[1] or src.shape[2] must be 1, got {list(src.shape)}")
    if src.shape[-1] > 128:
        step.fail(f"src.shape[-1] must be at most 128, got {src.shape[-1]}")
    if dtypes.info(src.dtype).itemsize != 2:
        step.fail(f"src must have 2 bytes per element, got {src.dtype}")
    step.check_spaces(("hbm",), src=src)
    if index.ndim != 2 or index.dtype != "uint32":
        step.fail(f"indices must be a 2-d uint32 tensor, got {described(index)}")
    if src.shape[0] % 16 or index.size < src.shape[0]:
        step.fail(
            f"src.shape[0] must be a multiple of 16 and at most the {index.size} indices, got "
            f"{src.shape[0]}"
        )
    rows = index.shape[0]
    if rows % 16 or not 16 <= rows <= 128 or (index.shape[1] > 1 and rows != 128):
        step.fail(
            "indices.shape[0] must be a multiple of 16 in 16..128, and 128 if there are several "
            f"columns, got {list(index.shape)}"
        )


_MAX_SOURCES = 16


def dma_compute(
    dst: NkiTensor,
    srcs: Sequence[NkiTensor],
    reduce_op: Any,
    scales: Sequence[float] | None = None,
    unique_indices: bool = True,
    oob_mode: Any = _OOB.error,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = srcs[0] + srcs[1] + ...`` in float32, with gather and scatter."""
    step, _ = _dma_step("dma_compute", dst, srcs, None, constants.engine.unknown, None)
    if operator_name(reduce_op) != "add":
        step.fail(f"reduce_op must be nl.add, got {operator_name(reduce_op)}")
    if not 1 <= len(srcs) <= _MAX_SOURCES:
        step.fail(f"srcs must have 1..{_MAX_SOURCES} tensors, got {len(srcs)}")
    if scales is not None and any(scale != 1.0 for scale in scales):
        step.fail(f"scales must all be 1.0, got {list(scales)}")
    for i, src in enumerate(srcs):
        if src.size != dst.size:
            step.fail(f"srcs[{i}] must have {dst.size} elements as dst, got {src.size}")
    for operand, tensor in (("dst", dst), *((f"srcs[{i}]", src) for i, src in enumerate(srcs))):
        if tensor.indirection is not None and not tensor.indirection.is_vector:
            step.fail(
                f"{operand} must have an address known at compile time or a vector_offset, got "
                f"{tensor.label} at a run-time address"
            )
    oob = constants.member(_OOB, oob_mode, "oob_mode")
    transfers = [_Transfer(step, f"srcs[{i}]", src, oob) for i, src in enumerate(srcs)]
    target = _Transfer(step, "dst", dst, oob)
    gathered = [t for t in (target, *transfers) if t.rows is not None]
    if gathered:
        if len(srcs) != 2:
            step.fail(f"a vector_offset needs exactly 2 srcs, got {len(srcs)}")
        if not unique_indices:
            step.fail("unique_indices must be True with a vector_offset")
        rows = gathered[0].rows
        assert rows is not None
        if target.rows is not None and np.unique(target.rows).size != target.rows.size:
            step.fail("unique_indices=True, but an index of dst occurs twice")
        _check_read_modify_write(step, target, transfers)
    total = np.zeros(dst.shape, np.float32)
    if any(t.valid is not None and t.tensor.shape[0] != dst.shape[0] for t in transfers):
        step.fail("oob_mode.skip needs dst rows to match the gathered rows of srcs")
    *read, written = _moved([*transfers, target])
    for transfer, moved in zip(transfers, read, strict=True):
        total = total + dtypes.to_float32(transfer.read(moved)).reshape(dst.shape)
    target.write_exact(dtypes.round_to(total, target.info), written)
    return step.done()


def _check_read_modify_write(step: Step, target: _Transfer, sources: Sequence[_Transfer]) -> None:
    """Checks the two forms that a sum with a vector_offset has.

    A scatter adds data in SBUF to the indexed rows of `dst` in HBM; a gather adds indexed rows of
    HBM to `dst` in SBUF. Either way one of the sources is `dst` itself.
    """
    kept = [number for number, source in enumerate(sources) if _is_same_place(source, target)]
    if not kept:
        step.fail(
            f"with a vector_offset one of srcs must be dst {target.tensor.label} itself, with its "
            "indices if it has any"
        )
    if target.rows is None:
        step.check_spaces(("sbuf",), dst=target.tensor)
    else:
        number = 1 - kept[0]
        step.check_spaces(("sbuf",), **{f"srcs[{number}]": sources[number].tensor})


def _is_same_place(one: _Transfer, other: _Transfer) -> bool:
    """Whether two operands are the same elements of the same allocation."""
    if one.tensor.storage is not other.tensor.storage or one.info is not other.info:
        return False
    if one.tensor.shape != other.tensor.shape or one.tensor.layout() != other.tensor.layout():
        return False
    if one.rows is None or other.rows is None:
        return one.rows is other.rows
    return np.array_equal(one.rows, other.rows)
