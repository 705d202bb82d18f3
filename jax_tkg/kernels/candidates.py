"""What follows the layers: final norm, head, and the largest logits of each token."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .divisions import candidates_found, head_columns, head_segments
from .exchange import swap
from .experts import all_features, stored_features
from .feature_order import FeatureOrder
from .layout import load_features
from .limits import (
    LEAST_SEARCHED,
    LOWEST_LOGIT,
    NO_LOGIT,
    PARTITIONS,
    PSUM_BANK,
    ceiling_divide,
)
from .linear import linear
from .rms_norm import rms_norm
from .row_loads import Columns
from .token_blocks import token_blocks

EIGHT = LEAST_SEARCHED
"""Values that the Vector Engine's search instructions find at once."""


class Found(NKIObject):
    """The largest logits of T tokens in each piece of the columns searched so far, piece by piece.

    Attributes:
      rounds: searches of a piece, each for eight logits.
      values: [T, size] float32, of a piece in descending order; `NO_LOGIT` where there is none.
      columns: [T, size] float32, their columns; of equal logits in ascending order.
      place: where the next piece's begin.
    """

    def __init__(self, T, size, rounds):
        self.rounds = rounds
        self.place = 0
        self.values = nl.ndarray((T, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=self.values, value=NO_LOGIT)
        self.columns = nl.ndarray((T, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=self.columns, value=0.0)

    def search(self, logits, first):
        """Adds the largest of `logits` [T, n] float32, which are those of columns from `first`."""
        start = self.place
        end = start + self.rounds * EIGHT
        largest(self.values[:, start:end], self.columns[:, start:end], logits, first)
        self.place = end


def largest(values, columns, logits, first):
    """The largest of `logits` in descending order; of equal ones the first, in ascending order.

    Args:
      values: [T, m] float32, the logits found; m is a multiple of eight.
      columns: [T, m] float32, their places in `logits`, plus `first`.
      logits: [T, n] float32, n of at least eight.
      first: what is added to the places.
    """
    T = logits.shape[0]
    count = values.shape[1]
    left = logits
    found = 0
    while found < count:
        highest = values[:, found : found + EIGHT]
        nisa.max8(dst=highest, src=left)
        places = nl.ndarray((T, EIGHT), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.nc_find_index8(dst=places, data=left, vals=highest)
        nisa.tensor_scalar(
            dst=columns[:, found : found + EIGHT],
            data=places,
            op0=nl.add,
            operand0=first * 1.0,
        )
        found += EIGHT
        if found < count:
            rest = nl.ndarray((T, logits.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
            nisa.nc_match_replace8(dst=rest, data=left, vals=highest, imm=NO_LOGIT)
            left = rest


def candidates(x, gamma, W_head, count, scale, softcap, context):
    """Each token's `count` largest logits, and their columns of W_head; alike on both cores.

    Two cores have half of the columns each. Logits are searched while the weights of the next
    columns load.

    Args:
      x: [128, n, T], the chunks of the residual stream that this core holds.
      gamma: `LayerTensor` [1, H], gain of the final norm.
      W_head: `LayerTensor` [H, V] in the compute dtype.
      count: how many.
      scale: factor of the logits that are returned.
      softcap: what a tanh bounds them to after that; 0 for nothing.
      context: the launch's `Context`.

    Returns:
      For each of the `token_blocks`, (logits [tokens, count] float32 in descending order, columns
      [tokens, count] int32 on chip); of equal logits the lowest columns, in ascending order.
    """
    sizes = context.sizes
    core = context.core
    gain = load_features(gamma, context)
    normed = rms_norm(x, gain, context)
    normed = all_features(stored_features(normed, context), normed, context)
    order = FeatureOrder(PARTITIONS, groups=[(0, sizes.hidden_chunks())])
    V = W_head.view.shape[1]
    rounds = ceiling_divide(count, EIGHT)
    most = candidates_found(V, core.count, count)
    blocks = token_blocks(sizes, core)
    found = []
    for block in blocks:
        found.append(Found(block.tokens, most, rounds))
    first, own = head_columns(V, core.count, core.index)
    for segment in head_segments(first, own):
        column, tiles, width, skipped = segment
        product = nl.ndarray((width, tiles, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
        columns = Columns(column, width)
        linear(product, normed.tile, W_head, columns, context, normed=normed, rows=order)
        for number in range(len(blocks)):
            block = blocks[number]
            last = block.first_token + block.tokens
            own_tokens = product[:, :, block.first_token : last]
            _search(found[number], own_tokens, column, skipped)
    results = []
    for of_block in found:
        values = of_block.values
        columns = of_block.columns
        if core.count > 1:
            values = _of_both_cores(values, core)
            columns = _of_both_cores(columns, core)
        results.append(_best(values, columns, count, scale, softcap))
    return results


def _search(found, product, column, skipped):
    """Adds to `Found` the largest logits of columns from `column`, product [width, tiles, T].

    The first `skipped` columns belong to the segment before.
    """
    width = product.shape[0]
    tiles = product.shape[1]
    T = product.shape[2]
    per_bank = PSUM_BANK // width
    first = 0
    while first < tiles:
        last = min(first + per_bank, tiles)
        size = (last - first) * width
        turned = nl.ndarray((T, PSUM_BANK), dtype=nl.float32, buffer=nl.psum)
        for tile in range(first, last):
            start = (tile - first) * width
            nisa.nc_transpose(
                dst=turned[:, start : start + width],
                data=product[:, tile, :],
                engine=nisa.engine.tensor,
            )
        logits = nl.ndarray((T, max(size, EIGHT)), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=logits[:, 0:size], value=LOWEST_LOGIT, engine=nisa.engine.gpsimd)
        if size < EIGHT:
            nisa.memset(dst=logits[:, size:EIGHT], value=NO_LOGIT)
        # A comparison with NaN is false.
        is_higher = nl.ndarray((T, size), dtype=nl.uint8, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=is_higher, data=turned[:, 0:size], op0=nl.greater_equal, operand0=LOWEST_LOGIT
        )
        nisa.tensor_copy_predicated(
            dst=logits[:, 0:size], src=turned[:, 0:size], predicate=is_higher
        )
        if first == 0 and skipped > 0:
            nisa.memset(dst=logits[:, 0:skipped], value=NO_LOGIT)
        found.search(logits, column + first * width)
        first = last


def _of_both_cores(mine, core):
    """[T, 2 * n]: what both cores found, [T, n] each, in the order of their columns."""
    T = mine.shape[0]
    n = mine.shape[1]
    both = nl.ndarray((T, 2, n), dtype=nl.float32, buffer=nl.sbuf)
    own = core.index
    other = 1 - own
    nisa.tensor_copy(dst=both[:, own : own + 1, :], src=mine.expand_dim(1))
    swap(mine.expand_dim(1), both[:, other : other + 1, :], core)
    return both.reshape((T, 2 * n))


def _best(values, columns, count, scale, softcap):
    """The result of `candidates`, of the largest logits of all pieces [T, n] and their columns."""
    T = values.shape[0]
    n = values.shape[1]
    size = ceiling_divide(count, EIGHT) * EIGHT
    best = nl.ndarray((T, size), dtype=nl.float32, buffer=nl.sbuf)
    places = nl.ndarray((T, size), dtype=nl.float32, buffer=nl.sbuf)
    largest(best, places, values, 0)
    numbers = nl.ndarray((T, n), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=numbers, pattern=[[1, n]], offset=0, channel_multiplier=0)
    exact = nl.ndarray((T, count), dtype=nl.float32, buffer=nl.sbuf)
    for index in range(count):
        # The column at the place that was found, and zeros.
        chosen = nl.ndarray((T, n), dtype=nl.float32, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=chosen,
            data=numbers,
            op0=nl.equal,
            operand0=places[:, index : index + 1],
            op1=nl.multiply,
            operand1=columns,
        )
        nisa.tensor_reduce(dst=exact[:, index : index + 1], op=nl.add, data=chosen, axis=(1,))
    ids = nl.ndarray((T, count), dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=ids, src=exact)
    logits = best[:, 0:count]
    if scale != 1.0:
        nisa.tensor_scalar(dst=logits, data=logits, op0=nl.multiply, operand0=scale)
    if softcap > 0.0:
        nisa.activation(dst=logits, op=nl.tanh, data=logits, scale=1.0 / softcap)
        nisa.tensor_scalar(dst=logits, data=logits, op0=nl.multiply, operand0=softcap)
    return (logits, ids)


def store_candidates(out_logits, out_ids, found, sizes, core):
    """Writes results of `candidates` to tensors [B, S, count] in HBM; the first core does."""
    if core.index == 0:
        blocks = token_blocks(sizes, core)
        for number in range(len(blocks)):
            logits, ids = found[number]
            _store(out_logits, logits, blocks[number], sizes)
            _store(out_ids, ids, blocks[number], sizes)


def _store(out, tile, block, sizes):
    rows = out.reshape((sizes.T, tile.shape[1]))
    nisa.dma_copy(
        dst=rows[block.first_token : block.first_token + block.tokens, :],
        src=tile,
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.scalar,
    )
