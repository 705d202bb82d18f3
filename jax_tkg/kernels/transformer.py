"""The megakernel: all layers of the forward pass of token generation in one launch.

`transformer_tkg` below sorts its arguments, by layer and by kind of layer (`layer_operands`,
`layer_caches`, `layer_kinds`), and `layer_sequence` runs the layers. `transformer_layer` in `layer`
is the picture as code.

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
    |   attention <--------- ring <-------------- K_cache, V_cache: half of B, or of the slots
    |      |  block by block: scores, mask, softmax, weighted values   [states of the softmax]
    |      |  if ranks share out the context <---- other ranks' states of the softmax
    |      |
    |   residual_product <-- ring <-------------- W_out
    |      |
    +-> add_reduced <---------------------------- other ranks' partial results
           |
        x [128, n, T]
        |
        |-- rms_norm <--------------------------- W_gamma_mlp    [sums of squares]
        |      |
        |   mlp: gate, up <- ring <-------------- W_gate, W_up   [partial products]
        |        down <----- ring <-------------- W_down         [sums over half of the rows]
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
import nki.language as nl
from nki.collectives import ReplicaGroup

from .all_reduce import Reduction
from .candidates import candidates, store_candidates
from .layer_caches import Caches
from .layer_kinds import KindArguments, Shared, launch_context, launch_kinds
from .layer_operands import LayerOperands
from .layer_range import LayerRange
from .layer_sequence import run_layers
from .layer_tensor import LayerTensor, Weight
from .layout import load_tokens, store_tokens
from .router import Routing
from .sizes import Arithmetic, Core


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
    place_bytes,
    held_buffers,
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
      prior_mask: [S_prior, B * q * S] uint8, 1 where a query attends a cache slot, in the order of
        `masks.Masks.prior`; None if no query attends any slot, or if there are `context_ranges`.
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
      place_bytes: bytes per partition that the tensors of `Places` have to themselves.
      held_buffers: buffers beside the ring for weights that load while a router chooses experts.

    Returns:
      Hidden states [B, S, H], then the key caches, then the value caches, then with `W_head` each
      token's largest logits [B, S, candidates_per_token] float32, and int32 columns of `W_head`.
    """
    core = Core()
    arithmetic = Arithmetic(
        eps,
        clamp_bound,
        softmax_scale=softmax_scale,
        attention_softcap=attention_softcap,
        activation=activation,
        activation_limit=activation_limit,
        activation_alpha=activation_alpha,
    )
    layers = LayerRange(first_layer, num_layers, layer_kinds, looped)
    caches = Caches(K_caches, V_caches, stacked_caches, caches_by_kind)
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
    arguments = KindArguments(
        RoPE_cos,
        RoPE_sin,
        prior_mask,
        active_mask,
        context_ranges,
        block_numbers,
        window_offsets,
        key_offsets,
        value_offsets,
        context_bucket,
    )
    group = None
    ranks = 1
    if replica_groups != None:
        group = ReplicaGroup(replica_groups)
        ranks = len(replica_groups[0])
    reduction = Reduction(group, sbuf_residual_and_cc)
    chooser = None
    held = operands.experts_held(looped)
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
    shared = Shared(
        core,
        arithmetic,
        reduction,
        chooser,
        replica_groups,
        context_parallel,
        place_bytes,
        held_buffers,
    )
    kinds = launch_kinds(X, operands, caches, layers, arguments, shared)
    context = launch_context(kinds)
    sizes = context.sizes

    x = load_tokens(X, sizes, core)
    x = run_layers(x, operands, caches, layers, kinds)
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
        shape = (sizes.B, sizes.S, count)
        out_logits = nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm)
        out_ids = nl.ndarray(shape, dtype=nl.int32, buffer=nl.shared_hbm)
        store_candidates(out_logits, out_ids, found, sizes, core)
        results.extend([out_logits, out_ids])
    return tuple(results)
