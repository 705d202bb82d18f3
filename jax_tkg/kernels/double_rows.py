"""Activations as sums of float8 terms, so that float8 weights are multiplied in double rows.

The Tensor Engine multiplies two rows of a weight in the time of one if both operands are float8
(Trainium2 architecture guide, double FP8 matmul performance). A token times a power of two is the
sum of two values of float8_e4m3, 4 bits each, the first of them times `HIGH_UNIT`. Both terms are
columns of the moving operand, which has fewer columns than a product takes time for; their products
are added up as they are read out.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import (
    EXPONENT_PAIRS,
    HIGH_UNIT,
    LEAST_SAVED_CYCLES,
    PARTITIONS,
    SHORT_EXPONENT_PAIRS,
    TERMS,
    UNIT,
    saved_cycles,
    term_row_bytes,
)
from .sizes import bytes_of, pieces


class Terms(NKIObject):
    """A tile of activations x [width, chunks, T] as a sum of terms.

    Attributes:
      tile: [width, chunks, n] float8: term i of token t is in column i * T + t. n is at least
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
    """Powers of two, one for each token, that bring its features into the range of its terms.

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

    It can be where two terms have all bits of the compute dtype: in bfloat16.

    Args:
      dtype: of the weight.
      sizes: `Sizes`.
      chunks: of the weight's rows.
      tiles: of its columns.
    """
    if bytes_of(dtype) != 1 or sizes.dtype != nl.bfloat16:
        return False
    return chunks // 2 * tiles * saved_cycles(sizes.T) >= LEAST_SAVED_CYCLES


def dtype_of_terms(dtype):
    """What terms are for a weight of `dtype`: the two kinds of float8_e4m3 cannot be mixed."""
    if dtype == nl.float8_e5m2:
        return nl.float8_e4m3
    return dtype


def split(x, context, dtype):
    """The `Terms` of x [width, chunks, T] in bfloat16, to multiply a weight of `dtype`.

    The token's largest feature is 2**10 to 2**12 / factor. Features of 2**-2 / factor or more are
    exact; a smaller one is off by 2**-10 / factor at most, which is 2**-20 of the largest or less.
    """
    sizes = context.sizes
    width = x.shape[0]
    chunks = x.shape[1]
    T = x.shape[2]
    scale = _token_scale(x, context)
    shape = (width, chunks, term_row_bytes(T))
    tile = nl.ndarray(shape, dtype=dtype_of_terms(dtype), buffer=nl.sbuf)
    # Powers of two are all in the upper halves of float32: with operands of 16 bits alone the
    # Vector Engine multiplies at the full rate.
    halves = scale.factor.view(nl.bfloat16).reshape_dim(1, (T, 2))
    for piece in pieces(chunks, T):
        first, last = piece
        scaled = nl.ndarray((width, last - first, T), dtype=sizes.dtype, buffer=nl.sbuf)
        by_token = halves[0:width, :, 1].expand_dim(1).broadcast(1, last - first)
        nisa.tensor_tensor(dst=scaled, data1=x[:, first:last, :], data2=by_token, op=nl.multiply)
        high = tile[:, first:last, 0:T]
        # The Scalar Engine, because the Vector Engine has more to do.
        nisa.tensor_scalar(
            dst=high,
            data=scaled,
            op0=nl.multiply,
            operand0=1.0 / HIGH_UNIT,
            engine=nisa.engine.scalar,
        )
        nisa.scalar_tensor_tensor(
            dst=tile[:, first:last, T : TERMS * T],
            data=high,
            op0=nl.multiply,
            operand0=-HIGH_UNIT,
            op1=nl.add,
            operand1=scaled,
        )
    return Terms(tile, TERMS * T, scale)


def add_terms(summed, size, T):
    """[width, size, T] in PSUM: sums of the products of terms, in their place.

    Args:
      summed: [width, size * `TERMS` * T] float32 in PSUM.
      size: tiles of columns.
      T: tokens.
    """
    terms = summed.reshape_dim(1, (size, TERMS, T))
    high = nl.ndarray((summed.shape[0], size, T), dtype=nl.float32, buffer=nl.sbuf)
    # The Scalar Engine, because the Vector Engine has more to do.
    nisa.tensor_scalar(
        dst=high,
        data=terms[:, :, 0, :],
        op0=nl.multiply,
        operand0=HIGH_UNIT,
        engine=nisa.engine.scalar,
    )
    total = terms[:, :, 1, :]
    nisa.tensor_tensor(dst=total, data1=high, data2=total, op=nl.add)
    return total


def _token_scale(x, context):
    """The `TokenScale` of x: the largest magnitude of a token becomes 2**10 to 2**12."""
    constants = context.constants
    width = x.shape[0]
    T = x.shape[2]
    # Magnitudes as even powers of two: also those of what is not finite, which a maximum may lose.
    magnitude = nl.ndarray((width, x.shape[1], T), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=magnitude.view(nl.uint16),
        data=x.view(nl.uint16),
        op0=nl.bitwise_and,
        operand0=SHORT_EXPONENT_PAIRS,
    )
    by_partition = nl.ndarray((width, T), dtype=nl.bfloat16, buffer=nl.sbuf)
    by_token = magnitude.permute((0, 2, 1))
    nisa.tensor_reduce(dst=by_partition, op=nl.maximum, data=by_token, axis=(2,))
    turned = nl.ndarray((T, width), dtype=nl.bfloat16, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=by_partition, engine=nisa.engine.tensor)
    largest = nl.ndarray((T, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=largest, op=nl.maximum, data=turned, axis=(1,))
    # ones @ diag(UNIT * largest) gives every partition the row of all tokens.
    diagonal = nl.ndarray((T, T), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=diagonal,
        data=constants.identity[0:T, 0:T],
        op0=nl.multiply,
        operand0=largest,
        op1=nl.multiply,
        operand1=UNIT,
    )
    spread = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread,
        stationary=constants.short_ones[0:T, :],
        moving=diagonal,
        is_stationary_onezero=True,
        accumulate=False,
    )
    factor = nl.ndarray((PARTITIONS, T), dtype=nl.float32, buffer=nl.sbuf)
    # With the bits of its exponent but the lowest turned, an even power of two is the inverse; zero
    # becomes 2**127.
    nisa.tensor_scalar(
        dst=factor.view(nl.int32),
        data=spread.view(nl.int32),
        op0=nl.bitwise_and,
        operand0=EXPONENT_PAIRS,
        op1=nl.bitwise_xor,
        operand1=EXPONENT_PAIRS,
    )
    return TokenScale(factor)
