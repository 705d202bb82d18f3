"""Products whose columns are features of the residual stream: those with W_out and W_down.

Each of two cores holds half of the residual stream. It multiplies its half of the columns with all
rows, which are half rows in HBM; or all columns with half of the rows, and adds the other core's
sums. Whole rows load faster, and cost a swap.
"""

import nki.language as nl
from nki.language import NKIObject

from .exchange import add_other_core
from .limits import PARTITIONS
from .linear import linear
from .row_loads import Columns, most_tiles, product_loads


class ResidualLoads(NKIObject):
    """The loads of such a product.

    Attributes:
      divides_rows: whether this core multiplies half of the rows.
      first, last: the chunks of the rows that it multiplies.
      loads: `product_loads`.
    """

    def __init__(self, weight, chunks, rows, context, divided=False):
        """The loads of such a product.

        Args:
          weight: `LayerTensor` [n, H].
          chunks: of its rows.
          rows: their `FeatureOrder`.
          context: the launch's `Context`.
          divided: whether each of two cores multiplies half of the chunks; see `divides_rows`.
        """
        core = context.core
        share = context.hidden_share()
        tiles = share.count
        self.divides_rows = divided
        self.first = 0
        self.last = chunks
        if divided:
            tiles = share.total
            self.first = core.index * (chunks // 2)
            self.last = self.first + chunks // 2
        columns = self.columns(None, context)
        count = self.last - self.first
        self.loads = product_loads(weight, columns, tiles, count, context, rows, self.first)

    def columns(self, scale, context):
        """The `Columns` that this core multiplies, with the scales of those that it holds."""
        order = context.hidden_order()
        if self.divides_rows:
            return Columns(0, PARTITIONS, order=order)
        share = context.hidden_share()
        return Columns(share.first * PARTITIONS, PARTITIONS, scale=scale, order=order)


def residual_product(x, weight, loads, context, scale=None):
    """[128, n, T] float32: this core's features of x @ weight, of this rank.

    Args:
      x: [width, last - first, T]: the chunks that `loads` names.
      weight: `LayerTensor` [m, H].
      loads: its `ResidualLoads`, which may have begun.
      context: the launch's `Context`.
      scale: `load_features` of the weight's scale, or None.
    """
    T = context.sizes.T
    share = context.hidden_share()
    columns = loads.columns(scale, context)
    if not loads.divides_rows:
        out = nl.ndarray((PARTITIONS, share.count, T), dtype=nl.float32, buffer=nl.sbuf)
        linear(out, x, weight, columns, context, loads=loads.loads)
        return out
    partial = nl.ndarray((PARTITIONS, share.total, T), dtype=nl.float32, buffer=nl.sbuf)
    # The part that the other core waits for comes first.
    other = _other_first(share)
    early = (other, other + share.count)
    linear(partial, x, weight, columns, context, loads=loads.loads, early=early)
    multiplier = None
    if scale != None:
        multiplier = scale.expand_dim(2).broadcast(2, T)
    return own_share(partial, context, multiplier=multiplier)


def own_share(summed, context, multiplier=None):
    """[128, n, T] float32: this core's chunks of what both cores have summed.

    Args:
      summed: [128, H/128, T] float32, what this core has of all chunks.
      context: the launch's `Context`.
      multiplier: [128, n, T] float32, by which the sums of two cores are multiplied; or None.
    """
    core = context.core
    if core.count == 1:
        return summed
    share = context.hidden_share()
    other = _other_first(share)
    own = nl.ndarray((PARTITIONS, share.count, context.sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    add_other_core(
        own,
        summed[:, share.first : share.first + share.count, :],
        core,
        multiplier=multiplier,
        sent=summed[:, other : other + share.count, :],
    )
    return own


def sent_chunks(context):
    """(first, last) of the chunks that the other core keeps of sums of all; None with one core."""
    if context.core.count == 1:
        return None
    share = context.hidden_share()
    first = _other_first(share)
    return (first, first + share.count)


def _other_first(share):
    """The first tile of the other core's `Share`."""
    if share.first > 0:
        return 0
    return share.total - share.count


def divides_rows(weight, chunks, context):
    """Whether two cores can divide the `chunks` chunks of a weight's rows, and load whole rows."""
    if context.core.count == 1 or chunks % 2 > 0:
        return False
    sizes = context.sizes
    tiles = sizes.hidden_chunks()
    dtype = weight.view.dtype
    return most_tiles(dtype, sizes, chunks // 2, tiles, PARTITIONS) >= tiles
