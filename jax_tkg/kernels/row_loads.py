"""The loads of a product: rows of a weight, for some tiles of its columns, block by block."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .double_rows import splits
from .limits import (
    LEAST_PIECE_BYTES,
    PARTED_BLOCKS,
    RING_SLOTS,
    TERMS,
    tiles_of_a_product,
)
from .sizes import bytes_of, is_multipliable, product_bytes


class Columns(NKIObject):
    """Columns of a weight: tiles of `width` columns, at most 128, that begin at column `first`.

    Attributes:
      scale: the factor of each column, [width, tiles] float32 on chip, or None.
      bias: what is added to each column, [width, tiles] on chip, or None.
      vectors: the `ColumnVectors` that make scale and bias once they are needed, instead of these;
        or None.
      order: the `FeatureOrder` of all of the weight's columns, of which a tile has a chunk; None:
        a tile's columns are neighbors.
    """

    def __init__(self, first, width, scale=None, bias=None, vectors=None, order=None):
        self.first = first
        self.width = width
        self.scale = scale
        self.bias = bias
        self.vectors = vectors
        self.order = order

    def scale_of(self, first, last):
        """[width, last - first]: the scale of these tiles, or None."""
        if self.vectors != None:
            return self.vectors.scale_of(first, last)
        if self.scale == None:
            return None
        return self.scale[:, first:last]

    def bias_of(self, first, last):
        """[width, last - first]: the bias of these tiles, or None."""
        if self.vectors != None:
            return self.vectors.bias_of(first, last)
        if self.bias == None:
            return None
        return self.bias[:, first:last]

    def tiles_at_once(self, done, most):
        """How many tiles from tile `done` on, at most `most`, are neighbors in the weight."""
        if self.order == None:
            return most
        return self.order.whole_groups(self.first // self.width + done, most)

    def tile(self, loaded, begun, tile):
        """[n, width]: a tile's columns, of rows [n, m] that begin with those of tile `begun`."""
        if self.order == None:
            start = (tile - begun) * self.width
            return loaded[:, start : start + self.width]
        chunk = self.first // self.width
        return self.order.columns(loaded, chunk + begun, chunk + tile)

    def tile_of_rows(self, loaded, begun, tile):
        """[n, r, width]: the same of rows [n, r, m]."""
        if self.order == None:
            start = (tile - begun) * self.width
            return loaded[:, :, start : start + self.width]
        chunk = self.first // self.width
        return self.order.columns_of_rows(loaded, chunk + begun, chunk + tile)


def product_loads(weight, columns, tiles, chunks, context, rows, first_chunk=0):
    """The loads of a product: `RowLoads` for each group of tiles that are accumulated together.

    Args:
      weight: `LayerTensor` [n, m].
      columns: which columns; scale and bias do not matter.
      tiles: of columns.
      chunks: of the weight's rows.
      context: the launch's `Context`.
      rows: the `FeatureOrder` of the weight's rows.
      first_chunk: the first chunk of rows.
    """
    sizes = context.sizes
    dtype = weight.view.dtype
    double_rows = splits(dtype, sizes, chunks, tiles)
    most = most_tiles(dtype, sizes, chunks, tiles, columns.width)
    loads = []
    done = 0
    while done < tiles:
        count = columns.tiles_at_once(done, min(most, tiles - done))
        group = RowLoads(
            weight, columns, done, count, rows, first_chunk, chunks, double_rows, context
        )
        loads.append(group)
        done += count
    return loads


def share_loads(weight, columns, tiles, context):
    """The loads of a `linear_of_shares`; the list is empty if this core has no features."""
    share = context.hidden_share()
    chunks = share.count - share.skipped
    if chunks == 0:
        return []
    first = share.first + share.skipped
    return product_loads(weight, columns, tiles, chunks, context, context.hidden_order(), first)


def most_tiles(dtype, sizes, chunks, tiles, width):
    """How many of `tiles` tiles of a weight's columns are accumulated together, at most.

    Args:
      dtype: of the weight.
      sizes: `Sizes`.
      chunks: of the weight's rows.
      tiles: of its columns.
      width: columns of a tile.
    """
    if splits(dtype, sizes, chunks, tiles):
        return tiles_of_a_product(TERMS * sizes.T, width, 2 * bytes_of(dtype))
    return tiles_of_a_product(sizes.T, width, product_bytes(dtype, sizes.dtype))


def begin(loads):
    """Begins the first of `product_loads`: before a swap or an all-reduce that comes in between.

    An engine that triggers both would else trigger them only afterwards.
    """
    if len(loads) > 0:
        first = loads[0]
        first.begin()


def in_double_rows(loads):
    """Whether the product of some `product_loads` is in double rows."""
    if len(loads) == 0:
        return False
    first = loads[0]
    return first.double_rows


def split_for(loads):
    """The dtype of the weight of some `product_loads` in double rows; None in single rows."""
    if not in_double_rows(loads):
        return None
    first = loads[0]
    weight = first.weight
    return weight.view.dtype


def load_parts(ranges, tiles, tile_bytes):
    """(first, last) of the parts in which rows of `tiles` tiles of columns load: not empty.

    One part, if one of the `ranges` were a piece of HBM too short for efficient transfers.

    Args:
      ranges: (first, last) of tiles, in the order in which products wait for them.
      tiles: how many there are.
      tile_bytes: of a row of a tile.
    """
    parts = []
    least = tiles
    for each in ranges:
        first, last = each
        if last > first:
            parts.append((first, last))
            least = min(least, last - first)
    if least * tile_bytes < LEAST_PIECE_BYTES:
        return [(0, tiles)]
    return parts


class RowLoads(NKIObject):
    """The loads of the rows of a weight for some tiles of columns, block by block.

    Attributes:
      columns: `Columns`.
      done, count: `count` tiles of them, from tile `done` on.
      rows: the `FeatureOrder` of the weight's rows.
      first_chunk: chunk of `rows` where the first block begins.
      blocks: (first, size) of the chunks whose rows each load brings.
      double_rows: whether two rows are multiplied at once, by the terms of the activation.
      last_parts: (first, last) of the tiles that the last load brings one after another.
      converts: whether what is loaded takes another buffer, in float32, before it is multiplied.
      begun: what the first loads bring, those that have begun before the product.
      loaded: what all loads brought, in their order.
    """

    def __init__(
        self, weight, columns, done, count, rows, first_chunk, chunks, double_rows, context
    ):
        self.weight = weight
        self.columns = columns
        self.done = done
        self.count = count
        self.rows = rows
        self.first_chunk = first_chunk
        self.double_rows = double_rows
        self.ring = context.ring
        self.begun = []
        self.loaded = []
        self.last_parts = [(0, count)]
        dtype = context.sizes.dtype
        row_bytes = count * columns.width * product_bytes(weight.view.dtype, dtype)
        self.converts = not is_multipliable(weight.view.dtype, dtype)
        unit = 1
        if double_rows:
            unit = 2
        most = max(1, self.ring.slot_bytes // row_bytes)
        self.blocks = rows.blocks(first_chunk, chunks, most, unit=unit)

    def begin(self):
        """Begins as many loads as the ring has buffers, all of which were read by now.

        None where conversions take further buffers.
        """
        if self.converts:
            return
        while len(self.begun) < min(RING_SLOTS, len(self.blocks)):
            self.begun.append(self._load(len(self.begun), self.ring))

    def begin_held(self, held):
        """Begins the first loads, as many as `held`, a `WeightRing`, has buffers.

        What other loads do to the launch's ring before the product does not matter to them.
        """
        held.restart()
        while len(self.begun) < min(len(held.slots), len(self.blocks)):
            self.begun.append(self._load(len(self.begun), held))

    def part_last(self, ranges):
        """Has the last loads bring a chunk each, and the last chunk's ranges of the tiles.

        So few products wait for the last load. Nothing changes where a range, (first, last), were a
        short piece of HBM. Ranges load in their order.
        """
        columns = self.columns
        weight = self.weight
        item = bytes_of(weight.view.dtype)
        self.last_parts = load_parts(ranges, self.count, columns.width * item)
        if len(self.last_parts) == 1:
            return
        blocks = []
        for number in range(len(self.blocks)):
            start, size = self.blocks[number]
            if number + PARTED_BLOCKS < len(self.blocks):
                blocks.append((start, size))
            else:
                for chunk in range(size):
                    blocks.append((start + chunk, 1))
        self.blocks = blocks

    def load(self, index, dtype):
        """[width, size, columns]: the rows of block `index`, to be multiplied with `dtype`."""
        if index < len(self.begun):
            loaded = self.begun[index]
        else:
            loaded = self._load(index, self.ring)
        if dtype == nl.float32 and loaded.dtype != nl.float32:
            # The Tensor Engine multiplies float32 with nothing else.
            rows, size, count = loaded.shape
            buffer = self.ring.take(nl.float32)
            wide = buffer[0:rows, 0 : size * count].reshape_dim(1, (size, count))
            nisa.tensor_copy(dst=wide, src=loaded)
            return wide
        return loaded

    def _load(self, index, ring):
        """Loads block `index` into the next buffer of `ring`."""
        start, size = self.blocks[index]
        rows = self.rows
        width = self.columns.width
        count = self.count * width
        first = self.columns.first + self.done * width
        weight = self.weight
        view = weight.view
        buffer = ring.take(view.dtype)
        loaded = buffer[0 : rows.width, 0 : size * count].reshape_dim(1, (size, count))
        of_rows = rows.rows(view, self.first_chunk + start, size)
        of_rows = of_rows[:, :, :, first : first + count]
        groups = of_rows.shape[1]
        target = loaded.reshape_dim(1, (groups, of_rows.shape[2]))
        parts = [(0, self.count)]
        if index + 1 == len(self.blocks):
            parts = self.last_parts
        whole = of_rows.shape[2] * count * bytes_of(view.dtype)
        if len(parts) > 1:
            for part in parts:
                left = part[0] * width
                right = part[1] * width
                weight.load(target[:, :, :, left:right], of_rows[:, :, :, left:right])
        elif whole < LEAST_PIECE_BYTES:
            weight.load(target, of_rows)
        else:
            # Whole rows of a group are one piece of HBM; those of several groups are not.
            for group in range(groups):
                weight.load(target[:, group, :, :], of_rows[:, group, :, :])
        self.loaded.append(loaded)
        return loaded

    def clear(self):
        """Writes zeros over what was loaded."""
        for loaded in self.loaded:
            nisa.memset(dst=loaded, value=0.0, engine=nisa.engine.gpsimd)

    def tile(self, loaded, chunk, tile):
        """[width, columns of a tile]: a chunk of a loaded block, tile `tile` of `count`."""
        columns = self.columns
        return columns.tile(loaded[:, chunk, :], self.done, self.done + tile)

    def tile_of_rows(self, loaded, chunk, rows, tile):
        """[width, rows, columns of a tile]: the same of `rows` chunks."""
        columns = self.columns
        of_rows = loaded[:, chunk : chunk + rows, :]
        return columns.tile_of_rows(of_rows, self.done, self.done + tile)
