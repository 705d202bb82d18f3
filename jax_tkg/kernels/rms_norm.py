"""RMSNorm of a transposed activation."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .double_rows import dtype_of_terms, split
from .exchange import add_other_core
from .feature_order import even_blocks
from .layout import load_columns
from .limits import PARTITIONS, PSUM_BANK
from .sizes import pieces


class Normed(NKIObject):
    """x / sqrt(mean(x^2) + eps) * gamma, perhaps without the division, which products then apply.

    A product with a weight is linear, so that a token's factor 1 / sqrt(...) can be applied to the
    product instead: the product need not wait for it. Both ways round the input of the product once
    to the compute dtype.

    Attributes:
      tile: [128, n, T] in the compute dtype, the n chunks of H that this core holds: x * gamma, or
        the complete norm.
      squares: [128, T] float32, the sum of x^2 over all chunks; None if the tile is complete, or
        if `own_squares` were not added yet.
      own_squares: [128, 1, T] float32, that over this core's chunks, which are still to be added to
        the other core's; or None.
    """

    def __init__(self, tile, squares):
        self.tile = tile
        self.squares = squares
        self.own_squares = None
        self.factor = None
        self.within_bound = None
        self.split = None
        self.split_for = None

    def token_factor(self, context):
        """[128, T] float32, by which products of the tile are multiplied; None for not at all.

        The first call computes it, so that it follows the products in program order.
        """
        if self.factor == None and self.squares != None:
            self.factor = _inverse_root(self.squares, context)
        return self.factor

    def clamped(self, context):
        """The same within +-clamp_bound, if that is positive."""
        arithmetic = context.arithmetic
        if arithmetic.clamp_bound <= 0.0:
            return self
        if self.within_bound == None:
            self.within_bound = Normed(clamped(self.tile, context), None)
        return self.within_bound

    def terms(self, context, dtype):
        """The `Terms` of the tile for a weight of `dtype`. The first call makes them."""
        terms_dtype = dtype_of_terms(dtype)
        if self.split_for != terms_dtype:
            self.split = split(self.tile, context, dtype)
            self.split_for = terms_dtype
        return self.split


def clamped(x, context):
    """x [128, n, T] within +-clamp_bound, if that is positive."""
    sizes = context.sizes
    arithmetic = context.arithmetic
    if arithmetic.clamp_bound <= 0.0:
        return x
    clipped = nl.ndarray((x.shape[0], x.shape[1], x.shape[2]), dtype=sizes.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=clipped,
        data=x,
        op0=nl.minimum,
        operand0=arithmetic.clamp_bound,
        op1=nl.maximum,
        operand1=-arithmetic.clamp_bound,
    )
    return clipped


def rms_norm(x, gain, context, split_for=None, adds_squares=True):
    """The normalized x, rounded once to the compute dtype.

    Args:
      x: [128, n, T], the chunks of H that this core holds.
      gain: `load_features` of the gain.
      context: the launch's `Context`.
      split_for: the dtype of the next product's weight, if that takes terms of it and does not
        clamp it; else None.
      adds_squares: whether the cores' sums of squares are added now, where the norm does not need
        them itself; else they are the `own_squares` of the result.

    Returns:
      `Normed`.
    """
    sizes = context.sizes
    arithmetic = context.arithmetic
    share = context.hidden_share()
    chunks = share.count
    T = sizes.T
    gain = gain.expand_dim(2).broadcast(2, T)
    normed = nl.ndarray((PARTITIONS, chunks, T), dtype=sizes.dtype, buffer=nl.sbuf)
    # Clamping needs the complete norm, and x * gamma may exceed the range of float16.
    complete = arithmetic.clamp_bound > 0.0 or sizes.dtype == nl.float16
    if not complete:
        engine = nisa.engine.vector
        if len(pieces(chunks, T)) > 1:
            # The Vector Engine may still be adding up the rest of x.
            engine = nisa.engine.gpsimd
        for piece in pieces(chunks, T):
            first, last = piece
            nisa.tensor_tensor(
                dst=normed[:, first:last, :],
                data1=x[:, first:last, :],
                data2=gain[:, first:last, :],
                op=nl.multiply,
                engine=engine,
            )
        result = Normed(normed, None)
        if split_for != None:
            # Before the Vector Engine waits for the other core's squares.
            result.terms(context, split_for)
        if adds_squares:
            result.squares = _squares(x, context)
        else:
            result.own_squares = _own_squares(x, context)
        return result
    squares = _squares(x, context)
    scaled = nl.ndarray((PARTITIONS, chunks, T), dtype=nl.float32, buffer=nl.sbuf)
    inverse = _inverse_root(squares, context).expand_dim(1).broadcast(1, chunks)
    nisa.tensor_tensor(dst=scaled, data1=x, data2=inverse, op=nl.multiply)
    nisa.tensor_tensor(dst=normed, data1=scaled, data2=gain, op=nl.multiply)
    return Normed(normed, None)


def head_gain(gamma, context):
    """[rows, chunks] float32 on chip, of the gain [1, d] of query or key heads; None of None."""
    sizes = context.sizes
    chunks = sizes.head_chunks
    return load_columns(gamma, 0, chunks, context, width=sizes.head_rows, dtype=nl.float32)


class ScaledHeads(NKIObject):
    """Heads times their gains, which `factor` makes normalized.

    A rotation keeps a head's norm, so that it need not wait for the factor.

    Attributes:
      tile: [rows, n, chunks, T] in the compute dtype.
      factor: [rows, n, T] float32.
    """

    def __init__(self, tile, factor):
        self.tile = tile
        self.factor = factor


def normalize_heads(heads, gain_q, gain_k, context):
    """Normalizes query heads, key heads or both, each over its d features.

    Args:
      heads: [rows, q + k, chunks, T] in the compute dtype: query heads, then key heads.
      gain_q: `head_gain`, or None: query heads stay as they are.
      gain_k: `head_gain`, or None: key heads stay as they are.
      context: the launch's `Context`.

    Returns:
      `ScaledHeads`; or None, and the heads are normalized in place, or stay as they are.
    """
    sizes = context.sizes
    if gain_q == None and gain_k == None:
        return None
    count = sizes.q + sizes.k
    factor = nl.ndarray((sizes.head_rows, count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    _inverse_roots_of_heads(factor, heads, context)
    # The product with a gain may exceed the range of float16.
    complete = sizes.dtype == nl.float16
    dtype = sizes.dtype
    if complete:
        dtype = nl.float32
    # Not in place, for other engines still read the heads to add up their squares.
    scaled = nl.ndarray(heads.shape, dtype=dtype, buffer=nl.sbuf)
    for part in ((gain_q, 0, sizes.q), (gain_k, sizes.q, count)):
        gain, first, last = part
        given = heads[:, first:last, :, :]
        if gain == None:
            nisa.memset(dst=factor[:, first:last, :], value=1.0)
            nisa.tensor_copy(dst=scaled[:, first:last, :, :], src=given)
        else:
            _scale_heads(scaled[:, first:last, :, :], given, gain)
    if not complete:
        return ScaledHeads(scaled, factor)
    by_chunk = factor.expand_dim(2).broadcast(2, sizes.head_chunks)
    nisa.tensor_tensor(dst=heads, data1=scaled, data2=by_chunk, op=nl.multiply)
    return None


def _inverse_roots_of_heads(inverse, heads, context):
    """inverse [rows, n, T] float32 = 1 / sqrt(mean + eps) of each head [rows, n, chunks, T]."""
    sizes = context.sizes
    arithmetic = context.arithmetic
    constants = context.constants
    rows = heads.shape[0]
    chunks = heads.shape[2]
    epsilon = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=arithmetic.eps, engine=nisa.engine.gpsimd)
    for block in even_blocks(0, heads.shape[1], PSUM_BANK // sizes.T):
        first, size = block
        shape = (rows, size, sizes.T)
        total = nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum)
        for chunk in range(chunks):
            squares = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(
                dst=squares, op=nl.square, data=heads[:, first : first + size, chunk, :]
            )
            nisa.nc_matmul(
                dst=total,
                stationary=constants.ones[0:rows, 0:rows],
                moving=squares,
                is_stationary_onezero=True,
                accumulate=chunk > 0,
            )
        nisa.activation(
            dst=inverse[:, first : first + size, :],
            op=nl.rsqrt,
            data=total,
            scale=1.0 / sizes.d,
            bias=epsilon,
        )


def _scale_heads(scaled, heads, gain):
    """scaled = heads [rows, n, chunks, T] * gain [rows, chunks]."""
    for chunk in range(heads.shape[2]):
        nisa.tensor_scalar(
            dst=scaled[:, :, chunk, :],
            data=heads[:, :, chunk, :],
            op0=nl.multiply,
            operand0=gain[:, chunk : chunk + 1],
        )


def normalize_update(update, gain, context):
    """Normalizes a block's output in place, in float32.

    Args:
      update: [128, n, T] float32, the chunks of H that this core holds.
      gain: [128, n] on chip, these chunks' gains.
      context: the launch's `Context`.
    """
    sizes = context.sizes
    share = context.hidden_share()
    inverse = _inverse_root(_squares(update, context), context)
    by_chunk = gain.expand_dim(2).broadcast(2, sizes.T)
    # While the sums of squares are on their way.
    nisa.tensor_tensor(
        dst=update, data1=update, data2=by_chunk, op=nl.multiply, engine=nisa.engine.gpsimd
    )
    by_token = inverse.expand_dim(1).broadcast(1, share.count)
    nisa.tensor_tensor(dst=update, data1=update, data2=by_token, op=nl.multiply)


def _squares(x, context):
    """[128, T] float32: the sum of x^2 over the chunks of both cores."""
    core = context.core
    summed = _own_squares(x, context)
    if core.count > 1:
        total = nl.ndarray((PARTITIONS, 1, x.shape[2]), dtype=nl.float32, buffer=nl.sbuf)
        add_other_core(total, summed, core)
        return total[:, 0, :]
    return summed[:, 0, :]


def _own_squares(x, context):
    """[128, 1, T] float32: the sum of x^2 over this core's chunks."""
    sizes = context.sizes
    share = context.hidden_share()
    summed = nl.ndarray((PARTITIONS, 1, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    own = share.count - share.skipped
    if own > 0:
        squares = nl.ndarray((PARTITIONS, own, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
        counted = x[:, share.skipped : share.count, :]
        for piece in pieces(own, sizes.T):
            first, last = piece
            nisa.activation(
                dst=squares[:, first:last, :], op=nl.square, data=counted[:, first:last, :]
            )
        by_token = squares.permute((0, 2, 1))
        nisa.tensor_reduce(dst=summed[:, 0, :], op=nl.add, data=by_token, axis=(2,))
    else:
        nisa.memset(dst=summed, value=0.0)
    return summed


def _inverse_root(squares, context):
    """[128, T] float32 on all partitions: 1 / sqrt(mean + eps) of sums [128, T] per partition."""
    sizes = context.sizes
    arithmetic = context.arithmetic
    constants = context.constants
    # A product with ones sums over the partitions and gives every partition the sum.
    total = nl.ndarray((PARTITIONS, sizes.T), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=total,
        stationary=constants.ones,
        moving=squares,
        is_stationary_onezero=True,
        accumulate=False,
    )
    epsilon = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=arithmetic.eps, engine=nisa.engine.gpsimd)
    inverse = nl.ndarray((PARTITIONS, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=inverse, op=nl.rsqrt, data=total, scale=1.0 / sizes.H, bias=epsilon)
    return inverse
