"""Barriers and exchanges between the two cores of a logical core, and registers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.machine.machine import current_core, require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.addressing import VirtualRegister
from jax_tkg.simulator.memory.storage import MemoryRegion
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

# Largest number of bytes per partition that the DMA of the GpSimd Engine moves, by element size.
_GPSIMD_DMA_BYTES = {4: 1024, 2: 512, 1: 256}


def _place() -> str:
    file, line = caller()
    return f"{file}:{line}"


def core_barrier(
    data: NkiTensor,
    cores: Sequence[int],
    engine: Any = constants.engine.gpsimd,
    name: str | None = None,
) -> NkiInstruction:
    """Makes the two cores wait for each other. Earlier writes to `data` are visible afterwards."""
    step = Step("core_barrier", "gpsimd")
    core = step.core
    require_generation(core, 3, "core_barrier")
    if core.machine.lnc != 2:
        step.fail("needs a launch with LNC 2, for two cores")
    if tuple(cores) != (0, 1):
        step.fail(f"cores must be (0, 1), got {tuple(cores)}")
    if not isinstance(data, NkiTensor) or data.buffer is not MemoryRegion.shared_hbm:
        step.fail(f"data must be a tensor in shared HBM, got {described(data)}")
    assert data.storage is not None
    chosen = constants.member(constants.engine, engine, "engine")
    step.set_engine(chosen.name, True)
    if step.instruction is not None:
        step.instruction.attributes["meeting"] = (data.storage.number,)
    key = (core.rank, "core_barrier", core.occurrence("core_barrier"))
    core.machine.board.meet(
        (core.rank, core.index),
        key,
        [(core.rank, 0), (core.rank, 1)],
        data.storage.number,
        lambda storages: _same_storage(storages, data),
        "core_barrier",
        _place(),
    )
    core.epoch += 1
    return step.done()


def _same_storage(storages: list[int], data: NkiTensor) -> None:
    if len(set(storages)) > 1:
        raise errors.PeerMismatchError(
            "core_barrier: the cores synchronize on different tensors; one of them is "
            f"{described(data)}"
        )


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: Any = constants.dma_engine.dma,
    name: str | None = None,
) -> NkiInstruction:
    """Sends `src` to the other core, and receives the other core's `src` into `dst`."""
    step = Step("sendrecv", "dma")
    core = step.core
    require_generation(core, 3, "sendrecv")
    mode = constants.member(constants.dma_engine, dma_engine, "dma_engine")
    if core.machine.lnc != 2:
        step.fail("needs a launch with LNC 2, for two cores")
    for argument, value in (("send_to_rank", send_to_rank), ("recv_from_rank", recv_from_rank)):
        if int(value) not in (0, 1):
            step.fail(f"{argument} must be 0 or 1, got {value}")
    step.check_spaces(("sbuf",), src=src, dst=dst)
    if src.dtype != dst.dtype or src.shape != dst.shape:
        step.fail(
            f"src and dst must have the same shape and dtype, got {list(src.shape)} {src.dtype} "
            f"and {list(dst.shape)} {dst.dtype}"
        )
    info = dtypes.info(src.dtype)
    row = src.size // src.shape[0] * info.itemsize
    limit = _GPSIMD_DMA_BYTES[info.itemsize]
    if mode is constants.dma_engine.gpsimd_dma and row > limit:
        step.fail(f"gpsimd_dma moves at most {limit} bytes per partition of {src.dtype}, got {row}")
    if step.instruction is not None:
        step.instruction.attributes.update(pipe=int(pipe_id), dma_engine=mode.name, meeting=())
    values, written = step.read_moved("src", src)
    received = core.machine.board.meet(
        (core.rank, core.index),
        (core.rank, "sendrecv", int(pipe_id), core.occurrence(("sendrecv", int(pipe_id)))),
        [(core.rank, 0), (core.rank, 1)],
        (values.copy(), written, int(send_to_rank), int(recv_from_rank), src.dtype),
        _exchange,
        f"sendrecv pipe {pipe_id}",
        _place(),
    )
    core.epoch += 1
    step.write_moved("dst", dst, *received[core.index])
    return step.done()


_Sent = tuple[np.ndarray, np.ndarray | None, int, int, str]


def _exchange(brought: list[_Sent]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Returns the values that each core receives, and which of them are written."""
    received = []
    for core, (mine, _, _, source, dtype) in enumerate(brought):
        theirs, written, target, _, their_dtype = brought[source]
        if target != core:
            raise errors.PeerMismatchError(
                f"sendrecv: core {core} receives from core {source}, which sends to core {target}"
            )
        if theirs.shape != mine.shape or dtype != their_dtype:
            raise errors.PeerMismatchError(
                f"sendrecv: core {core} receives {list(mine.shape)} {dtype}, but core {source} "
                f"sends {list(theirs.shape)} {their_dtype}"
            )
        received.append((theirs, written))
    return received


def register_alloc(x: Any = None) -> VirtualRegister:
    """Returns a new register, optionally with a value."""
    register = VirtualRegister()
    if isinstance(x, NkiTensor):
        register_load(register, x)
    elif isinstance(x, VirtualRegister):
        register_move(register, x)
    elif x is not None:
        register.value = int(x)
    return register


def register_move(dst: VirtualRegister, src: Any) -> None:
    """Writes a constant or the value of another register to a register."""
    writers = current_core().register_writers
    if isinstance(src, VirtualRegister):
        dst.value = src.read()
        writers.copy_writer(dst, src)
    else:
        dst.value = int(src)
        writers.set_writer(dst, None)


def register_load(dst: VirtualRegister, src: NkiTensor) -> None:
    """Writes the only element of a tensor to a register."""
    step = Step("register_load", "sync")
    step.check_spaces(("hbm", "sbuf"), src=src)
    if src.size != 1:
        step.fail(f"src must have exactly one element, got {list(src.shape)}")
    step.write_register(dst, int(step.read("src", src).reshape(-1)[0]))


def register_store(dst: NkiTensor, src: VirtualRegister) -> None:
    """Writes the value of a register to the only element of a tensor."""
    step = Step("register_store", "sync")
    step.check_spaces(("hbm", "sbuf"), dst=dst)
    if dst.size != 1:
        step.fail(f"dst must have exactly one element, got {list(dst.shape)}")
    step.write("dst", dst, np.array([step.read_register(src)], np.int64))


def get_nc_version() -> constants.nc_version:
    """Returns the NeuronCore version of the target."""
    return constants.nc_version(current_core().target.generation)


def get_nc_sub_version() -> int:
    """Returns the silicon revision: 0, the first one."""
    return 0
