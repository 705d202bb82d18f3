"""The weighted sum of a layer's experts."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import PARTITIONS, PSUM_BANK, adds_experts_in_psum, ceiling_divide
from .linear import parts_of_banks, ranges_of_tiles
from .residual_product import sent_chunks
from .row_loads import Columns
from .weight_ring import leaves_numbers


class ExpertSum(NKIObject):
    """The weighted sum of the experts that this core runs, of all features.

    Where results are not scaled, the tokens' weights are factors of the activations and of the
    biases, and products of one expert are added to those before: in PSUM where the sum fits.

    Attributes:
      weighted: whether activations and biases have these factors.
      in_psum: whether the sum stays in PSUM.
      tile: [128, banks, 512] in PSUM, or [128, H/128, T]; float32.
      begun: whether an expert was added.
      biases: `ExpertVectors` whose biases are still to be added.
    """

    def __init__(self, layer, passes, context):
        """Args: layer: its operands; passes: how many experts both cores run; context."""
        sizes = context.sizes
        W_down = layer.W_down
        chunks = sizes.hidden_chunks()
        self.chunks = chunks
        self.T = sizes.T
        self.per_bank = PSUM_BANK // sizes.T
        self.weighted = W_down.scale == None and leaves_numbers(sizes.dtype)
        self.in_psum = self.weighted and adds_experts_in_psum(chunks, sizes.T)
        self.begun = False
        self.passes = passes
        self.biases = []
        if self.in_psum:
            banks = ceiling_divide(chunks, self.per_bank)
            self.tile = nl.ndarray((PARTITIONS, banks, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
        else:
            self.tile = nl.ndarray((PARTITIONS, chunks, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
            nisa.memset(dst=self.tile, value=0.0)

    def add(self, expert, context, is_last=False):
        """Adds the result of an `Expert`, or of `NarrowExperts`, after `expand`.

        If it is the last, what the other core waits for is complete first.
        """
        if not self.weighted:
            expert.contract_into(self.tile, context)
            return
        if self.in_psum:
            early = None
            if is_last:
                early = sent_chunks(context)
            expert.add_to(self.tile, self.chunks, self.begun, context, early=early)
        else:
            expert.add_in_sbuf(self.tile, context)
        self.begun = True
        self._add_biases(context)

    def add_bias(self, vectors):
        """Has the biases of a batch's `ExpertVectors` added with the next expert, if there are any.

        They may be of that expert, or of others.
        """
        if vectors.down_rows != None:
            self.biases.append(vectors)

    def own_tiles(self, context):
        """(first, last) of the tiles to which this core adds biases.

        Those of the features that it keeps; or the first core all, if only that runs experts.
        """
        core = context.core
        if self.passes < core.count:
            return (0, (1 - core.index) * self.chunks)
        share = context.hidden_share()
        return (share.first + share.skipped, share.first + share.count)

    def _add_biases(self, context):
        """Adds the biases: the tokens' weights multiply their rows."""
        first, last = self.own_tiles(context)
        columns = Columns(0, PARTITIONS, order=context.hidden_order())
        for vectors in self.biases:
            if self.in_psum:
                for tile in range(first, last):
                    place = tile % self.per_bank * self.T
                    nisa.nc_matmul(
                        dst=self.tile[:, tile // self.per_bank, place : place + self.T],
                        stationary=columns.tile(vectors.down_rows, first, tile),
                        moving=vectors.down_weights,
                        accumulate=True,
                    )
            else:
                self._add_rows(vectors, first, last, columns)
        self.biases = []

    def _add_rows(self, vectors, first, last, columns):
        """Adds the biases of tiles first .. last to the sum in SBUF, a PSUM bank at a time."""
        begun = first
        while first < last:
            size = min(self.per_bank, last - first)
            product = nl.ndarray((PARTITIONS, size, self.T), dtype=nl.float32, buffer=nl.psum)
            for tile in range(size):
                nisa.nc_matmul(
                    dst=product[:, tile, :],
                    stationary=columns.tile(vectors.down_rows, begun, first + tile),
                    moving=vectors.down_weights,
                    accumulate=False,
                )
            own = self.tile[:, first : first + size, :]
            nisa.tensor_tensor(dst=own, data1=own, data2=product, op=nl.add)
            first += size

    def whole(self, context):
        """[128, H/128, T] float32 in SBUF, after the last expert."""
        if self.begun:
            self._add_biases(context)
        if not self.in_psum:
            return self.tile
        summed = nl.ndarray((PARTITIONS, self.chunks, self.T), dtype=nl.float32, buffer=nl.sbuf)
        if self.begun:
            ranges = ranges_of_tiles(0, self.chunks, sent_chunks(context))
            for part in parts_of_banks(ranges, self.per_bank, self.per_bank):
                first, size = part
                place = first % self.per_bank * self.T
                of_bank = self.tile[:, first // self.per_bank, place : place + size * self.T]
                nisa.tensor_copy(
                    dst=summed[:, first : first + size, :],
                    src=of_bank.reshape_dim(1, (size, self.T)),
                )
        else:
            nisa.memset(dst=summed, value=0.0)
        return summed
