"""Activations as sums of float8 terms, so that float8 weights are multiplied in double rows.

The Tensor Engine multiplies two rows of a weight in the time of one if both operands are float8
(Trainium2 architecture guide, double FP8 matmul performance). A token times a power of two is the
sum of `TERMS` values of float8_e5m2, 3 bits each. Terms are columns of the moving operand, which
has far fewer columns than a product takes time for; what their products are is added up later.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import (
    EXPONENT_PAIRS,
    LEAST_PAIRS,
    MAGNITUDE,
    PARTITIONS,
    TERMS,
    splits_tokens,
    term_row_bytes,
)
from .sizes import bytes_of, pieces


class Terms(NKIObject):
    """A tile of activations x [width, chunks, T] as a sum of terms.

    Attributes:
      tile: [width, chunks, n] float8_e5m2: term i of token t is in column i * T + t. n is at least
        `columns`; a chunk begins at a multiple of 16 bytes.
      columns: `TERMS` * T.
      scale: the `TokenScale` by which x was multiplied.
    """

    def __init__(self, tile, columns, scale):
        self.tile = tile
        self.columns = columns
        self.scale = scale

    def part(self, first, last):
        """The terms of chunks `first` .. `last`."""
        return Terms(self.tile[:, first:last, :], self.columns, self.scale)

    def moving(self, chunk, rows):
        """The moving operand of one chunk [width, n], or of two neighbors [width, 2, n]."""
        if rows == 1:
            return self.tile[:, chunk, 0 : self.columns]
        return self.tile[:, chunk : chunk + rows, 0 : self.columns]


class TokenScale(NKIObject):
    """Powers of two, one for each token, that bring its features into the range of float8_e5m2.

    Attributes:
      factor: [128, T] float32, the same on all partitions.
    """

    def __init__(self, factor):
        self.factor = factor
        self.inverse = None
        self.combined = None

    def undo(self, token_factor):
        """[128, T] float32 by which products are multiplied: 1 / factor, times `token_factor`.

        The first call computes it, so that it follows the products in program order.

        Args:
          token_factor: [128, T] float32, the same in all calls; or None.
        """
        shape = (self.factor.shape[0], self.factor.shape[1])
        if self.inverse == None:
            # Of 0, which is the factor of what is not finite: infinity, so that results are NaN.
            self.inverse = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.reciprocal(dst=self.inverse, data=self.factor)
        if token_factor == None:
            return self.inverse
        if self.combined == None:
            self.combined = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(
                dst=self.combined, data1=self.inverse, data2=token_factor, op=nl.multiply
            )
        return self.combined


def splits(dtype, sizes, chunks, tiles):
    """Whether a product is in double rows: where it can be, and is faster.

    Args:
      dtype: of the weight.
      sizes: `Sizes`.
      chunks: of the weight's rows.
      tiles: of its columns.
    """
    if bytes_of(dtype) != 1 or bytes_of(sizes.dtype) != 2:
        return False
    return splits_tokens(sizes.T) and chunks // 2 * tiles >= LEAST_PAIRS


def split(x, context):
    """The `Terms` of x [width, chunks, T], in the compute dtype, of 16 bits.

    Exact in bfloat16 and float16 where a feature is 2**-6 / factor or more; a smaller one is off by
    2**-17 / factor at most. The mean magnitude of a token's n features is 2**13 / (n * factor) or
    more: of 4096 features none is off by more than 2**-18 of their mean.
    """
    sizes = context.sizes
    width = x.shape[0]
    chunks = x.shape[1]
    T = x.shape[2]
    scale = _token_scale(x, context)
    tile = nl.ndarray((width, chunks, term_row_bytes(T)), dtype=nl.float8_e5m2, buffer=nl.sbuf)
    for piece in pieces(chunks, T):
        first, last = piece
        shape = (width, last - first, T)
        scaled = nl.ndarray(shape, dtype=sizes.dtype, buffer=nl.sbuf)
        by_token = scale.factor[0:width, :].expand_dim(1).broadcast(1, last - first)
        nisa.tensor_tensor(dst=scaled, data1=x[:, first:last, :], data2=by_token, op=nl.multiply)
        high = tile[:, first:last, 0:T]
        nisa.tensor_copy(dst=high, src=scaled)
        rest = nl.ndarray(shape, dtype=sizes.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=rest, data1=scaled, data2=high, op=nl.subtract)
        middle = tile[:, first:last, T : 2 * T]
        nisa.tensor_copy(dst=middle, src=rest)
        low = tile[:, first:last, 2 * T : TERMS * T]
        nisa.tensor_tensor(dst=low, data1=rest, data2=middle, op=nl.subtract)
    return Terms(tile, TERMS * T, scale)


def add_terms(summed, size, T):
    """[width, size, T] float32 on chip: sums of the products of terms, in PSUM.

    Args:
      summed: [width, size * `TERMS` * T].
      size: tiles of columns.
      T: tokens.
    """
    terms = summed.reshape_dim(1, (size, TERMS, T))
    total = nl.ndarray((summed.shape[0], size, T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=total, op=nl.add, data=terms.permute((0, 1, 3, 2)), axis=(3,))
    return total


def _token_scale(x, context):
    """The `TokenScale` of x: the sum of a token's magnitudes becomes 2**13 to 2**15.

    So the largest is below the largest float8_e5m2, 57344.
    """
    sizes = context.sizes
    constants = context.constants
    width = x.shape[0]
    T = x.shape[2]
    magnitude = nl.ndarray((width, x.shape[1], T), dtype=sizes.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=magnitude.view(nl.uint16),
        data=x.view(nl.uint16),
        op0=nl.bitwise_and,
        operand0=MAGNITUDE,
    )
    by_partition = nl.ndarray((width, T), dtype=nl.bfloat16, buffer=nl.sbuf)
    by_token = magnitude.permute((0, 2, 1))
    nisa.tensor_reduce(dst=by_partition, op=nl.add, data=by_token, axis=(2,))
    # 2**-13 times the sum over the partitions, on every partition.
    total = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=total,
        stationary=constants.unit[0:width, :],
        moving=by_partition,
        accumulate=False,
    )
    factor = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.sbuf)
    # A float32 of which the sign, the mantissa and the lowest bit of the exponent are zero is a
    # power of two; with the other bits of the exponent turned it is the inverse.
    nisa.tensor_scalar(
        dst=factor.view(nl.int32),
        data=total.view(nl.int32),
        op0=nl.bitwise_and,
        operand0=EXPONENT_PAIRS,
        op1=nl.bitwise_xor,
        operand1=EXPONENT_PAIRS,
    )
    return TokenScale(factor)
