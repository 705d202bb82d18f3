"""Rotary position embedding of transposed heads."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .feature_order import even_blocks
from .limits import PSUM_BANK


class Rotation(NKIObject):
    """Cosines and sines of the new tokens' angles, each [rows of a head, T] float32 on chip."""

    def __init__(self, RoPE_cos, RoPE_sin, sizes):
        self.cosine = load_table(RoPE_cos, sizes)
        self.sine = load_table(RoPE_sin, sizes)


def load_table(table, sizes):
    """A table [d/2, B, S] in HBM as [rows, T] float32, the same for both halves of a head."""
    half = sizes.d // 2
    flat = table.reshape((half, sizes.T))
    tile = nl.ndarray((sizes.head_rows, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    # Hardware descriptors cannot convert to float32; these are made before the kernel runs.
    nisa.dma_copy(dst=tile[0:half, :], src=flat, dge_mode=nisa.dge_mode.none)
    if sizes.head_chunks == 1:
        nisa.dma_copy(dst=tile[half : sizes.d, :], src=flat, dge_mode=nisa.dge_mode.none)
    return tile


def apply_rope(heads, rotation, context, scaled=None):
    """Rotates heads [rows, n, chunks, T] in place: x * cos + (-x2, x1) * sin.

    Args:
      heads: [rows, n, chunks, T] in the compute dtype.
      rotation: the launch's `Rotation`.
      context: the launch's `Context`.
      scaled: `ScaledHeads`, which are rotated instead, and then multiplied by their factor; or
        None.
    """
    count = heads.shape[1]
    chunks = heads.shape[2]
    T = heads.shape[3]
    given = heads
    if scaled != None:
        given = scaled.tile
    cosine = rotation.cosine.expand_dim(1).expand_dim(1)
    for block in even_blocks(0, count, PSUM_BANK // (chunks * T)):
        first, size = block
        part = given[:, first : first + size, :, :]
        straight = nl.ndarray(part.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=straight,
            data1=part,
            data2=cosine.broadcast(1, size).broadcast(2, chunks),
            op=nl.multiply,
        )
        crossed = nl.ndarray(part.shape, dtype=nl.float32, buffer=nl.sbuf)
        if chunks == 1:
            _cross_partitions(crossed[:, :, 0, :], part[:, :, 0, :], rotation, context.constants)
        else:
            _cross_chunks(crossed, part, rotation)
        target = heads[:, first : first + size, :, :]
        if scaled == None:
            nisa.tensor_tensor(dst=target, data1=straight, data2=crossed, op=nl.add)
        else:
            nisa.tensor_tensor(dst=straight, data1=straight, data2=crossed, op=nl.add)
            factor = scaled.factor[:, first : first + size, :]
            by_chunk = factor.expand_dim(2).broadcast(2, chunks)
            nisa.tensor_tensor(dst=target, data1=straight, data2=by_chunk, op=nl.multiply)


def _cross_partitions(crossed, part, rotation, constants):
    """crossed = (-x2, x1) * sin of heads [d, n, T], whose halves share the partitions.

    A product with a signed permutation moves the halves across the partitions, exactly, and for
    any d.
    """
    turned = nl.ndarray(part.shape, dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=turned, stationary=constants.rotation, moving=part, accumulate=False)
    nisa.tensor_tensor(
        dst=crossed,
        data1=turned,
        data2=rotation.sine.expand_dim(1).broadcast(1, part.shape[1]),
        op=nl.multiply,
    )


def _cross_chunks(crossed, part, rotation):
    """crossed = (-x2, x1) * sin of heads [d/2, n, 2, T], whose halves are chunks."""
    sine = rotation.sine.expand_dim(1).broadcast(1, part.shape[1])
    nisa.scalar_tensor_tensor(
        dst=crossed[:, :, 0, :],
        data=part[:, :, 1, :],
        op0=nl.multiply,
        operand0=-1.0,
        op1=nl.multiply,
        operand1=sine,
    )
    nisa.tensor_tensor(dst=crossed[:, :, 1, :], data1=part[:, :, 0, :], data2=sine, op=nl.multiply)
