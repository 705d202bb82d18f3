"""Creates tensors, and moves them between HBM and SBUF."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.hardware import (
    MOVING_FMAX,
    PARTITIONS,
    PSUM_BANK_BYTES,
    PSUM_BANKS,
    RESERVED_SBUF_BYTES,
    STATIONARY_FMAX,
    target_named,
)
from jax_tkg.simulator import errors, isa
from jax_tkg.simulator.isa.vector_search import BN_STATS_FMAX
from jax_tkg.simulator.machine.machine import current_core, running_core
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.allocation import PSUM_MIN_ALIGN, SBUF_MIN_ALIGN
from jax_tkg.simulator.memory.objects import NKIObject
from jax_tkg.simulator.memory.storage import ON_CHIP, MemoryRegion
from jax_tkg.simulator.memory.tensor import NkiTensor

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
private_hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm
hbm = private_hbm

_FLOAT32_BYTES = 4


class _TileSize(NKIObject):
    """Hardware tile size constants."""

    pmax = PARTITIONS
    psum_bank_fmax = PSUM_BANK_BYTES // _FLOAT32_BYTES
    psum_fmax = psum_bank_fmax
    psum_bank_fmax_bytes = PSUM_BANK_BYTES
    gemm_stationary_fmax = STATIONARY_FMAX
    gemm_moving_fmax = MOVING_FMAX
    bn_stats_fmax = BN_STATS_FMAX
    psum_min_align = PSUM_MIN_ALIGN
    sbuf_min_align = SBUF_MIN_ALIGN
    psum_num_banks = PSUM_BANKS

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable bytes of an SBUF partition."""
        core = running_core()
        target = core.target if core is not None else target_named(None)
        return target.sbuf_partition_bytes - RESERVED_SBUF_BYTES

    @property
    def sbuf_fmax(self) -> int:
        """Usable float32 elements of an SBUF partition."""
        return self.sbuf_fmax_bytes // _FLOAT32_BYTES

    @property
    def sbuf_size_bytes(self) -> int:
        """Usable bytes of SBUF, all partitions together."""
        return self.sbuf_fmax_bytes * PARTITIONS

    @property
    def total_available_sbuf_size(self) -> int:
        """The older name of `sbuf_fmax_bytes`."""
        return self.sbuf_fmax_bytes


tile_size = _TileSize()


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: Any = sbuf,
    name: str | None = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """Returns a new tensor with undefined contents.

    Args:
      shape: sizes; on chip, dimension 0 is the partition.
      dtype: NKI dtype.
      buffer: memory region.
      name: debug name; for shared HBM, the name by which both cores of a rank find the tensor.
      address: (partition, byte in the partition) of an on-chip tensor; None: the compiler places
        it.

    Raises:
      NkiValidationError: the shape or address does not fit the memory.
    """
    core = current_core()
    region = _region(buffer)
    info = dtypes.info(dtype)
    label = name or ""
    if region in ON_CHIP:
        sizes = tuple(shape) if len(shape) > 1 else (*shape, 1)
        storage = core.memory.allocate_on_chip(region, sizes, info, label, address)
        storage.scope = core.loops.scope
        return NkiTensor(sizes, info.name, storage, region, label)
    if address is not None:
        raise errors.NkiValidationError(
            f"ndarray {label!r}: address is for SBUF and PSUM, got {region.name}"
        )
    storage = core.memory.allocate_hbm(region, tuple(shape), info, label)
    storage.scope = core.loops.scope
    return NkiTensor(shape, info.name, storage, region, label)


def _region(buffer: Any) -> MemoryRegion:
    if isinstance(buffer, MemoryRegion):
        return buffer
    return MemoryRegion("private_hbm" if buffer == "hbm" else buffer)


def is_hbm(buffer: Any) -> bool:
    """Whether a region is HBM."""
    return not is_on_chip(buffer)


def is_on_chip(buffer: Any) -> bool:
    """Whether a region is SBUF or PSUM."""
    return _region(buffer) in ON_CHIP


def is_psum(buffer: Any) -> bool:
    """Whether a region is PSUM."""
    return _region(buffer) is psum


def is_sbuf(buffer: Any) -> bool:
    """Whether a region is SBUF."""
    return _region(buffer) is sbuf


def full(
    shape: Sequence[int], fill_value: Any, dtype: Any, buffer: Any = sbuf, name: str = ""
) -> NkiTensor:
    """A new tensor filled with one value."""
    tensor = ndarray(shape, dtype, buffer, name)
    if tensor.on_chip:
        isa.memset(tensor, fill_value)
        return tensor
    # A DMA fills HBM from one element, with stride 0.
    constant = ndarray((1, 1), dtype, sbuf)
    isa.memset(constant, fill_value)
    isa.dma_copy(tensor, constant.ap([[1, 1], [0, tensor.size]]))
    return tensor


def zeros(shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """A new tensor of zeros."""
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """A new tensor of ones."""
    return full(shape, 1, dtype, buffer, name)


def empty_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """A new tensor of the same shape."""
    return ndarray(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def zeros_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """A new tensor of zeros of the same shape."""
    return full(x.shape, 0, dtype or x.dtype, buffer or x.buffer, name)


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the values of an HBM tensor."""
    tile = ndarray(src.shape, dtype or src.dtype, sbuf)
    isa.dma_copy(dst=tile, src=src)
    return tile


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Writes an SBUF tile to an HBM tensor."""
    isa.dma_copy(dst=dst, src=value)


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the transpose of a 2D HBM tensor."""
    rows, columns = src.shape
    tile = ndarray((columns, rows), dtype or src.dtype, sbuf)
    isa.dma_copy(dst=tile, src=src.permute((1, 0)))
    return tile


def copy(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A copy in SBUF."""
    tile = ndarray(x.shape, dtype or x.dtype, sbuf)
    isa.tensor_copy(tile, x)
    return tile


def shared_constant(constant: Any) -> NkiTensor:
    """Returns a tensor in shared HBM with the data of an array or of a .npy file."""
    array = np.ascontiguousarray(np.load(constant) if isinstance(constant, str) else constant)
    storage = current_core().memory.adopt_input("constant", array)
    return NkiTensor(array.shape, dtypes.info(array.dtype).name, storage, shared_hbm, "constant")


def shared_identity_matrix(n: int, dtype: Any = "uint8", dst: NkiTensor | None = None) -> NkiTensor:
    """An identity matrix in SBUF."""
    tile = dst if dst is not None else ndarray((n, n), dtype, sbuf)
    info = dtypes.info(tile.dtype)
    isa.dma_copy(dst=tile, src=shared_constant(np.eye(n, dtype=np.float32).astype(info.storage)))
    return tile


def rand(shape: Sequence[int], dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """Returns a new tensor of uniform random numbers in [0, 1)."""
    tensor = ndarray(shape, dtype, buffer, name)
    bits = ndarray(shape, "uint16", sbuf)
    isa.rng(bits)
    isa.tensor_scalar(tensor, bits, _multiply, 1.0 / (1 << 16))
    return tensor


# Instructions identify operators by name. A function here would need an import from above.
_multiply = "multiply"


def random_seed(seed: NkiTensor) -> None:
    """Seeds `rand`."""
    isa.set_rng_seed(seed)


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Prints the values of a tensor."""
    print(f"{print_prefix} [{current_core()}] {tensor!r}")
