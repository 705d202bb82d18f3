"""Small constant tiles, made once per launch."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS
from .sizes import bytes_of


class Constants(NKIObject):
    """Constant tiles.

    Attributes:
      ones: [128, 128] float32.
      short_ones: [128, 128] bfloat16, to multiply operands of 16 bits with; None if the compute
        dtype is float32.
      identity: [128, 128] float32.
      rotation: [d, d] in the compute dtype; rotation^T @ x = (-x2, x1) for x = (x1, x2) in
        contiguous halves. None if the halves of a head are chunks of their own.
    """

    def __init__(self, sizes):
        self.ones = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=self.ones, value=1.0)
        self.identity = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
        _select_diagonal(self.identity, self.ones, PARTITIONS, 0)
        self.rotation = None
        if sizes.head_chunks == 1:
            self.rotation = _rotation(sizes.d, self.ones, sizes.dtype)
        self.short_ones = None
        if bytes_of(sizes.dtype) == 2:
            shape = (PARTITIONS, PARTITIONS)
            self.short_ones = nl.ndarray(shape, dtype=nl.bfloat16, buffer=nl.sbuf)
            nisa.memset(dst=self.short_ones, value=1.0)


def _select_diagonal(dst, on_true, size, shift):
    """dst[p, f] = on_true[p, f] where p - f = shift, else 0."""
    nisa.affine_select(
        dst=dst,
        pattern=[[-1, size]],
        channel_multiplier=1,
        offset=-shift,
        on_true_tile=on_true,
        on_false_value=0.0,
        cmp_op=nl.equal,
    )


def _rotation(d, ones, dtype):
    half = d // 2
    above = nl.ndarray((d, d), dtype=nl.float32, buffer=nl.sbuf)
    _select_diagonal(above, ones[0:d, 0:d], d, -half)
    below = nl.ndarray((d, d), dtype=nl.float32, buffer=nl.sbuf)
    _select_diagonal(below, ones[0:d, 0:d], d, half)
    rotation = nl.ndarray((d, d), dtype=dtype, buffer=nl.sbuf)
    # Output f < d/2 takes -x[f + d/2]; output f >= d/2 takes x[f - d/2].
    nisa.tensor_tensor(dst=rotation, data1=above, data2=below, op=nl.subtract)
    return rotation
