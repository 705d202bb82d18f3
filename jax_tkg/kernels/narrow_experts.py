"""Experts of narrow features: one or two that run together share tiles of their weights' columns.

Where an expert's I features are no whole tiles of 128, the rest of gate and up would leave a part
of the Tensor Engine unused, and the rows of W_down a part of the DMA engines. Here the features of
two experts fill a tile, or those of gate and up do, and their rows of W_down are multiplied at
once.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .feature_order import FeatureOrder
from .limits import (
    NARROW_PIECES,
    NARROW_PRODUCT_BANKS,
    PARTITIONS,
    PSUM_BANK,
    RING_SLOT_BYTES,
    ceiling_divide,
)
from .linear import parts_of_banks, ranges_of_tiles, store_product
from .mlp import activate, multiply_up
from .row_loads import Columns, load_parts
from .sizes import bytes_of


class NarrowChunk(NKIObject):
    """A chunk on the partitions: some features of each of some experts, one after another.

    Attributes:
      first, width: the features.
      expert, count: the experts, counted among those that run together.
    """

    def __init__(self, first, width, expert, count):
        self.first = first
        self.width = width
        self.expert = expert
        self.count = count

    def rows(self):
        """Partitions that it fills."""
        return self.count * self.width


class NarrowTiles(NKIObject):
    """How the features of experts that run together lie in tiles.

    Attributes:
      experts: how many run together: one or two.
      features: I, those of each.
      chunks: `NarrowChunk`s of their product of gate and up: first those that fill the partitions,
        of which gate and up have tiles of their own; gate and up of the others share a tile.
      whole: how many fill the partitions.
    """

    def __init__(self, features, experts):
        self.experts = experts
        self.features = features
        self.chunks = []
        first = 0
        while first + PARTITIONS <= features:
            for expert in range(experts):
                self.chunks.append(NarrowChunk(first, PARTITIONS, expert, 1))
            first += PARTITIONS
        for width in NARROW_PIECES:
            if first + width <= features:
                self.chunks.append(NarrowChunk(first, width, 0, experts))
                first += width
        self.whole = 0
        for chunk in self.chunks:
            if chunk.rows() == PARTITIONS:
                self.whole += 1

    def count(self):
        """Tiles of gate and up."""
        return self.whole + len(self.chunks)

    def matrices_at_once(self):
        """How many matrices of gate and up must be in one buffer, for tiles that they share."""
        if self.whole < len(self.chunks):
            return 2 * self.experts
        return self.experts

    def fit(self, item, sizes):
        """Whether the weights, `item` bytes an element, fit in buffers and the products in PSUM."""
        gate_up = self.matrices_at_once() * sizes.hidden_chunks() * self.features * item
        down = len(self.chunks) * sizes.H * item
        banks = ceiling_divide(self.count(), PSUM_BANK // sizes.T)
        return max(gate_up, down) <= RING_SLOT_BYTES and banks <= NARROW_PRODUCT_BANKS


def narrow_experts(layer, in_psum, context):
    """How many experts of a layer run together in tiles that they share; 0 if none do.

    Args:
      layer: the layer's operands.
      in_psum: whether the sum of the experts stays in PSUM.
      context: the launch's `Context`.
    """
    W_gate = layer.W_gate
    W_up = layer.W_up
    weight = W_gate.tensor
    features = weight.view.shape[2]
    plain = True
    for matrix in (W_gate, W_up):
        plain = plain and matrix.scale == None and matrix.bias == None
    divides = features % PARTITIONS > 0 and features % NARROW_PIECES[len(NARROW_PIECES) - 1] == 0
    if not (in_psum and plain and divides):
        return 0
    for experts in (2, 1):
        tiles = NarrowTiles(features, experts)
        if tiles.fit(bytes_of(weight.view.dtype), context.sizes):
            return experts
    return 0


class NarrowExperts(NKIObject):
    """Experts that run together; like `Expert`, for a sum in PSUM.

    Attributes:
      tiles: `NarrowTiles`.
      W_gate, W_up, W_down: lists of their matrices, each a `LayerTensor`.
      indices: their places in the `Batch`.
      batch: it.
      half: on which half of the partitions the first chunk lies that does not fill them; the next
        such chunk is on the other, so that all DMA engines load rows of W_down.
      hidden: [128, chunks, T], the activated products of gate and up times the tokens' weights;
        None before `expand`.
    """

    def __init__(self, layer, batch, indices, half, may_be_absent):
        """Passes `indices` of a `Batch`; may_be_absent: as `LayerTensor.expert` takes it."""
        W_gate = layer.W_gate
        W_up = layer.W_up
        W_down = layer.W_down
        self.tiles = NarrowTiles(W_gate.tensor.view.shape[2], len(indices))
        self.batch = batch
        self.indices = indices
        self.half = half
        self.W_gate = []
        self.W_up = []
        self.W_down = []
        for index in indices:
            number = batch.numbers[:, index : index + 1]
            self.W_gate.append(W_gate.tensor.expert(number, may_be_absent))
            self.W_up.append(W_up.tensor.expert(number, may_be_absent))
            self.W_down.append(W_down.tensor.expert(number, may_be_absent))
        self.hidden = None

    def expand(self, x, context):
        """Makes `hidden` of the `Normed` x, of all features."""
        sizes = context.sizes
        T = sizes.T
        tiles = self.tiles
        whole = tiles.whole
        gate, up, together = self._load_gate_up(context)
        shape = (PARTITIONS, NARROW_PRODUCT_BANKS, PSUM_BANK)
        product = nl.ndarray(shape, dtype=nl.float32, buffer=nl.psum)
        for index in range(whole):
            self._multiply(product, index, gate, tiles.chunks[index], x)
        for index in range(whole):
            self._multiply(product, whole + index, up, tiles.chunks[index], x)
        for index in range(whole, len(tiles.chunks)):
            self._multiply(product, whole + index, together, tiles.chunks[index], x)
        out = nl.ndarray((PARTITIONS, tiles.count(), T), dtype=nl.float32, buffer=nl.sbuf)
        self._read_out(out, product, x.token_factor(context))
        hidden = nl.ndarray((PARTITIONS, len(tiles.chunks), T), dtype=sizes.dtype, buffer=nl.sbuf)
        if whole > 0:
            activated = out[:, 0:whole, :]
            activate(activated, context.arithmetic)
            for index in range(whole):
                of_chunk = activated[:, index : index + 1, :]
                self._weigh(of_chunk, of_chunk, tiles.chunks[index])
            multiply_up(
                hidden[:, 0:whole, :], activated, out[:, whole : 2 * whole, :], context.arithmetic
            )
        for index in range(whole, len(tiles.chunks)):
            self._multiply_shared(
                hidden[:, index : index + 1, :],
                out[:, whole + index : whole + index + 1, :],
                index,
                context,
            )
        if self.batch.present != None:
            hidden = self._zero_absent(hidden, context)
        self.hidden = hidden

    def _load_gate_up(self, context):
        """(gate, up, together): [128, matrices, H/128, I] of the experts' W_gate, W_up, and both.

        `together` is None unless some tile has columns of both.
        """
        tiles = self.tiles
        experts = tiles.experts
        if tiles.matrices_at_once() > experts:
            together = self._load_matrices(self.W_gate + self.W_up, context)
            return (together[:, 0:experts], together[:, experts : 2 * experts], together)
        gate = self._load_matrices(self.W_gate, context)
        up = self._load_matrices(self.W_up, context)
        return (gate, up, None)

    def _load_matrices(self, weights, context):
        """[128, n, H/128, I]: n matrices in one buffer; of H, p * H/128 + c is in chunk c."""
        sizes = context.sizes
        chunks = sizes.hidden_chunks()
        features = self.tiles.features
        ring = context.ring
        first = weights[0]
        buffer = ring.take(first.view.dtype)
        used = buffer[:, 0 : len(weights) * chunks * features]
        loaded = used.reshape_dim(1, (len(weights), chunks, features))
        rows = FeatureOrder(PARTITIONS, groups=[(0, chunks)])
        for index in range(len(weights)):
            weight = weights[index]
            weight.load(loaded[:, index : index + 1], rows.rows(weight.view, 0, chunks))
        return loaded

    def _multiply(self, product, tile, loaded, chunk, x):
        """A tile of `product` = a chunk's columns of the loaded matrices, of x's tokens."""
        moving = x.tile
        chunks = moving.shape[1]
        T = moving.shape[2]
        per_bank = PSUM_BANK // T
        place = tile % per_bank * T
        matrices = loaded[:, chunk.expert : chunk.expert + chunk.count]
        if chunk.rows() < PARTITIONS:
            matrices = loaded
        columns = matrices.shape[1] * chunk.width
        for row in range(chunks):
            nisa.nc_matmul(
                dst=product[0:columns, tile // per_bank, place : place + T],
                stationary=matrices[:, :, row, chunk.first : chunk.first + chunk.width],
                moving=moving[:, row, :],
                accumulate=row > 0,
            )

    def _read_out(self, out, product, factor):
        """out [128, tiles, T] = `product` in PSUM times the tokens' factors."""
        tiles = self.tiles
        whole = tiles.whole
        T = out.shape[2]
        per_bank = PSUM_BANK // T
        ranges = []
        if whole > 0:
            ranges = [(0, whole), (whole, 2 * whole)]
        for tile in range(2 * whole, tiles.count()):
            ranges.append((tile, tile + 1))
        for part in parts_of_banks(ranges, per_bank, per_bank):
            first, size = part
            rows = PARTITIONS
            if first >= 2 * whole:
                chunk = tiles.chunks[first - whole]
                rows = 2 * chunk.rows()
            place = first % per_bank * T
            summed = product[0:rows, first // per_bank, place : place + size * T]
            store_product(
                out[0:rows, first : first + size, :],
                summed.reshape_dim(1, (size, T)),
                None,
                factor,
                None,
            )

    def _weigh(self, dst, gate, chunk):
        """dst = a chunk's gate, both [rows, 1, T], times the tokens' weights of its experts."""
        batch = self.batch
        weights = batch.weights
        width = chunk.width
        for number in range(chunk.count):
            first = number * width
            index = self.indices[chunk.expert + number]
            nisa.tensor_tensor(
                dst=dst[first : first + width, :, :],
                data1=gate[first : first + width, :, :],
                data2=weights[first : first + width, index : index + 1, :],
                op=nl.multiply,
            )

    def _multiply_shared(self, hidden, out, index, context):
        """Chunk `index` of hidden, [128, 1, T], of the tile that its gate and up share."""
        chunk = self.tiles.chunks[index]
        rows = chunk.rows()
        arithmetic = context.arithmetic
        gate = out[0:rows, :, :]
        activate(gate, arithmetic)
        # Operands of one instruction are on the same partitions: gate comes to those of up.
        shape = (PARTITIONS, 1, context.sizes.T)
        beside = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        weighed = beside[rows : 2 * rows, :, :]
        self._weigh(weighed, gate, chunk)
        first = self._first_row(index)
        multiply_up(
            hidden[first : first + rows, :, :], weighed, out[rows : 2 * rows, :, :], arithmetic
        )

    def _first_row(self, index):
        """The partition where chunk `index` of `hidden` begins."""
        whole = self.tiles.whole
        if index < whole:
            return 0
        return (self.half + index - whole) % 2 * (PARTITIONS // 2)

    def _zero_absent(self, hidden, context):
        """`hidden`, or zeros for absent experts: what a skipped load left is numbers, but any."""
        T = context.sizes.T
        tiles = self.tiles
        batch = self.batch
        present = batch.present
        found = nl.ndarray(hidden.shape, dtype=hidden.dtype, buffer=nl.sbuf)
        nisa.memset(dst=found, value=0.0, engine=nisa.engine.gpsimd)
        for index in range(len(tiles.chunks)):
            chunk = tiles.chunks[index]
            first = self._first_row(index)
            for number in range(chunk.count):
                place = self.indices[chunk.expert + number]
                last = first + chunk.width
                of_rows = present[first:last, place : place + 1].expand_dim(2)
                nisa.tensor_copy_predicated(
                    dst=found[first:last, index : index + 1, :],
                    src=hidden[first:last, index : index + 1, :],
                    predicate=of_rows.broadcast(2, T),
                )
                first = last
        return found

    def add_to(self, summed, tiles, begun, context, early=None):
        """Adds hidden @ W_down to sums in PSUM, as `add_product` has them, after `expand`."""
        sizes = context.sizes
        T = sizes.T
        chunks = self.tiles.chunks
        ring = context.ring
        first_weight = self.W_down[0]
        dtype = first_weight.view.dtype
        buffer = ring.take(dtype)
        loaded = buffer[:, 0 : len(chunks) * sizes.H].reshape_dim(1, (len(chunks), sizes.H))
        ranges = ranges_of_tiles(0, tiles, early)
        parts = load_parts(ranges, tiles, PARTITIONS * bytes_of(dtype))
        for part in parts:
            for index in range(len(chunks)):
                self._load_down(loaded[:, index, :], index, part)
        columns = Columns(0, PARTITIONS, order=context.hidden_order())
        per_bank = PSUM_BANK // T
        for part in parts:
            # Chunk by chunk, so that only the last chunk's products wait for the last load.
            for index in range(len(chunks)):
                chunk = chunks[index]
                first = self._first_row(index)
                last = first + chunk.rows()
                for tile in range(part[0], part[1]):
                    place = tile % per_bank * T
                    nisa.nc_matmul(
                        dst=summed[:, tile // per_bank, place : place + T],
                        stationary=columns.tile(loaded[first:last, index, :], 0, tile),
                        moving=self.hidden[first:last, index, :],
                        accumulate=begun or index > 0,
                    )

    def _load_down(self, loaded, index, part):
        """Loads the rows of W_down for chunk `index` into [128, H]: tiles (first, last) of them."""
        chunk = self.tiles.chunks[index]
        left = part[0] * PARTITIONS
        right = part[1] * PARTITIONS
        row = self._first_row(index)
        for number in range(chunk.count):
            weight = self.W_down[chunk.expert + number]
            weight.load(
                loaded[row : row + chunk.width, left:right],
                weight.view[chunk.first : chunk.first + chunk.width, left:right],
            )
            row += chunk.width
