"""One layer: the stages that the picture in `transformer.py` shows, one after another."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .all_reduce import add_reduced
from .attention import attention
from .attention_loads import AttentionLoads
from .blocks import CacheBlocks
from .cache_scales import load_cache_scales
from .cache_update import await_readers, update_caches
from .divisions import stacks_heads
from .experts import choose_experts, run_experts
from .feature_order import FeatureOrder
from .layout import load_columns, load_features
from .limits import PARTITIONS
from .linear import linear_of_shares
from .mlp import MlpLoads, mlp
from .residual_product import ResidualLoads, residual_product
from .rms_norm import head_gain, normalize_heads, rms_norm
from .rope import apply_rope
from .row_loads import Columns, share_loads, split_for


class Step(NKIObject):
    """One layer of a launch.

    Attributes:
      layer: its operands.
      caches: its `LayerCaches`, with offsets.
      kind: its `Kind`.
      number: in a loop on the device, its `LoopLayer`; else None.
    """

    def __init__(self, layer, caches, kind, number=None):
        self.layer = layer
        self.caches = caches
        self.kind = kind
        self.number = number


class LayerStart(NKIObject):
    """What a layer loads before the layer before it has ended.

    Gains and biases of later stages are among it: the engines that turn them are idle here.

    Attributes:
      loads: of W_qkv.
      gain, gain_mlp: of the first norm, and of that before the MLP.
      bias, bias_out: of the projections of heads and to the residual stream, or None.
      gain_q, gain_k: of head norms, or None.
      gain_post_attention, gain_post_mlp: of the norms of what is added, or None.
    """

    def __init__(self, step, loads=None):
        """With `loads`, the `head_loads` of the layer, which may have begun."""
        layer = step.layer
        context = step.kind.context
        W_qkv = layer.W_qkv
        W_out = layer.W_out
        width, tiles = _head_tiles(context.sizes)
        context.loaded.restart()
        self.gain = load_features(layer.W_gamma_qkv, context)
        self.bias = load_columns(W_qkv.bias, 0, tiles, context, width=width)
        self.gain_q = head_gain(layer.W_gamma_q, context)
        self.gain_k = head_gain(layer.W_gamma_k, context)
        self.bias_out = load_features(W_out.bias, context)
        self.gain_post_attention = load_features(layer.W_gamma_post_attention, context)
        self.gain_mlp = load_features(layer.W_gamma_mlp, context)
        self.gain_post_mlp = load_features(layer.W_gamma_post_mlp, context)
        self.loads = loads
        if loads == None:
            self.loads = head_loads(step)


def head_loads(step):
    """The `share_loads` of a layer's W_qkv."""
    layer = step.layer
    context = step.kind.context
    W_qkv = layer.W_qkv
    width, tiles = _head_tiles(context.sizes)
    return share_loads(W_qkv.tensor, Columns(0, width), tiles, context)


def _held_loads(layer, following, context):
    """The `head_loads` of the next layer, some of which begin now; None if none do.

    While a router chooses experts, HBM would rest: only then is it known what to load.
    """
    held = context.held
    if held == None or following == None or not layer.has_experts():
        return None
    loads = head_loads(following)
    if len(loads) > 0:
        first = loads[0]
        first.begin_held(held)
    return loads


def transformer_layer(x, step, start, following):
    """One layer of the residual stream x [128, n, T], of which this core holds n chunks of H.

    A stage's first loads begin before the swap or all-reduce that the stage waits for.

    Args:
      x: [128, n, T].
      step: the `Step`.
      start: its `LayerStart`.
      following: the next layer's `Step`, or None.

    Returns:
      A tile like x, and the next layer's `LayerStart` or None.
    """
    layer = step.layer
    caches = step.caches
    kind = step.kind
    shared = kind.shared
    context = kind.context
    blocks = None
    offsets = caches.offsets
    if offsets.blocks != None:
        blocks = CacheBlocks(
            caches.K_whole, caches.V_whole, caches.number, offsets.blocks, context.sizes
        )
    scales = load_cache_scales(layer.k_scale, layer.v_scale, context)
    cache_loads = AttentionLoads(caches.K_cache, caches.V_cache, kind.attention, blocks)
    normed = rms_norm(x, start.gain, context)
    heads = _heads(normed, layer, start, kind.rotation, context, [cache_loads])
    W_out = layer.W_out
    out_loads = _out_loads(W_out, context)
    queries = heads
    ranks = kind.ranks
    if ranks != None:
        queries = ranks.gather_queries(heads, context.core)
    attended, values = attention(
        queries,
        cache_loads,
        kind.masks,
        kind.attention,
        sinks=layer.sinks,
        scales=scales,
        ahead=out_loads.loads,
        ranks=ranks,
    )
    await_readers(caches, context.core)
    partial = _project_out(attended, W_out, context, out_loads)
    mlp_loads = None
    ahead = None
    if not layer.has_experts():
        mlp_loads = MlpLoads(layer, context)
        ahead = mlp_loads.gate[0]
    next_loads = _held_loads(layer, following, context)
    x = add_reduced(
        x,
        partial,
        shared.reduction,
        context,
        bias=start.bias_out,
        gain=start.gain_post_attention,
        ahead=ahead,
    )
    weight_dtype = None
    if ahead != None:
        weight_dtype = split_for(ahead)
    # The router's product and the squares are swapped together.
    adds_squares = not layer.has_experts()
    normed = rms_norm(x, start.gain_mlp, context, split_for=weight_dtype, adds_squares=adds_squares)
    next_start = None
    if layer.has_experts():
        chosen = choose_experts(normed, layer, shared.routing, context, number=step.number)
        if following != None:
            # HBM rests until experts are chosen, and the Tensor Engine until their weights come.
            next_start = LayerStart(following, loads=next_loads)
        partial = run_experts(chosen, layer, shared.routing, context)
    else:
        partial = mlp(normed, layer, context, loads=mlp_loads)
    if offsets.values != None:
        # Only here, so that no load of weights queues behind writes that wait for attention.
        update_caches(caches, heads, values, context, scales=scales)
    ahead = None
    if following != None:
        if next_start == None:
            next_start = LayerStart(following, loads=next_loads)
        ahead = next_start.loads
    gain = start.gain_post_mlp
    x = add_reduced(x, partial, shared.reduction, context, gain=gain, ahead=ahead)
    return (x, next_start)


def _heads(normed, layer, start, rotation, context, ahead):
    """[rows, q + 2k, chunks, T]: queries and keys rotated, then values, in the compute dtype."""
    W_qkv = layer.W_qkv
    sizes = context.sizes
    rotated = sizes.q + sizes.k
    count = rotated + sizes.k
    parts = count * sizes.head_chunks
    context.stored.restart()
    stored = context.stored.take(sizes.head_rows, parts * sizes.T, sizes.dtype)
    stored = stored.reshape_dim(1, (parts, sizes.T))
    width, tiles = _head_tiles(sizes)
    product = stored
    if tiles < parts:
        product = nl.ndarray((width, tiles, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    columns = Columns(0, width, bias=start.bias)
    linear_of_shares(
        product, normed, W_qkv.tensor, columns, context, loads=start.loads, ahead=ahead
    )
    if tiles < parts:
        # The second head of each pair moves to the first one's partitions.
        pairs = stored.reshape_dim(1, (tiles, 2))
        first = product[0 : sizes.d, :, :]
        nisa.tensor_copy(dst=pairs[:, :, 0, :], src=first, engine=nisa.engine.scalar)
        nisa.tensor_copy(dst=pairs[:, :, 1, :], src=product[sizes.d : PARTITIONS, :, :])
    heads = stored.reshape_dim(1, (count, sizes.head_chunks))
    turned = heads[:, 0:rotated, :, :]
    scaled = normalize_heads(turned, start.gain_q, start.gain_k, context)
    apply_rope(turned, rotation, context, scaled=scaled)
    return heads


def _head_tiles(sizes):
    """(width, tiles) of the columns of W_qkv: a chunk of a head in a tile, or a pair of heads.

    A tile of 64 columns would take the Tensor Engine as long as one of 128.
    """
    count = sizes.q + 2 * sizes.k
    if _pairs_heads(sizes):
        return (PARTITIONS, count // 2)
    return (sizes.head_rows, count * sizes.head_chunks)


def _pairs_heads(sizes):
    """Whether products have two heads at once, one on each half of the partitions."""
    return stacks_heads(sizes.d) and sizes.q % 2 == 0


def _out_loads(W_out, context):
    """The `ResidualLoads` of W_out."""
    sizes = context.sizes
    rows = FeatureOrder(sizes.head_rows)
    chunks = sizes.q * sizes.head_chunks
    if _pairs_heads(sizes):
        rows = FeatureOrder(PARTITIONS)
        chunks = sizes.q // 2
    return ResidualLoads(W_out.tensor, chunks, rows, context)


def _project_out(attended, W_out, context, loads):
    """[128, n, T] float32: this core's chunks of attended [rows, q * chunks, T] @ W_out."""
    sizes = context.sizes
    if _pairs_heads(sizes):
        pairs = sizes.q // 2
        stacked = nl.ndarray((PARTITIONS, pairs, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
        by_pair = attended.reshape_dim(1, (pairs, 2))
        nisa.tensor_copy(
            dst=stacked[0 : sizes.d, :, :], src=by_pair[:, :, 0, :], engine=nisa.engine.scalar
        )
        nisa.tensor_copy(dst=stacked[sizes.d : PARTITIONS, :, :], src=by_pair[:, :, 1, :])
        attended = stacked
    own = attended[:, loads.first : loads.last, :]
    return residual_product(own, W_out.tensor, loads, context)
