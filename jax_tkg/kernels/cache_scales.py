"""float8 caches, which hold keys and values times a scale, clipped to the format's range.

Cached keys and values enter products as they are stored. The new ones, which are attended
unrounded, are multiplied by the scale beside them; the softmax and its result are divided by it.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS
from .sizes import is_multipliable


class CacheScales(NKIObject):
    """The scales of a layer's caches, on all partitions; None for a cache in the compute dtype.

    Attributes:
      key: [128, 1] float32.
      inverse_key: [128, 1] float32.
      value: [128, 1] float32.
      inverse_value: [128, 1] float32.
    """

    def __init__(self):
        self.key = None
        self.inverse_key = None
        self.value = None
        self.inverse_value = None


def load_cache_scales(k_scale, v_scale, context):
    """The `CacheScales` of a layer, of `LayerTensor`s [1, 1] or None."""
    scales = CacheScales()
    if k_scale == None and v_scale == None:
        return scales
    constants = context.constants
    row = context.loaded.take(1, 2, nl.float32)
    given = [k_scale, v_scale]
    for index in range(2):
        scale = given[index]
        own = row[:, index : index + 1]
        if scale != None:
            scale.load(own, scale.view)
        else:
            nisa.memset(dst=own, value=1.0)
    spread = nl.ndarray((PARTITIONS, 2), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread,
        stationary=constants.ones[0:1, :],
        moving=row,
        is_stationary_onezero=True,
        accumulate=False,
    )
    both = nl.ndarray((PARTITIONS, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=both, src=spread)
    inverse = nl.ndarray((PARTITIONS, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=both)
    if k_scale != None:
        scales.key = both[:, 0:1]
        scales.inverse_key = inverse[:, 0:1]
    if v_scale != None:
        scales.value = both[:, 1:2]
        scales.inverse_value = inverse[:, 1:2]
    return scales


def beside_cached(columns, scale):
    """New keys or values as they are multiplied beside cached ones: times the scale, if any.

    Those of 16 bits become bfloat16, which holds every product.

    Args:
      columns: [P, ...] in the compute dtype.
      scale: [128, 1] float32 or None.
    """
    if scale == None:
        return columns
    dtype = nl.bfloat16
    if columns.dtype == nl.float32:
        dtype = nl.float32
    scaled = nl.ndarray(columns.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=scaled, data=columns, op0=nl.multiply, operand0=scale[0 : columns.shape[0], :]
    )
    return scaled


def as_stored(columns, scale, dtype, context):
    """New keys or values [P, ...] as a cache of `dtype` holds them; `scale` as above."""
    if scale == None:
        return columns
    largest = largest_value(dtype)
    wide = nl.ndarray(columns.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=wide,
        data=columns,
        op0=nl.multiply,
        operand0=scale[0 : columns.shape[0], :],
        op1=nl.minimum,
        operand1=largest,
    )
    shape = columns.shape
    elements = 1
    for size in shape[1:]:
        elements = elements * size
    stored = context.stored.take(shape[0], elements, dtype)
    stored = stored.reshape_dim(1, shape[1:])
    nisa.tensor_scalar(dst=stored, data=wide, op0=nl.maximum, operand0=-largest)
    return stored


def largest_value(dtype):
    """The largest finite value of a float8 dtype of caches."""
    if dtype == nl.float8_e4m3:
        return 240.0
    return 448.0


def multipliable(loaded, ring, dtype):
    """A loaded tile [P, n] of a cache, in a dtype that `dtype` can be multiplied with."""
    if is_multipliable(loaded.dtype, dtype):
        return loaded
    wide = ring.take(nl.float32)[0 : loaded.shape[0], 0 : loaded.shape[1]]
    nisa.tensor_copy(dst=wide, src=loaded)
    return wide


class ScoreScale(NKIObject):
    """A factor of scores, which a float8 cache's scale divides if `inverse` is not None.

    Args:
      number: the factor.
      inverse: [128, 1] float32: one over the scale of the keys; or None.
    """

    def __init__(self, number, inverse=None):
        self.number = number
        self.tile = None
        if inverse != None:
            self.tile = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=self.tile, data=inverse, op0=nl.multiply, operand0=number)

    def of_rows(self, rows):
        """What an instruction on `rows` partitions multiplies by."""
        if self.tile == None:
            return self.number
        return self.tile[0:rows, :]

    def negative(self):
        """The same on all partitions, times -1."""
        if self.tile == None:
            return -self.number
        negative = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=negative, data=self.tile, op0=nl.multiply, operand0=-1.0)
        return negative
