"""The experts of a layer: MLPs, of which each token runs those that the router chooses."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .assignment import Assignment
from .double_rows import split, splits
from .expert_sum import ExpertSum
from .expert_vectors import ColumnVectors, ExpertVectors, chunks_at_once, expert_order
from .feature_order import FeatureOrder
from .layout import store_tokens
from .limits import PARTITIONS, feature_chunks
from .linear import add_product, linear
from .mlp import activate, input_of, mlp, multiply_up
from .narrow_experts import NarrowExperts, narrow_experts
from .residual_product import own_share
from .rms_norm import Normed, clamped
from .router import Choice, router_logits, router_sums
from .row_loads import Columns
from .single_token import SingleToken, lists_directly


class ChosenExperts(NKIObject):
    """A layer's experts, of which the first are listed.

    Attributes:
      x: the `Normed` input of all features.
      assignment: which experts this rank runs: `Assignment` or `SingleToken`.
      batch: the first `Batch` of them.
      has_vectors: whether the experts have scales or biases.
      shared: the shared expert's result, like that of `run_experts`; or None.
    """

    def __init__(self, x, assignment, batch, has_vectors, shared):
        self.x = x
        self.assignment = assignment
        self.batch = batch
        self.has_vectors = has_vectors
        self.shared = shared


def choose_experts(normed, layer, routing, context, number=None):
    """Chooses a layer's experts, and runs the shared one.

    Args:
      normed: the `Normed` input: this core's share of the features.
      layer: the layer's operands.
      routing: `Routing`.
      context: the launch's `Context`.
      number: the `LoopLayer`, if the layers are a loop on the device.

    Returns:
      `ChosenExperts`.
    """
    sizes = context.sizes
    sums = router_sums(normed, layer.W_router, routing, context)
    # While the cores swap them.
    rows = stored_features(normed, context)
    directly = lists_directly(routing, sizes.T)
    unscaled = directly and layer.W_router.bias == None
    logits = router_logits(
        sums, normed, routing, context, unscaled=unscaled, searched_once=directly
    )
    x = all_features(rows, normed, context)
    base = None
    if number != None:
        # Tensors are of all layers, and experts are counted over them.
        base = number.place(routing.held)
    if directly:
        factor = None
        if unscaled:
            factor = normed.token_factor(context)
        assignment = SingleToken(logits[0], base, routing, factor)
    else:
        choices = []
        for of_block in logits:
            choices.append(Choice(of_block, layer.bias_selection, routing))
        assignment = Assignment(choices, base, routing, context)
    shared = None
    if layer.W_shared_gate != None:
        # Its weights load while the router works.
        shared = mlp(normed, layer.shared_expert(), context)
    has_vectors = False
    for weight in (layer.W_gate, layer.W_up, layer.W_down):
        has_vectors = has_vectors or weight.scale != None or weight.bias != None
    batch = assignment.next_batch(context, places=has_vectors)
    return ChosenExperts(x, assignment, batch, has_vectors, shared)


def run_experts(chosen, layer, routing, context):
    """Runs the `ChosenExperts` of a layer.

    Each expert that some token chooses is run once, for all tokens, with weight 0 for those that
    did not choose it; its weights are read by one core. Two cores take the experts in turn, each on
    all features, and then add what both have. A pass for which no expert is left loads nothing.

    The other arguments are those of `choose_experts`.

    Returns:
      [128, n, T] float32: the weighted sum of the results, before the all-reduce, of the tiles of H
      that `Share` gives this core.
    """
    sizes = context.sizes
    core = context.core
    assignment = chosen.assignment
    batch = chosen.batch
    gate_input = input_of(chosen.x, layer.W_gate, context)
    up_input = input_of(chosen.x, layer.W_up, context)
    may_be_absent = routing.may_be_fewer(sizes.T)
    passes = routing.passes(sizes.T)
    summed = ExpertSum(layer, passes, context)
    first = 0
    vectors = ExpertVectors(layer, batch, routing, context, summed)
    summed.add_bias(vectors)
    # Experts of narrow features run together, as many as this.
    together = narrow_experts(layer, summed.in_psum, context)
    half = 0
    # The products with W_down are one expert behind: its activation is ready by then.
    waiting = None
    while first < passes:
        following = None
        end = first + batch.count
        for group in _own_passes(first, batch.count, max(1, together), core):
            if together > 0:
                expert = NarrowExperts(layer, batch, group, half, may_be_absent)
                expert.expand(gate_input, context)
                half = 1 - half
            else:
                index = group[0]
                number = batch.numbers[:, index : index + 1]
                expert = Expert(layer, number, may_be_absent, vectors, batch, index, context)
                expert.expand(gate_input, up_input, summed.weighted, context)
            if waiting != None:
                summed.add(waiting, context)
            waiting = expert
            if following == None and end < passes:
                # While this batch runs, so that the next one's experts need not wait.
                following = assignment.next_batch(context, places=chosen.has_vectors)
                following_vectors = ExpertVectors(layer, following, routing, context, summed)
                summed.add_bias(following_vectors)
        if following != None:
            batch = following
            vectors = following_vectors
        first = end
    if waiting != None:
        summed.add(waiting, context, is_last=True)
    own = own_share(summed.whole(context), context)
    if chosen.shared != None:
        nisa.tensor_tensor(dst=own, data1=own, data2=chosen.shared, op=nl.add)
    return own


def _own_passes(first, count, at_once, core):
    """Lists of `at_once` of the `count` passes from pass `first` on that this core runs."""
    groups = []
    group = []
    for index in range(count):
        if (first + index) % core.count == core.index:
            group.append(index)
            if len(group) == at_once:
                groups.append(group)
                group = []
    if len(group) > 0:
        groups.append(group)
    return groups


def stored_features(normed, context):
    """[B, S, H] in HBM: the tile of a `Normed`, of which each core stores its share."""
    sizes = context.sizes
    core = context.core
    rows = nl.ndarray((sizes.B, sizes.S, sizes.H), dtype=sizes.dtype, buffer=core.hbm)
    # The Vector Engine has the router's work to do.
    store_tokens(rows, normed.tile, sizes, core, engine=nisa.engine.scalar)
    return rows


def all_features(rows, normed, context):
    """The `Normed` input of all features, which both cores have stored in `rows`.

    Feature p * chunks + c is on partition p of chunk c: the rows of W_gate and W_up that a
    partition takes are then neighbors in HBM, where short runs are slow. Features move across
    partitions through HBM, while the router works.
    """
    sizes = context.sizes
    core = context.core
    T = sizes.T
    chunks = sizes.hidden_chunks()
    # Before the Scalar Engine waits for what the other core stores.
    factor = normed.token_factor(context)
    if core.count > 1:
        nisa.core_barrier(data=rows, cores=(0, 1))
    loaded = nl.ndarray((PARTITIONS, T, chunks), dtype=sizes.dtype, buffer=nl.sbuf)
    by_token = rows.reshape((T, PARTITIONS, chunks))
    nisa.dma_copy(
        dst=loaded,
        src=by_token.permute((1, 0, 2)),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.scalar,
    )
    whole = Normed(loaded.permute((0, 2, 1)), normed.squares)
    whole.factor = factor
    return whole


class Expert(NKIObject):
    """One expert while it runs.

    Attributes:
      W_gate, W_up, W_down: its matrices, each a `LayerTensor`.
      vectors, index: the `ExpertVectors` that hold its scales and biases, and its place in them.
      width, chunks: its I features, as chunks of so many.
      order: their `FeatureOrder`.
      hidden: [width, chunks, T], the activated product of gate and up, clamped for a float8 W_down,
        or times the tokens' weights; None before `expand`.
      terms: its `Terms`, if W_down is multiplied in double rows.
      weights: [128, T] float32, the tokens' weights.
      present: [128, 1] uint8, whether there is an expert; None if there always is.
    """

    def __init__(self, layer, number, may_be_absent, vectors, batch, index, context):
        """Pass `index` of a `Batch`, of the layer's operands.

        number, may_be_absent: as `LayerTensor.expert` takes them; vectors: of the batch.
        """
        self.vectors = vectors
        self.index = index
        W_gate = layer.W_gate
        W_up = layer.W_up
        W_down = layer.W_down
        self.W_gate = W_gate.tensor.expert(number, may_be_absent)
        self.W_up = W_up.tensor.expert(number, may_be_absent)
        self.W_down = W_down.tensor.expert(number, may_be_absent)
        self.order = expert_order(layer, context)
        self.width = self.order.width
        self.chunks = feature_chunks(W_gate.tensor.view.shape[2])
        self.hidden = None
        self.terms = None
        self.weights = batch.weights[:, index, :]
        self.present = None
        if batch.present != None:
            self.present = batch.present[:, index : index + 1]

    def expand(self, gate_input, up_input, weighted, context):
        """Makes `hidden` of the `Normed` inputs of W_gate and W_up, of all features.

        With `weighted`, times the tokens' weights, and zero if there is no expert.
        """
        sizes = context.sizes
        T = sizes.T
        vectors = self.vectors
        shape = (self.width, self.chunks, T)
        hidden = nl.ndarray(shape, dtype=sizes.dtype, buffer=nl.sbuf)
        at_once = chunks_at_once(context)
        first = 0
        while first < self.chunks:
            last = min(first + at_once, self.chunks)
            columns = self._columns(first, vectors.gate_scale, vectors.gate_bias)
            gate = self._product(gate_input, self.W_gate, columns, last - first, context)
            activate(gate, context.arithmetic)
            if weighted:
                by_chunk = self.weights[0 : self.width, :].expand_dim(1).broadcast(1, last - first)
                nisa.tensor_tensor(dst=gate, data1=gate, data2=by_chunk, op=nl.multiply)
            columns = self._columns(first, vectors.up_scale, vectors.up_bias)
            up = self._product(up_input, self.W_up, columns, last - first, context)
            multiply_up(hidden[:, first:last, :], gate, up, context.arithmetic)
            first = last
        if weighted and self.present != None:
            hidden = self._zero_if_absent(hidden, context)
        if vectors.down_scale != None:
            hidden = clamped(hidden, context)
        W_down = self.W_down
        if splits(W_down.view.dtype, sizes, self.chunks, sizes.hidden_chunks()):
            # Now, so that the product, which comes after the next expert's, need not wait.
            self.terms = split(hidden, context, W_down.view.dtype)
        self.hidden = hidden

    def _zero_if_absent(self, hidden, context):
        """`hidden`, or zeros: what a skipped load left is numbers, but any."""
        sizes = context.sizes
        T = sizes.T
        found = nl.ndarray((self.width, self.chunks, T), dtype=sizes.dtype, buffer=nl.sbuf)
        nisa.memset(dst=found, value=0.0, engine=nisa.engine.gpsimd)
        of_rows = self.present[0 : self.width, :].expand_dim(2)
        everywhere = of_rows.broadcast(1, self.chunks).broadcast(2, T)
        nisa.tensor_copy_predicated(dst=found, src=hidden, predicate=everywhere)
        return found

    def _columns(self, first, scale, bias):
        """The expert's features from chunk `first` on, with `TurnedVectors` or None."""
        vectors = ColumnVectors(scale, bias, self.index, first)
        return Columns(first * self.width, self.width, vectors=vectors, order=self.order)

    def _product(self, x, weight, columns, count, context):
        """[width, count, T] float32: `count` chunks of x @ weight."""
        sizes = context.sizes
        product = nl.ndarray((self.width, count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
        order = FeatureOrder(PARTITIONS, groups=[(0, sizes.hidden_chunks())])
        linear(product, x.tile, weight, columns, context, normed=x, rows=order)
        return product

    def add_to(self, summed, tiles, begun, context, early=None):
        """Adds hidden @ W_down to sums in PSUM, as `add_product` has them."""
        columns = Columns(0, PARTITIONS, order=context.hidden_order())
        add_product(
            summed,
            self.hidden,
            self.W_down,
            columns,
            tiles,
            context,
            self.order,
            begun,
            early=early,
        )

    def add_in_sbuf(self, summed, context):
        """summed [128, H/128, T] += hidden @ W_down, of hidden times the tokens' weights."""
        columns = Columns(0, PARTITIONS, order=context.hidden_order())
        linear(summed, self.hidden, self.W_down, columns, context, rows=self.order, adds=True)

    def contract_into(self, summed, context):
        """summed [128, H/128, T] += the tokens' weights * (hidden @ W_down + its bias)."""
        sizes = context.sizes
        T = sizes.T
        chunks = sizes.hidden_chunks()
        vectors = self.vectors
        out = nl.ndarray((PARTITIONS, chunks, T), dtype=nl.float32, buffer=nl.sbuf)
        scale_and_bias = ColumnVectors(vectors.down_scale, vectors.down_bias, self.index)
        columns = Columns(0, PARTITIONS, vectors=scale_and_bias, order=context.hidden_order())
        rows = self.order
        linear(out, self.hidden, self.W_down, columns, context, rows=rows, terms=self.terms)
        by_chunk = self.weights.expand_dim(1).broadcast(1, chunks)
        nisa.tensor_tensor(dst=out, data1=out, data2=by_chunk, op=nl.multiply)
        if self.present == None:
            nisa.tensor_tensor(dst=summed, data1=summed, data2=out, op=nl.add)
        else:
            # What a skipped load left may be no numbers.
            total = nl.ndarray((PARTITIONS, chunks, T), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=total, data1=summed, data2=out, op=nl.add)
            everywhere = self.present.expand_dim(2).broadcast(1, chunks).broadcast(2, T)
            nisa.tensor_copy_predicated(dst=summed, src=total, predicate=everywhere)
