"""The megakernel: all layers of the forward pass of token generation in one launch.

One layer, as each of the one or two physical cores runs it. Activations stay in SBUF; weights and
caches stream from HBM through the ring's buffers, ahead of the stage that uses them. In brackets
what two cores swap.

    x [128, n, T]: this core's chunks of the residual stream
    |
    |-- rms_norm <------------------------------- W_gamma_qkv    [sums of squares]
    |      |
    |   linear_of_shares <-- ring <-------------- W_qkv          [partial products]
    |      |
    |   heads [rows, q + 2k, chunks, T]
    |      |
    |   normalize_heads, if they have gains, and
    |   apply_rope, on queries and keys
    |      |
    |   gather_queries, if ranks share out the context <-- other ranks' queries
    |      |
    |   attention <--------- ring <-------------- K_cache, V_cache, each core half of the slots
    |      |  block by block: scores, mask, softmax, weighted values   [states of the softmax]
    |      |  if ranks share out the context <---- other ranks' states of the softmax
    |      |
    |   linear <------------ ring <-------------- W_out
    |      |
    +-> add_reduced <---------------------------- other ranks' partial results
           |
        x [128, n, T]
        |
        |-- rms_norm <--------------------------- W_gamma_mlp    [sums of squares]
        |      |
        |   mlp: gate, up <- ring <-------------- W_gate, W_up   [partial products]
        |        down <----- ring <-------------- W_down
        |   or experts: route <-------------------- W_router
        |        the chosen experts' MLPs, each core every other one [inputs, sums]
        |      |
        |   update_caches, the new keys and values ----> K_cache, V_cache
        |      |
        +-> add_reduced <------------------------ other ranks' partial results
               |
            x, for the next layer; after the last one, if there is a head:
               |
            candidates <- ring <----------------- W_head, each core half of the columns
"""

import nki
import nki.isa as nisa
import nki.language as nl
from nki.collectives import ReplicaGroup
from nki.language import NKIObject

from .all_reduce import Reduction, add_reduced
from .attention import AttentionLoads, attention
from .blocks import CacheBlocks
from .cache_scales import load_cache_scales
from .cache_update import LayerCaches, await_readers, load_offsets, update_caches
from .candidates import candidates, store_candidates
from .constants import Constants
from .context_ranks import context_ranks
from .experts import experts
from .feature_order import FeatureOrder
from .layer_operands import LayerOperands, experts_held, features_of
from .layer_range import LayerRange
from .layer_tensor import LayerTensor, Weight, layer_tensor
from .layout import load_columns, load_features, load_tokens, store_tokens
from .limits import PARTITIONS, RING_SLOT_BYTES, RING_SLOTS, ceiling_divide
from .linear import (
    Columns,
    in_double_rows,
    linear,
    linear_of_shares,
    product_loads,
    share_loads,
)
from .masks import Masks
from .mlp import MlpLoads, mlp
from .rms_norm import head_gain, normalize_heads, rms_norm
from .rope import Rotation, apply_rope
from .router import Routing
from .sizes import Context, Core, Sizes
from .weight_ring import WeightRing


class Caches(NKIObject):
    """All layers' caches in HBM.

    A tensor per layer of the launch; or if `stacked`, one with a leading layer axis, or if
    `by_kind`, one for each kind of layers, None for a kind that has none in the launch.
    """

    def __init__(self, K_caches, V_caches, stacked, by_kind):
        self.K_caches = K_caches
        self.V_caches = V_caches
        self.stacked = stacked
        self.by_kind = by_kind

    def keys_like(self, layer, layers):
        """A tensor [B, k, d, S_max], as a layer's keys."""
        if self.by_kind:
            stack = self.K_caches[layers.kind(layer)]
            return stack[0]
        if self.stacked:
            return self.K_caches[0]
        return self.K_caches[layer - layers.first]

    def number(self, layer, layers):
        """Where a layer is in tensors with a layer axis."""
        if self.by_kind:
            return layers.place(layer)
        return layer

    def layer(self, layer, layers):
        """The `LayerCaches` of a layer."""
        if self.stacked:
            number = self.number(layer, layers)
            K_whole, V_whole = self._stacks(layer, layers)
            return LayerCaches(
                layer_tensor(K_whole, number),
                layer_tensor(V_whole, number),
                K_whole,
                V_whole,
                number,
            )
        K_cache = self.K_caches[layer - layers.first]
        V_cache = self.V_caches[layer - layers.first]
        return LayerCaches(LayerTensor(K_cache), LayerTensor(V_cache), K_cache, V_cache, 0)

    def layer_of_loop(self, number, layer, layers):
        """The `LayerCaches` of a `LoopLayer`, which is `layer` in turn 0."""
        K_whole, V_whole = self._stacks(layer, layers)
        return LayerCaches(
            layer_tensor(K_whole, number, looped=True),
            layer_tensor(V_whole, number, looped=True),
            K_whole,
            V_whole,
            0,
        )

    def _stacks(self, layer, layers):
        """The stacks of keys and of values that hold a layer."""
        if self.by_kind:
            kind = layers.kind(layer)
            return (self.K_caches[kind], self.V_caches[kind])
        return (self.K_caches, self.V_caches)

    def results(self):
        """The tensors to return, keys before values."""
        if self.stacked and not self.by_kind:
            return [self.K_caches, self.V_caches]
        results = []
        for caches in [self.K_caches, self.V_caches]:
            for cache in caches:
                if cache != None:
                    results.append(cache)
        return results


class OffsetTables(NKIObject):
    """The kernel's tables of write offsets and blocks, each [1 or L, n] in HBM or None."""

    def __init__(self, windows, keys, values, blocks):
        self.windows = windows
        self.keys = keys
        self.values = values
        self.blocks = blocks

    def load(self, number, looped=False):
        """Row `number` of the tables, on chip: `WriteOffsets`."""
        return load_offsets(
            layer_tensor(self.windows, number, looped=looped),
            layer_tensor(self.keys, number, looped=looped),
            layer_tensor(self.values, number, looped=looped),
            layer_tensor(self.blocks, number, looped=looped),
        )


class Shared(NKIObject):
    """What every layer of a kind uses besides the `Context`."""

    def __init__(self, rotation, masks, reduction, routing):
        self.rotation = rotation
        self.masks = masks
        self.reduction = reduction
        self.routing = routing


class Kind(NKIObject):
    """What the layers of a kind have in common.

    Attributes:
      shared: `Shared`.
      context: `Context`. Those of other kinds have other sizes, and else the same.
      attention: that of attention, whose sizes have the query heads of all `ranks`.
      ranks: the `ContextRanks` that share out the context of a KV head, or None.
      tables: `OffsetTables`.
      offsets: if layers have instructions of their own, the `WriteOffsets` of all; else None.
    """

    def __init__(self, shared, context, attention, ranks, tables):
        self.shared = shared
        self.context = context
        self.attention = attention
        self.ranks = ranks
        self.tables = tables
        self.offsets = None


@nki.jit
def transformer_tkg(
    X,
    W_qkvs,
    W_outs,
    W_gates,
    W_ups,
    W_downs,
    W_gamma_qkvs,
    W_gamma_mlps,
    K_caches,
    V_caches,
    RoPE_cos,
    RoPE_sin,
    prior_mask,
    active_mask,
    context_ranges,
    block_numbers,
    window_offsets,
    key_offsets,
    value_offsets,
    W_gate_scales,
    W_up_scales,
    W_down_scales,
    bias_qkvs,
    bias_outs,
    W_gamma_qs,
    W_gamma_ks,
    W_gamma_post_attentions,
    W_gamma_post_mlps,
    sinks,
    W_routers,
    bias_routers,
    bias_selections,
    bias_gates,
    bias_ups,
    bias_downs,
    W_shared_gates,
    W_shared_ups,
    W_shared_downs,
    W_gamma_final,
    W_head,
    expert_order,
    k_scales,
    v_scales,
    eps,
    replica_groups,
    sbuf_residual_and_cc,
    clamp_bound,
    softmax_scale,
    attention_softcap,
    activation,
    activation_limit,
    activation_alpha,
    experts_per_token,
    routing,
    normalize_expert_weights,
    routed_scale,
    candidates_per_token,
    logit_scale,
    logit_softcap,
    first_layer,
    num_layers,
    stacked_caches,
    caches_by_kind,
    layer_kinds,
    context_bucket,
    context_parallel,
    looped,
):
    """All layers.

    A per-layer argument is a tuple of tensors. The caches may be one tensor with a leading layer
    axis, because updated tensors are returned whole. With `looped`, every per-layer argument is one
    tensor with a layer axis, and the layers are a loop on the device: one copy of a layer's
    instructions of a pattern of kinds, whatever the depth.

    With `layer_kinds`, the arguments from `RoPE_cos` to `value_offsets` are tuples with an entry
    for each kind, None for one that no layer of the launch has.

    Args:
      X: [B, S, H].
      W_qkvs: per layer [H, (q + 2k) * d].
      W_outs: per layer [q * d, H].
      W_gates: per layer [H, I]; in X's dtype or float8. In a layer with experts [E', H, I], as the
        next two have E' in front; its scales have it too.
      W_ups: per layer [H, I]; in X's dtype or float8.
      W_downs: per layer [I, H]; in X's dtype or float8.
      W_gamma_qkvs: per layer [1, H].
      W_gamma_mlps: per layer [1, H].
      K_caches: per layer [B, k, d, S_max]; updated. With `block_numbers` B counts blocks, and S_max
        the slots of one.
      V_caches: per layer [B, k, S_max, d]; updated, likewise.
      RoPE_cos: [d/2, B, S].
      RoPE_sin: [d/2, B, S].
      prior_mask: [S_prior, B * q * S] uint8, 1 where a query attends a cache slot; None if no query
        attends any slot, or if there are `context_ranges`.
      active_mask: [T, B * q * S] uint8, 1 where a query attends a new key, of any sequence; None
        for a causal mask, which is made on chip.
      context_ranges: [1 or 3, B or T] float32, ranges of slots as `masks.ContextRanges` takes them,
        from which the mask of the cache slots is made on chip; None if there is a `prior_mask`.
      block_numbers: [1, B * n] uint32, the block of each entry of a sequence's table; 2**32 - 1 for
        none. None if caches are not in blocks. With `looped` [L, ...], relative to the first layer.
      window_offsets: [1, B] uint32, for sequences whose S new keys are neighbors in the cache: the
        offset of the first key's first element in the layer's keys. 2**32 - 1 for a sequence
        without such a window; None if there is none at all. With `looped`, these three tables are
        [L, ...], and offsets are relative to the first layer.
      key_offsets: [1, T] uint32, the offset of the first element of each other key; None if windows
        write all keys.
      value_offsets: [1, T] uint32, each value's first row in the layer's values, in rows of d; None
        for no update.
      W_gate_scales: per layer [1 or 128, I] float32 or None; None if no layer has a scale.
      W_up_scales: per layer [1 or 128, I] float32 or None; None if no layer has a scale.
      W_down_scales: per layer [1 or 128, H] float32 or None; None if no layer has a scale.
      bias_qkvs: per layer [1, (q + 2k) * d] or None. This and all that follow are None if no layer
        has one.
      bias_outs: per layer [1, H] or None.
      W_gamma_qs: per layer [1, d] or None.
      W_gamma_ks: per layer [1, d] or None.
      W_gamma_post_attentions: per layer [1, H] or None.
      W_gamma_post_mlps: per layer [1, H] or None.
      sinks: per layer [1, q] float32 or None.
      W_routers: per layer [H, E] in X's dtype or float32, or None for a layer without experts, as
        in the next eight.
      bias_routers: per layer [1, E] float32 or None.
      bias_selections: per layer [1, E] float32 or None.
      bias_gates: per layer [E', I] or None.
      bias_ups: per layer [E', I] or None.
      bias_downs: per layer [E', H] or None.
      W_shared_gates: per layer [H, I of the shared expert] or None.
      W_shared_ups: per layer, like W_shared_gates.
      W_shared_downs: per layer [I of the shared expert, H] or None.
      W_gamma_final: [1, H], or None.
      W_head: [H, V], or None: the launch does not end with the head.
      expert_order: [1, E] float32: for the experts that this rank holds E', E' - 1, ... 1, for
        others 0; None without experts.
      k_scales: per layer [1, 1] float32, of layers whose key cache is float8, or None.
      v_scales: per layer, of value caches, like k_scales.
      eps: RMSNorm epsilon.
      replica_groups: tuple of tuples of ranks, or None for no all-reduce.
      sbuf_residual_and_cc: whether the all-reduce goes from SBUF to SBUF, else through HBM.
      clamp_bound: bound of the inputs of float8 products; 0 for none.
      softmax_scale: factor of the scores; None for d**-0.5.
      attention_softcap: bound of the scaled scores, by a tanh; 0 for none.
      activation: of the MLP's gate: "silu", "gelu_tanh", "gelu", "relu2" or "swiglu_oai".
      activation_limit: bound of gate and up in "swiglu_oai".
      activation_alpha: factor in its sigmoid.
      experts_per_token: experts that each token chooses; None without experts.
      routing: how: "softmax_topk", "topk_softmax" or "sigmoid_topk".
      normalize_expert_weights: whether a token's weights are divided by their sum.
      routed_scale: factor of the weights.
      candidates_per_token: how many of a token's largest logits are returned, with `W_head`.
      logit_scale: factor of these.
      logit_softcap: what a tanh bounds them to after that; 0 for nothing.
      first_layer: the first layer to run, in tensors with a layer axis; tuples begin with it.
      num_layers: how many layers to run.
      stacked_caches: whether the caches have a layer axis.
      caches_by_kind: whether they are then tuples with a tensor for the layers of each kind.
      layer_kinds: the kind of each layer of all launches; None if layers are alike.
      context_bucket: cache slots that are read, with `context_ranges`; None: S_max. With
        `layer_kinds` a tuple, or None for all kinds.
      context_parallel: c, neighboring ranks of a replica group that share out the slots of their KV
        head; masks, ranges and offsets are of this rank's slots, and q in the shapes of the masks
        counts the query heads of all c ranks.
      looped: whether all per-layer arguments have a layer axis, and the layers loop on the device.

    Returns:
      Hidden states [B, S, H], then the key caches, then the value caches, then with `W_head` each
      token's largest logits [B, S, candidates_per_token] float32, and int32 columns of `W_head`.
    """
    caches = Caches(K_caches, V_caches, stacked_caches, caches_by_kind)
    layers = LayerRange(first_layer, num_layers, layer_kinds)
    core = Core()
    group = None
    if replica_groups != None:
        group = ReplicaGroup(replica_groups)
    reduction = Reduction(group, sbuf_residual_and_cc)
    several = layer_kinds != None
    ranks = 1
    if replica_groups != None:
        ranks = len(replica_groups[0])
    chooser = None
    held = experts_held(W_gates, looped)
    if held > 0:
        chooser = Routing(
            experts_per_token,
            routing,
            normalize_expert_weights,
            routed_scale,
            held,
            ranks,
            expert_order,
        )
    kinds = []
    context = None
    mask_bytes = 0
    cleared = False
    for number in range(layers.kind_count()):
        layer = layers.first_of(number)
        kind = None
        if layer != None:
            prior = _of_kind(prior_mask, number, several)
            active = _of_kind(active_mask, number, several)
            ranges = _of_kind(context_ranges, number, several)
            numbers = _of_kind(block_numbers, number, several)
            K_cache = caches.keys_like(layer, layers)
            S_prior = 0
            if ranges != None:
                S_prior = K_cache.shape[3]
                if numbers != None:
                    S_prior = S_prior * (numbers.shape[1] // X.shape[0])
                bucket = context_bucket
                if bucket != None:
                    bucket = _of_kind(context_bucket, number, several)
                if bucket != None:
                    S_prior = ceiling_divide(bucket, context_parallel)
            elif prior != None:
                S_prior = prior.shape[0]
            own_sizes = []
            # With the query heads of this rank, and of all that share out the context.
            for heads in [1, context_parallel]:
                of_heads = _sizes(
                    X,
                    W_outs,
                    W_gates,
                    K_cache,
                    S_prior,
                    numbers,
                    eps,
                    clamp_bound,
                    softmax_scale,
                    attention_softcap,
                    activation,
                    activation_limit,
                    activation_alpha,
                    chooser,
                    W_shared_gates,
                    looped,
                    heads,
                )
                own_sizes.append(of_heads)
            sizes = own_sizes[0]
            attention_sizes = own_sizes[1]
            cos = _of_kind(RoPE_cos, number, several)
            sin = _of_kind(RoPE_sin, number, several)
            rotation = Rotation(cos, sin, sizes)
            masks = Masks(prior, active, attention_sizes, core, mask_bytes, ranges=ranges)
            mask_bytes = masks.bytes
            if context == None:
                ring = WeightRing(RING_SLOTS, RING_SLOT_BYTES)
                if chooser != None and chooser.may_be_fewer(sizes.T):
                    ring.clear()
                    cleared = True
                context = Context(sizes, core, ring, Constants(sizes))
            if numbers != None and not cleared:
                ring = context.ring
                ring.clear()
                cleared = True
            tables = OffsetTables(
                _of_kind(window_offsets, number, several),
                _of_kind(key_offsets, number, several),
                _of_kind(value_offsets, number, several),
                numbers,
            )
            own = Context(sizes, core, context.ring, context.constants)
            of_attention = Context(attention_sizes, core, context.ring, context.constants)
            sharing = context_ranks(context_parallel, replica_groups, sbuf_residual_and_cc, sizes)
            shared = Shared(rotation, masks, reduction, chooser)
            kind = Kind(shared, own, of_attention, sharing, tables)
        kinds.append(kind)
    sizes = context.sizes
    operands = LayerOperands(
        Weight(W_qkvs, bias=bias_qkvs),
        Weight(W_outs, bias=bias_outs),
        Weight(W_gates, scale=W_gate_scales, bias=bias_gates),
        Weight(W_ups, scale=W_up_scales, bias=bias_ups),
        Weight(W_downs, scale=W_down_scales, bias=bias_downs),
        W_gamma_qkvs,
        W_gamma_mlps,
        W_gamma_q=W_gamma_qs,
        W_gamma_k=W_gamma_ks,
        W_gamma_post_attention=W_gamma_post_attentions,
        W_gamma_post_mlp=W_gamma_post_mlps,
        sinks=sinks,
        W_router=Weight(W_routers, bias=bias_routers),
        bias_selection=bias_selections,
        W_shared_gate=Weight(W_shared_gates),
        W_shared_up=Weight(W_shared_ups),
        W_shared_down=Weight(W_shared_downs),
        k_scale=k_scales,
        v_scale=v_scales,
    )
    x = load_tokens(X, sizes, core)
    if looped:
        x = _looped_layers(x, operands, caches, layers, kinds)
    else:
        x = _unrolled_layers(x, operands, caches, layers, kinds)
    hidden = nl.ndarray((sizes.B, sizes.S, sizes.H), dtype=sizes.dtype, buffer=nl.shared_hbm)
    store_tokens(hidden, x, sizes, core)
    results = [hidden]
    results.extend(caches.results())
    if W_head != None:
        gamma = LayerTensor(W_gamma_final)
        count = candidates_per_token
        found = candidates(
            x, gamma, LayerTensor(W_head), count, logit_scale, logit_softcap, context
        )
        logits, columns = found
        shape = (sizes.B, sizes.S, count)
        out_logits = nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm)
        out_ids = nl.ndarray(shape, dtype=nl.int32, buffer=nl.shared_hbm)
        store_candidates(out_logits, out_ids, logits, columns, core)
        results.extend([out_logits, out_ids])
    return tuple(results)


def _sizes(
    X,
    W_outs,
    W_gates,
    K_cache,
    S_prior,
    block_numbers,
    eps,
    clamp_bound,
    softmax_scale,
    attention_softcap,
    activation,
    activation_limit,
    activation_alpha,
    chooser,
    W_shared_gates,
    looped,
    ranks,
):
    """The `Sizes` of a kind, with the query heads of this rank and of ranks - 1 others."""
    B, S, H = X.shape
    block_len = 0
    n = 0
    if block_numbers != None:
        block_len = K_cache.shape[3]
        n = block_numbers.shape[1] // B
    k = K_cache.shape[1]
    d = K_cache.shape[2]
    S_max = K_cache.shape[3]
    q = ranks * (W_outs[0].shape[0] // d)
    # Layers with experts and others may alternate.
    dense_I = features_of(W_gates, 2, looped)
    shared_I = features_of(W_shared_gates, 2, looped)
    expert_I = features_of(W_gates, 3, looped)
    expert_count = 0
    if chooser != None:
        expert_count = chooser.experts
    return Sizes(
        B,
        S,
        H,
        max(dense_I, shared_I),
        d,
        q,
        k,
        S_prior,
        S_max,
        X.dtype,
        eps,
        clamp_bound,
        softmax_scale=softmax_scale,
        attention_softcap=attention_softcap,
        activation=activation,
        cache_rows=K_cache.shape[0],
        block_len=block_len,
        n=n,
        activation_limit=activation_limit,
        activation_alpha=activation_alpha,
        experts=expert_count,
        expert_I=expert_I,
    )


def _of_kind(tensors, kind, several):
    """A kind's tensor: its entry if there are several kinds, else `tensors` itself."""
    if several:
        return tensors[kind]
    return tensors


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


def _run(x, steps):
    """The residual stream after some layers, one after another."""
    start = LayerStart(steps[0])
    for index in range(len(steps)):
        following = None
        if index + 1 < len(steps):
            following = steps[index + 1]
        x, start = _layer(x, steps[index], start, following)
    return x


def _unrolled_layers(x, operands, caches, layers, kinds):
    """The residual stream after the layers, each with instructions of its own."""
    for kind in kinds:
        if kind != None:
            kind.offsets = kind.tables.load(0)
    steps = []
    for index in range(layers.count):
        layer = layers.first + index
        kind = kinds[layers.kind(layer)]
        own = caches.layer(layer, layers)
        own.offsets = kind.offsets
        steps.append(Step(operands.layer(index), own, kind))
    return _run(x, steps)


def _looped_layers(x, operands, caches, layers, kinds):
    """The same with one copy of the instructions of a pattern of layers, which the device repeats.

    The layers after the last whole turn have instructions of their own.
    """
    size = layers.pattern_size()
    turns = layers.count // size
    if turns > 1 or layers.count == 1:
        _loop(x, operands, caches, layers, kinds, turns)
    else:
        turns = 0
    steps = []
    for index in range(turns * size, layers.count):
        layer = layers.first + index
        kind = kinds[layers.kind(layer)]
        own = caches.layer(layer, layers)
        # These offsets are relative to the first layer.
        own.offsets = kind.tables.load(own.number)
        own.number = 0
        steps.append(Step(operands.layer(layer), own, kind))
    if len(steps) == 0:
        return x
    return _run(x, steps)


def _loop(x, operands, caches, layers, kinds, turns):
    """Runs `turns` turns of the launch's pattern on x, in place."""
    size = layers.pattern_size()

    def body(turn):
        # Every turn executes the same instructions, so it takes the same buffers.
        for kind in kinds:
            if kind != None:
                ring = kind.context.ring
                ring.restart()
                masks = kind.shared.masks
                masks.enter_loop()
        steps = []
        for index in range(size):
            layer = layers.first + index
            kind = kinds[layers.kind(layer)]
            number = layers.loop_layer(turn, index, size, turns)
            place = number
            if caches.by_kind:
                place = layers.loop_place(turn, index, size, turns)
            own = caches.layer_of_loop(place, layer, layers)
            own.offsets = kind.tables.load(place, looped=True)
            steps.append(Step(operands.layer(number, looped=True), own, kind, number=number))
        nisa.tensor_copy(dst=x, src=_run(x, steps))

    nl.fori_loop(0, turns, body)
    for kind in kinds:
        if kind != None:
            masks = kind.shared.masks
            masks.leave_loop()


class LayerStart(NKIObject):
    """What a layer's first stages load, before the layer before it has ended.

    Attributes:
      gain: of the first norm.
      bias: of the projection of heads, or None.
      gain_q, gain_k: of head norms, or None.
      loads: of W_qkv.
    """

    def __init__(self, step):
        layer = step.layer
        context = step.kind.context
        W_qkv = layer.W_qkv
        sizes = context.sizes
        tiles = (sizes.q + 2 * sizes.k) * sizes.head_chunks
        self.gain = load_features(layer.W_gamma_qkv, context)
        self.bias = load_columns(W_qkv.bias, 0, tiles, width=sizes.head_rows)
        self.gain_q = head_gain(layer.W_gamma_q, context)
        self.gain_k = head_gain(layer.W_gamma_k, context)
        self.loads = share_loads(W_qkv.tensor, Columns(0, sizes.head_rows), tiles, context)


def _layer(x, step, start, following):
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
    heads = _heads(normed, layer, start, shared.rotation, context, [cache_loads])
    W_out = layer.W_out
    out_loads = _out_loads(W_out, context)
    queries = heads
    ranks = kind.ranks
    if ranks != None:
        queries = ranks.gather_queries(heads, context.core)
    attended, values = attention(
        queries,
        cache_loads,
        shared.masks,
        kind.attention,
        sinks=layer.sinks,
        scales=scales,
        ahead=out_loads,
        ranks=ranks,
    )
    await_readers(caches, context.core)
    partial = _project_out(attended, W_out, context, out_loads)
    gain = load_features(layer.W_gamma_mlp, context)
    mlp_loads = None
    ahead = None
    if not layer.has_experts():
        mlp_loads = MlpLoads(layer, context)
        ahead = mlp_loads.gate[0]
    gamma = layer.W_gamma_post_attention
    x = add_reduced(
        x, partial, shared.reduction, context, bias=W_out.bias, gamma=gamma, ahead=ahead
    )
    double_rows = ahead != None and in_double_rows(ahead)
    normed = rms_norm(x, gain, context, double_rows=double_rows)
    if layer.has_experts():
        partial = experts(normed, layer, shared.routing, context, number=step.number)
    else:
        partial = mlp(normed, layer, context, loads=mlp_loads)
    if offsets.values != None:
        # Only here, so that no load of weights queues behind writes that wait for attention.
        update_caches(caches, heads, values, context, scales=scales)
    next_start = None
    ahead = None
    if following != None:
        next_start = LayerStart(following)
        ahead = next_start.loads
    gamma = layer.W_gamma_post_mlp
    x = add_reduced(x, partial, shared.reduction, context, gamma=gamma, ahead=ahead)
    return (x, next_start)


def _heads(normed, layer, start, rotation, context, ahead):
    """[rows, q + 2k, chunks, T]: queries and keys rotated, then values, in the compute dtype."""
    W_qkv = layer.W_qkv
    sizes = context.sizes
    rotated = sizes.q + sizes.k
    count = rotated + sizes.k
    shape = (sizes.head_rows, count * sizes.head_chunks, sizes.T)
    product = nl.ndarray(shape, dtype=sizes.dtype, buffer=nl.sbuf)
    columns = Columns(0, sizes.head_rows, bias=start.bias)
    linear_of_shares(
        product, normed, W_qkv.tensor, columns, context, loads=start.loads, ahead=ahead
    )
    heads = product.reshape_dim(1, (count, sizes.head_chunks))
    if start.gain_q != None or start.gain_k != None:
        normalize_heads(heads[:, 0:rotated, :, :], start.gain_q, start.gain_k, context)
    apply_rope(heads[:, 0:rotated, :, :], rotation, context)
    return heads


def _out_columns(context):
    """This core's `Columns` of W_out."""
    share = context.hidden_share()
    order = context.hidden_order()
    return Columns(share.first * PARTITIONS, PARTITIONS, order=order)


def _out_loads(W_out, context):
    """The `product_loads` of this core's columns of W_out."""
    sizes = context.sizes
    share = context.hidden_share()
    rows = FeatureOrder(sizes.head_rows)
    chunks = sizes.q * sizes.head_chunks
    columns = _out_columns(context)
    return product_loads(W_out.tensor, columns, share.count, chunks, context, rows)


def _project_out(attended, W_out, context, loads):
    """[128, n, T] float32: this core's chunks of attended [rows, q * chunks, T] @ W_out."""
    sizes = context.sizes
    share = context.hidden_share()
    partial = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    linear(partial, attended, W_out.tensor, _out_columns(context), context, loads=loads)
    return partial
