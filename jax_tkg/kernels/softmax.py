"""A softmax that streams over the keys, transposed: keys on partitions, queries in columns.

Per column it carries the largest score so far, the sum of exponentials relative to it, and the sum
of values weighted by them; the first two are equal on all partitions.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import FREE_COLUMNS, PARTITIONS, ceiling_divide

MASKED = -(2.0**100)
"""Score of a key that is not attended, far below any other score."""


LARGEST_EXPONENT = 80.0
"""Bound of a sink's exponent: e**80 is finite in float32, and weights beside it vanish."""


class SoftmaxState(NKIObject):
    """The running result of a softmax over `columns` queries.

    Attributes:
      empty: whether no key was added yet; then the tiles are not written.
      packed: [128, 2 + chunks, n] float32, one tile that holds the others, so that the cores of a
        logical core swap it at once.
      peak: [128, n], the largest score so far, equal on all partitions.
      total: [128, n], the sum of exponentials relative to it, equal on all partitions.
      weighted: [rows, chunks, n], the sum of values weighted by them.
    """

    def __init__(self, rows, chunks, columns):
        self.columns = columns
        self.empty = True
        shape = (PARTITIONS, 2 + chunks, columns)
        self.packed = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        self.peak = self.packed[:, 0, :]
        self.total = self.packed[:, 1, :]
        self.weighted = self.packed[0:rows, 2 : 2 + chunks, :]
        if rows < PARTITIONS:
            # The whole tile is swapped.
            nisa.memset(dst=self.packed[:, 2 : 2 + chunks, :], value=0.0)


def column_peaks(scores, constants):
    """The largest of scores [P, chunks, n] over P and chunks, on all partitions: [128, n] in PSUM.

    There the Vector Engine subtracts it from scores in SBUF in half the time.
    """
    partitions = scores.shape[0]
    columns = scores.shape[2]
    by_partition = nl.ndarray((partitions, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=by_partition, op=nl.maximum, data=scores.permute((0, 2, 1)), axis=(2,))
    peaks = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.psum)
    first = 0
    while first < columns:
        size = min(PARTITIONS, columns - first)
        turned = nl.ndarray((size, partitions), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(
            dst=turned, data=by_partition[:, first : first + size], engine=nisa.engine.tensor
        )
        largest = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=largest, op=nl.maximum, data=turned, axis=(1,))
        # ones @ diag(largest) gives every partition the row of all peaks.
        diagonal = nl.ndarray((size, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=diagonal,
            data=constants.identity[0:size, 0:size],
            op0=nl.multiply,
            operand0=largest,
        )
        nisa.nc_matmul(
            dst=peaks[:, first : first + size],
            stationary=constants.ones[0:size, :],
            moving=diagonal,
            is_stationary_onezero=True,
            accumulate=False,
        )
        first += size
    return peaks


def exponentials(scores, peaks, scale, dtype):
    """exp(scale * (scores - peaks)) of scores [P, chunks, n], in `dtype`; overwrites the scores.

    `scale` is a `ScoreScale`, here and below.
    """
    partitions = scores.shape[0]
    chunks = scores.shape[1]
    columns = scores.shape[2]
    nisa.tensor_tensor(
        dst=scores,
        data1=scores,
        data2=peaks[0:partitions, :].expand_dim(1).broadcast(1, chunks),
        op=nl.subtract,
    )
    weights = nl.ndarray((partitions, chunks, columns), dtype=dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores, scale=scale.of_rows(partitions))
    return weights


def column_sums(weights, constants):
    """Sums of weights [P, chunks, n] over P, on all partitions: [128, m, n] float32 in PSUM.

    The sum over m is that of all chunks. The Tensor Engine multiplies m chunks at a time by ones,
    so that a product has `FREE_COLUMNS` columns or more: with fewer it takes no less time.
    """
    partitions = weights.shape[0]
    chunks = weights.shape[1]
    columns = weights.shape[2]
    at_once = min(chunks, ceiling_divide(FREE_COLUMNS, columns))
    ones = constants.ones
    if weights.dtype != nl.float32:
        ones = constants.short_ones
    sums = nl.ndarray((PARTITIONS, at_once, columns), dtype=nl.float32, buffer=nl.psum)
    first = 0
    while first < chunks:
        size = min(at_once, chunks - first)
        nisa.nc_matmul(
            dst=sums[:, 0:size, :],
            stationary=ones[0:partitions, :],
            moving=weights[:, first : first + size, :],
            is_stationary_onezero=True,
            accumulate=first > 0,
        )
        first += size
    return sums


def take_whole(state, peaks, sums, weighted, sunk=None):
    """Makes an empty `state` that of all its keys; `weighted` stays where it is, in PSUM.

    The arguments are those of `merge`, and the `sink_weights` relative to the peaks, or None.
    """
    state.peak = peaks
    nisa.tensor_reduce(dst=state.total, op=nl.add, data=sums.permute((0, 2, 1)), axis=(2,))
    if sunk != None:
        nisa.tensor_tensor(dst=state.total, data1=state.total, data2=sunk, op=nl.add)
    state.weighted = weighted
    state.empty = False


def merge(state, peaks, sums, weighted, scale):
    """Merges the result of another set of keys into `state`.

    Args:
      state: `SoftmaxState`.
      peaks: [128, n] float32.
      sums: [128, m, n] float32, to be added up over m.
      weighted: [rows, chunks, n] float32.
      scale: of the scores.
    """
    if state.empty:
        nisa.tensor_copy(dst=state.peak, src=peaks)
        nisa.tensor_reduce(dst=state.total, op=nl.add, data=sums.permute((0, 2, 1)), axis=(2,))
        # The Scalar Engine, because the Vector Engine has more to do.
        nisa.tensor_copy(dst=state.weighted, src=weighted, engine=nisa.engine.scalar)
        state.empty = False
    else:
        columns = state.columns
        rows = weighted.shape[0]
        chunks = weighted.shape[1]
        higher = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=higher, data1=state.peak, data2=peaks, op=nl.maximum)
        kept = _decay(state.peak, higher, scale)
        added = _decay(peaks, higher, scale)
        total = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=sums.permute((0, 2, 1)), axis=(2,))
        _scale_and_add(state.total, kept, total, added)
        _scale_and_add(
            state.weighted,
            kept[0:rows, :].expand_dim(1).broadcast(1, chunks),
            weighted,
            added[0:rows, :].expand_dim(1).broadcast(1, chunks),
        )
        nisa.tensor_copy(dst=state.peak, src=higher)


def merge_packed(state, other, scale):
    """Merges another state's `packed` tile, `other`, into `state`."""
    columns = state.columns
    count = other.shape[1] - 1
    higher = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=higher, data1=state.peak, data2=other[:, 0, :], op=nl.maximum)
    kept = _decay(state.peak, higher, scale)
    added = _decay(other[:, 0, :], higher, scale)
    # Totals and weighted values at once.
    shape = (PARTITIONS, count, columns)
    mine = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    rest = state.packed[:, 1 : 1 + count, :]
    nisa.tensor_tensor(
        dst=mine, data1=rest, data2=kept.expand_dim(1).broadcast(1, count), op=nl.multiply
    )
    theirs = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=theirs,
        data1=other[:, 1 : 1 + count, :],
        data2=added.expand_dim(1).broadcast(1, count),
        op=nl.multiply,
    )
    nisa.tensor_tensor(dst=rest, data1=mine, data2=theirs, op=nl.add)
    # `packed` keeps the old one, and is not swapped again.
    state.peak = higher


def merge_parts(state, parts, scale):
    """Makes `state` the softmax of several sets of keys.

    Args:
      state: `SoftmaxState`, empty.
      parts: [128, m, 2 + chunks, n] float32, the `packed` tiles of their m states.
      scale: of the scores.
    """
    count = parts.shape[1]
    rest = parts.shape[2] - 1
    columns = state.columns
    peaks = parts[:, :, 0, :]
    nisa.tensor_reduce(dst=state.peak, op=nl.maximum, data=peaks.permute((0, 2, 1)), axis=(2,))
    lowered = nl.ndarray((PARTITIONS, count, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=lowered,
        data1=peaks,
        data2=state.peak.expand_dim(1).broadcast(1, count),
        op=nl.subtract,
    )
    factor = nl.ndarray((PARTITIONS, count, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=factor, op=nl.exp, data=lowered, scale=scale.of_rows(PARTITIONS))
    scaled = nl.ndarray((PARTITIONS, count, rest, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=scaled,
        data1=parts[:, :, 1 : 1 + rest, :],
        data2=factor.expand_dim(2).broadcast(2, rest),
        op=nl.multiply,
    )
    nisa.tensor_reduce(
        dst=state.packed[:, 1 : 1 + rest, :],
        op=nl.add,
        data=scaled.permute((0, 2, 3, 1)),
        axis=(3,),
    )
    state.empty = False


def _decay(peak, higher, scale):
    """exp(scale * (peak - higher))."""
    shape = (PARTITIONS, higher.shape[1])
    lowered = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=lowered, data1=peak, data2=higher, op=nl.subtract)
    factor = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=factor, op=nl.exp, data=lowered, scale=scale.of_rows(PARTITIONS))
    return factor


def _scale_and_add(total, kept, more, added):
    """total = total * kept + more * added."""
    mine = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=mine, data1=total, data2=kept, op=nl.multiply)
    theirs = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=theirs, data1=more, data2=added, op=nl.multiply)
    nisa.tensor_tensor(dst=total, data1=mine, data2=theirs, op=nl.add)


def sink_weights(peaks, sinks, scale):
    """[128, n] float32: exponentials of sinks, relative to `peaks`.

    A sink is a logit without a value. The peak may be that of the keys alone, because it is only
    what exponentials are relative to.

    Args:
      peaks: [128, n] float32.
      sinks: [128, n] float32 on chip, not scaled; its n may be several dimensions.
      scale: of the scores.
    """
    exponent = nl.ndarray(sinks.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=exponent,
        data=peaks.reshape_dim(1, sinks.shape[1:]),
        op0=nl.multiply,
        operand0=scale.negative(),
        op1=nl.add,
        operand1=sinks,
    )
    nisa.tensor_scalar(dst=exponent, data=exponent, op0=nl.minimum, operand0=LARGEST_EXPONENT)
    weights = nl.ndarray(peaks.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=weights.reshape_dim(1, sinks.shape[1:]), op=nl.exp, data=exponent)
    return weights


def normalizing_factor(state, inverse_scale=None):
    """[rows, n] float32: 1 / total, by which `weighted` is multiplied; 0 if no key was attended.

    Where values are multiplied by a scale, `inverse_scale` [128, 1] float32 is one over it.
    """
    columns = state.columns
    rows = state.weighted.shape[0]
    inverse = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=state.total[0:rows, :])
    if inverse_scale != None:
        nisa.tensor_scalar(
            dst=inverse, data=inverse, op0=nl.multiply, operand0=inverse_scale[0:rows, :]
        )
    # The largest score of a fully masked query is a masked one.
    factor = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=factor,
        data=state.peak[0:rows, :],
        op0=nl.greater,
        operand0=MASKED / 2,
        op1=nl.multiply,
        operand1=inverse,
    )
    return factor
