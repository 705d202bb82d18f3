"""Passes without an expert, between those of the experts that a rank runs."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import LISTED_AT_ONCE


class Gaps(NKIObject):
    """Where a list of experts may have passes without one: in pairs, after pairs of experts.

    Such a pass loads nothing, and takes as many products as others, which wait for loads. Loads
    catch up meanwhile, so that it costs no time unless it is one of the last. Two cores take the
    passes in turn; so each has as many of either kind.

    Attributes:
      places: [1, n] float32: 0, 1, 2 and so on.
      column: [n, 1] float32: the same.
      before: [1, n] float32: how many gaps there may be before a place.
      allowed: [1, n] float32: 0 where there is none; else more than there are places.
    """

    def __init__(self):
        size = LISTED_AT_ONCE
        fours = size // 4
        self.places = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=self.places, pattern=[[1, size]], offset=0, channel_multiplier=0)
        self.column = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=self.column, pattern=[[0, 1]], offset=0, channel_multiplier=1)
        self.before = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=self.before, pattern=[[2, fours], [0, 4]], offset=0, channel_multiplier=0)
        before = self.before.reshape_dim(1, (fours, 4))
        nisa.tensor_scalar(dst=before[:, :, 3], data=before[:, :, 3], op0=nl.add, operand0=1.0)
        self.allowed = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=self.allowed, value=0.0)
        allowed = self.allowed.reshape_dim(1, (fours, 4))
        nisa.memset(dst=allowed[:, :, 2:4], value=2.0 * size)

    def between(self, order, count, constants):
        """[1, n] float32: `order`, with those of its zeros between others for which there are gaps.

        Args:
          order: [1, n] float32: numbers in descending order, and then zeros.
          count: how many of them are passes.
          constants: the launch's `Constants`.
        """
        size = order.shape[1]
        is_zero = nl.ndarray((1, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=is_zero, data=order[:, 0:count], op0=nl.equal, operand0=0.0)
        zeros = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=zeros, op=nl.add, data=is_zero, axis=(1,))
        # By how much a place exceeds that of `order` which comes to it; at a gap by more than all.
        shift = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
        before = self.before[:, 0:size]
        nisa.scalar_tensor_tensor(
            dst=shift,
            data=before,
            op0=nl.less,
            operand0=zeros,
            op1=nl.multiply,
            operand1=self.allowed[:, 0:size],
        )
        nisa.scalar_tensor_tensor(
            dst=shift, data=before, op0=nl.minimum, operand0=zeros, op1=nl.add, operand1=shift
        )
        sources = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=sources, data1=self.places[:, 0:size], data2=shift, op=nl.subtract)
        # A product with ones copies a row to all partitions; one with the matrix that is 1 where a
        # place's source is a partition moves the numbers of the partitions to their places.
        spread = nl.ndarray((size, size), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=spread, stationary=constants.ones[0:1, 0:size], moving=sources, accumulate=False
        )
        is_source = nl.ndarray((size, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=is_source, data=spread, op0=nl.equal, operand0=self.column[0:size, :]
        )
        turned = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(dst=turned, data=order, engine=nisa.engine.tensor)
        numbers = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=numbers, src=turned, engine=nisa.engine.scalar)
        moved = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=moved, stationary=numbers, moving=is_source, accumulate=False)
        found = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=found, src=moved)
        return found
