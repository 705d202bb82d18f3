"""RMSNorm of a transposed activation."""

import nki.isa as nisa
import nki.language as nl

from .layout import load_columns
from .sizes import PARTITIONS


def rms_norm(x, gamma, constants, sizes):
    """x / sqrt(mean(x^2) + eps) * gamma, in f32, rounded once to the compute dtype.

    Args:
      x: [128, H / 128, T].
      gamma: [1, H] in HBM.
      constants: the launch's constant tiles.
      sizes: the launch's sizes.

    Returns:
      A tile like x.
    """
    chunks = sizes.hidden_chunks()
    T = sizes.T
    gain = load_columns(gamma, 0, chunks)
    squares = nl.ndarray((PARTITIONS, chunks, T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares, op=nl.square, data=x)
    per_partition = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=per_partition, op=nl.add, data=squares.permute((0, 2, 1)), axis=(2,))
    # A product with ones sums over the partitions and gives every partition the sum.
    total = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=total,
        stationary=constants.ones,
        moving=per_partition,
        is_stationary_onezero=True,
        accumulate=False,
    )
    epsilon = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=sizes.eps)
    inverse = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=total, scale=1.0 / sizes.H, bias=epsilon)
    scaled = nl.ndarray((PARTITIONS, chunks, T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=scaled,
        data1=x,
        data2=inverse.expand_dim(1).broadcast(1, chunks),
        op=nl.multiply,
    )
    normed = nl.ndarray((PARTITIONS, chunks, T), dtype=sizes.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=normed, data1=scaled, data2=gain.expand_dim(2).broadcast(2, T), op=nl.multiply
    )
    return normed
