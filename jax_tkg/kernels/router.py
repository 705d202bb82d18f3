"""The router of a layer with experts: which experts the tokens go to, and with what weights."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .exchange import add_other_core
from .gaps import Gaps
from .limits import LEAST_SEARCHED, PARTITIONS, ceiling_divide
from .linear import linear_of_share, store_product
from .rms_norm import Normed
from .row_loads import Columns, share_loads
from .token_blocks import token_blocks

LOWEST = -3.0e38
"""Takes the place of scores that were chosen: lower than any score."""

ABSENT = 3.0e38
"""A value that no score has, searched for where fewer than eight are wanted."""

EIGHT = 8
"""Values that the Vector Engine's search instructions find at once."""


class Routing(NKIObject):
    """How tokens are routed, and which experts this rank holds; the same for all layers.

    Attributes:
      chosen: experts per token.
      method: "softmax_topk", "topk_softmax" or "sigmoid_topk".
      normalize: whether a token's weights are divided by their sum.
      scale: factor of the weights.
      experts: E, experts of all ranks.
      held: E', experts that this rank holds.
      sharing: ranks that each have a part of every expert, and all of its last bias.
      order: [1, max(E, 8)] float32: for the experts that this rank holds E', E' - 1, ... 1, for
        others 0.
      order_columns: [min(E, 128), chunks] float32: the same for expert chunk * 128 + partition, but
        -1 for experts of other ranks.
      gaps: `Gaps`, if there may be more passes than are listed at first; else None.
    """

    def __init__(self, chosen, method, normalize, scale, held, ranks, order):
        """Loads `order` [1, E] float32 from HBM; `ranks` sum their results."""
        experts = order.shape[1]
        self.chosen = chosen
        self.method = method
        self.normalize = normalize
        self.scale = scale
        self.experts = experts
        self.held = held
        self.sharing = 1
        if held == experts:
            self.sharing = ranks
        self.order = nl.ndarray((1, max(experts, LEAST_SEARCHED)), dtype=nl.float32, buffer=nl.sbuf)
        if experts < LEAST_SEARCHED:
            nisa.memset(dst=self.order, value=0.0)
        nisa.dma_copy(
            dst=self.order[:, 0:experts],
            src=order,
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.sync,
        )
        self.gaps = None
        if held > EIGHT:
            self.gaps = Gaps()
        rows = min(experts, PARTITIONS)
        self.order_columns = nl.ndarray(
            (rows, ceiling_divide(experts, PARTITIONS)), dtype=nl.float32, buffer=nl.sbuf
        )
        nisa.memset(dst=self.order_columns, value=-1.0)
        for chunk in range(ceiling_divide(experts, PARTITIONS)):
            first = chunk * PARTITIONS
            size = min(PARTITIONS, experts - first)
            turned = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_transpose(
                dst=turned,
                data=self.order[:, first : first + size],
                engine=nisa.engine.tensor,
            )
            is_other = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=is_other, data=turned, op0=nl.equal, operand0=0.0)
            nisa.tensor_tensor(
                dst=self.order_columns[0:size, chunk : chunk + 1],
                data1=turned,
                data2=is_other,
                op=nl.subtract,
            )

    def passes(self, T):
        """How many experts are run for T tokens: as many as these can choose of those held."""
        return min(T * self.chosen, self.held)

    def are_all(self, T):
        """Whether there is a pass for every expert, each at a place of its own.

        The passes of experts that no token chooses, which load nothing, are then among the others:
        loads take longer than products, and catch up meanwhile.
        """
        return self.held == self.experts and self.passes(T) == self.held

    def may_be_fewer(self, T):
        """Whether some of these passes may find no expert left to run."""
        return T > 1 or self.held < self.experts


class Choice(NKIObject):
    """Which experts T tokens choose, those of a `TokenBlock`.

    Attributes:
      logits: [T, max(E, 8)] float32, the router's product; `LOWEST` beyond E.
      values: [T, E] float32, the sigmoids of the logits; None if weights are a softmax.
      peak: [T, 1] float32, the highest score.
      chosen: [T, E] float32, 1 for the chosen experts, 0 for others.
    """

    def __init__(self, logits, bias_selection, routing):
        """Args: logits; bias_selection: `LayerTensor` [1, E] or None; routing: `Routing`."""
        self.logits = logits
        self.values = None
        scores = logits
        if routing.method == "sigmoid_topk":
            T = logits.shape[0]
            values = nl.ndarray((T, routing.experts), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=values, op=nl.sigmoid, data=logits[:, 0 : routing.experts])
            scores = _selection_scores(values, bias_selection, routing)
            self.values = values
        peak, chosen = _select(scores, routing)
        self.peak = peak
        self.chosen = chosen

    def weights(self, routing):
        """[T, E] float32: each token's weights of the experts that it chooses, 0 of others."""
        chosen = self.chosen
        logits = self.logits
        T = chosen.shape[0]
        E = routing.experts
        values = self.values
        if values == None:
            # The scores are the logits, of which the largest is the first that was found.
            lowered = nl.ndarray((T, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=lowered, data=self.peak, op0=nl.multiply, operand0=-1.0)
            values = nl.ndarray((T, E), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=values, op=nl.exp, data=logits[:, 0:E], bias=lowered)
        weights = nl.ndarray((T, E), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=weights, data1=values, data2=chosen, op=nl.multiply)
        summands = None
        if routing.normalize or routing.method == "topk_softmax":
            summands = weights
        elif routing.method == "softmax_topk":
            summands = values
        if summands != None:
            divide_by_sum(weights, summands, routing)
        elif routing.scale != 1.0:
            nisa.tensor_scalar(dst=weights, data=weights, op0=nl.multiply, operand0=routing.scale)
        return weights


def divide_by_sum(weights, summands, routing):
    """weights [T, n] times the routing's factor, over the sum of summands [T, m], in place."""
    T = weights.shape[0]
    total = nl.ndarray((T, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=total, op=nl.add, data=summands, axis=(1,))
    inverse = nl.ndarray((T, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    nisa.tensor_scalar(
        dst=weights,
        data=weights,
        op0=nl.multiply,
        operand0=inverse,
        op1=nl.multiply,
        operand1=routing.scale,
    )


class RouterSum(NKIObject):
    """The router's product with tiles of experts, before it is multiplied by the tokens' factors.

    Attributes:
      first: the first expert.
      product: [width, tiles, T] float32, of all features and so alike on both cores.
      bias: [width, tiles] float32 on chip, or None.
    """

    def __init__(self, first, product, bias):
        self.first = first
        self.product = product
        self.bias = bias


def router_sums(normed, W_router, routing, context):
    """A list of `RouterSum`, of all experts.

    With the first of them the cores swap the `own_squares` of the input, so that they swap once for
    both.

    Args:
      normed: the `Normed` input: this core's share of the features.
      W_router: `Weight` [H, E], in the compute dtype or float32.
      routing: `Routing`.
      context: the launch's `Context`.
    """
    sizes = context.sizes
    core = context.core
    T = sizes.T
    E = routing.experts
    factors = normed
    wider = W_router.tensor.view.dtype == nl.float32 and sizes.dtype != nl.float32
    if wider:
        tile = normed.tile
        wide = nl.ndarray((PARTITIONS, tile.shape[1], T), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=wide, src=tile)
        factors = Normed(wide, None)
    sums = []
    first = 0
    while first < E:
        # Tiles of 128 experts, then what is left.
        width = min(PARTITIONS, E - first)
        tiles = (E - first) // width
        bias = None
        if W_router.bias != None:
            bias = nl.ndarray((width, tiles), dtype=nl.float32, buffer=nl.sbuf)
            for tile in range(tiles):
                column = first + tile * width
                nisa.tensor_copy(
                    dst=bias[:, tile : tile + 1],
                    src=_bias_column(W_router.bias, column, width, context),
                    engine=nisa.engine.scalar,
                )
        squares = 0
        rows = width
        if first == 0 and normed.own_squares != None:
            squares = 1
            rows = PARTITIONS
        partial = nl.ndarray((rows, tiles + squares, T), dtype=nl.float32, buffer=nl.sbuf)
        if width < rows:
            # The whole tile is swapped.
            nisa.memset(dst=partial, value=0.0, engine=nisa.engine.gpsimd)
        if squares > 0:
            nisa.tensor_copy(dst=partial[:, tiles : tiles + 1, :], src=normed.own_squares)
        columns = Columns(first, width)
        loads = share_loads(W_router.tensor, columns, tiles, context)
        of_width = partial[0:width, 0:tiles, :]
        linear_of_share(of_width, factors, W_router.tensor, columns, context, loads, scaled=False)
        if wider:
            # For those whose loads may be skipped, which then find numbers: see `WeightRing`.
            for group in loads:
                group.clear()
        total = partial
        if core.count > 1:
            total = nl.ndarray((rows, tiles + squares, T), dtype=nl.float32, buffer=nl.sbuf)
            add_other_core(total, partial, core)
        if squares > 0:
            normed.squares = total[:, tiles, :]
        sums.append(RouterSum(first, total[0:width, 0:tiles, :], bias))
        first += tiles * width
    return sums


def router_logits(sums, normed, routing, context, unscaled=False, searched_once=False):
    """The router's logits, alike on both cores: [tokens, max(E, 8)] float32; `LOWEST` beyond E.

    A tile for each of the `token_blocks`.

    Args:
      sums: `router_sums`.
      normed: their input.
      routing: `Routing`.
      context: the launch's `Context`.
      unscaled: whether logits are left without their token's factor.
      searched_once: whether they are only searched, so that those of 128 experts may stay in PSUM.
    """
    sizes = context.sizes
    T = sizes.T
    E = routing.experts
    blocks = token_blocks(sizes, context.core)
    tiles_of_logits = []
    for block in blocks:
        shape = (block.tokens, max(E, LEAST_SEARCHED))
        logits = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        if E < LEAST_SEARCHED:
            nisa.memset(dst=logits, value=LOWEST)
        tiles_of_logits.append(logits)
    factor = None
    if not unscaled:
        factor = normed.token_factor(context)
    # One tile has the logits of all experts.
    in_psum = searched_once and E >= LEAST_SEARCHED and E <= PARTITIONS
    for each in sums:
        product = each.product
        width, tiles, _ = product.shape
        if factor != None or each.bias != None:
            scaled = nl.ndarray((width, tiles, T), dtype=nl.float32, buffer=nl.sbuf)
            store_product(scaled, product, None, factor, each.bias)
            product = scaled
        for tile in range(tiles):
            column = each.first + tile * width
            for number in range(len(blocks)):
                block = blocks[number]
                last = block.first_token + block.tokens
                turned = nl.ndarray((block.tokens, width), dtype=nl.float32, buffer=nl.psum)
                nisa.nc_transpose(
                    dst=turned,
                    data=product[:, tile, block.first_token : last],
                    engine=nisa.engine.tensor,
                )
                if in_psum:
                    tiles_of_logits[number] = turned
                else:
                    logits = tiles_of_logits[number]
                    nisa.tensor_copy(dst=logits[:, column : column + width], src=turned)
    return tiles_of_logits


def _bias_column(vector, first, width, context):
    """[width, 1] on chip: elements `first` and on of a `LayerTensor` [1, n]."""
    row = context.loaded.take(1, width, vector.view.dtype)
    vector.load(row, vector.view[0:1, first : first + width])
    turned = nl.ndarray((width, 1), dtype=vector.view.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=row, engine=nisa.engine.tensor)
    return turned


def _selection_scores(values, bias_selection, routing):
    """[T, max(E, 8)] float32: the values with the bias, by which experts are selected."""
    T = values.shape[0]
    E = routing.experts
    scores = nl.ndarray((T, max(E, LEAST_SEARCHED)), dtype=nl.float32, buffer=nl.sbuf)
    if E < LEAST_SEARCHED:
        nisa.memset(dst=scores, value=LOWEST)
    if bias_selection == None:
        nisa.tensor_copy(dst=scores[:, 0:E], src=values)
    else:
        row = nl.ndarray((T, E), dtype=bias_selection.view.dtype, buffer=nl.sbuf)
        by_token = bias_selection.view[0:1, :].broadcast(0, T)
        bias_selection.load(row, by_token)
        nisa.tensor_tensor(dst=scores[:, 0:E], data1=values, data2=row, op=nl.add)
    return scores


def _select(scores, routing):
    """Each token's experts of the highest scores; of equal scores those of the first experts.

    Args:
      scores: [T, max(E, 8)] float32.
      routing: `Routing`.

    Returns:
      (peak, chosen): the highest score [T, 1], and [T, E] float32, 1 for the chosen experts.
    """
    T = scores.shape[0]
    peak = None
    left = scores
    found = 0
    while found < routing.chosen:
        highest = nl.ndarray((T, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
        nisa.max8(dst=highest, src=left)
        if peak == None:
            peak = highest[:, 0:1]
        wanted = min(EIGHT, routing.chosen - found)
        if wanted < EIGHT:
            nisa.memset(dst=highest[:, wanted:EIGHT], value=ABSENT)
        replaced = nl.ndarray((T, scores.shape[1]), dtype=nl.float32, buffer=nl.sbuf)
        nisa.nc_match_replace8(dst=replaced, data=left, vals=highest, imm=LOWEST)
        left = replaced
        found += wanted
    chosen = nl.ndarray((T, routing.experts), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=chosen, data=left[:, 0 : routing.experts], op0=nl.equal, operand0=LOWEST)
    return (peak, chosen)
