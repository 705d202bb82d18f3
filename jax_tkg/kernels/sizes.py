"""Sizes of one launch, and how work is divided between the two cores of a logical core."""

import nki.language as nl
from nki.language import NKIObject

PARTITIONS = 128
PSUM_BANK = 512
"""f32 numbers in one PSUM bank of one partition (2 KiB); a matmul writes within one bank."""

PSUM_GROUP_BANKS = 4
"""Banks that one accumulation uses: half of PSUM, so that the next can start while it is read."""


class Sizes(NKIObject):
    """The letters of `jax_tkg.call.arguments`, T = B * S tokens, and the core of this program."""

    def __init__(self, B, S, H, I, d, q, k, S_prior, S_max, dtype, eps, clamp_bound):  # noqa: E741
        self.B = B
        self.S = S
        self.T = B * S
        self.H = H
        self.I = I
        self.d = d
        self.q = q
        self.k = k
        # Cache slots that are attended: S_ctx, less S where the mask is unified.
        self.S_prior = S_prior
        self.S_max = S_max
        self.dtype = dtype
        self.eps = eps
        self.clamp_bound = clamp_bound
        # A launch on one physical core has no grid.
        if nl.program_ndim() == 0:
            self.cores = 1
            self.core = 0
        else:
            self.cores = nl.num_programs(0)
            self.core = nl.program_id(0)

    def hidden_chunks(self):
        """Chunks of 128 hidden features."""
        return self.H // PARTITIONS

    def hidden_share(self):
        """The chunks of the residual stream that this core holds."""
        return Share(self.hidden_chunks(), self.cores, self.core)

    def mlp_chunks(self):
        """Chunks of 128 MLP features."""
        return self.I // PARTITIONS


class Share(NKIObject):
    """Which of `total` tiles this core computes: `count` of them from `first`.

    An odd number divides with one tile that both cores compute. In sums over the tiles of both the
    second core therefore leaves its first `skipped` tiles out.
    """

    def __init__(self, total, cores, core):
        self.total = total
        if cores == 1:
            self.count = total
            self.first = 0
            self.skipped = 0
        else:
            self.count = (total + 1) // 2
            self.first = core * (total - self.count)
            self.skipped = core * (2 * self.count - total)


PIECE_ELEMENTS = 512
"""Of a partition: the pieces in which the residual stream goes from engine to engine."""


def pieces(count, T):
    """(first, last) of pieces of `count` chunks of T columns, of `PIECE_ELEMENTS` or one chunk."""
    at_once = max(1, PIECE_ELEMENTS // T)
    found = []
    first = 0
    while first < count:
        found.append((first, min(first + at_once, count)))
        first += at_once
    return found


def ceiling_divide(numerator, denominator):
    """The quotient, rounded up."""
    return (numerator + denominator - 1) // denominator
