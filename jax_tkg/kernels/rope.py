"""Rotary position embedding of transposed heads."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PSUM_BANK, ceiling_divide


class Rotation(NKIObject):
    """Cosines and sines of the new tokens' angles, each [d, T] float32 on chip."""

    def __init__(self, RoPE_cos, RoPE_sin, sizes):
        self.cosine = load_table(RoPE_cos, sizes)
        self.sine = load_table(RoPE_sin, sizes)


def load_table(table, sizes):
    """A table [d/2, B, S] in HBM as [d, T] float32: the same for both halves of a head."""
    half = sizes.d // 2
    flat = table.reshape((half, sizes.T))
    tile = nl.ndarray((sizes.d, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile[0:half, :], src=flat)
    nisa.dma_copy(dst=tile[half : sizes.d, :], src=flat)
    return tile


def apply_rope(heads, rotation, context):
    """Rotates heads [d, n, T] in place: x * cos + (-x2, x1) * sin.

    A product with a signed permutation moves the halves across the partitions, exactly, and for
    any d.

    Args:
      heads: [d, n, T] in the compute dtype.
      rotation: the launch's `Rotation`.
      context: the launch's `Context`.
    """
    sizes = context.sizes
    constants = context.constants
    cosine = rotation.cosine
    sine = rotation.sine
    count = heads.shape[1]
    T = sizes.T
    at_once = PSUM_BANK // T
    for block in range(ceiling_divide(count, at_once)):
        first = block * at_once
        size = min(at_once, count - first)
        part = heads[:, first : first + size, :]
        turned = nl.ndarray((sizes.d, size, T), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=turned, stationary=constants.rotation, moving=part, accumulate=False)
        crossed = nl.ndarray((sizes.d, size, T), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=crossed,
            data1=turned,
            data2=sine.expand_dim(1).broadcast(1, size),
            op=nl.multiply,
        )
        straight = nl.ndarray((sizes.d, size, T), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=straight,
            data1=part,
            data2=cosine.expand_dim(1).broadcast(1, size),
            op=nl.multiply,
        )
        nisa.tensor_tensor(dst=part, data1=straight, data2=crossed, op=nl.add)
