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
    |   attention <--------- ring <-------------- K_cache, V_cache, each core half of the slots
    |      |  block by block: scores, mask, softmax, weighted values   [states of the softmax]
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
        |      |
        |   update_caches, the new keys and values ----> K_cache, V_cache
        |      |
        +-> add_reduced <------------------------ other ranks' partial results
               |
            x, for the next layer
"""

import nki
import nki.isa as nisa
import nki.language as nl
from nki.collectives import ReplicaGroup
from nki.language import NKIObject

from .all_reduce import Reduction, add_reduced
from .attention import attention
from .cache_update import LayerCaches, await_readers, load_offsets, update_caches
from .constants import Constants
from .layer_tensor import LayerTensor, Weight, layer_tensor
from .layout import load_columns, load_tokens, store_tokens
from .limits import PARTITIONS, RING_SLOT_BYTES, RING_SLOTS
from .linear import Columns, linear, linear_of_shares
from .masks import Masks
from .mlp import mlp
from .rms_norm import normalize_heads, rms_norm
from .rope import Rotation, apply_rope
from .sizes import Context, Core, Sizes
from .weight_ring import WeightRing


class LayerOperands(NKIObject):
    """The weights (`Weight`) and gains of a layer, or of all layers.

    Of one layer, gains and sinks are `LayerTensor`s; of all layers, what `layer_tensor` takes.
    Those with a default may be absent.
    """

    def __init__(
        self,
        W_qkv,
        W_out,
        W_gate,
        W_up,
        W_down,
        W_gamma_qkv,
        W_gamma_mlp,
        W_gamma_q=None,
        W_gamma_k=None,
        W_gamma_post_attention=None,
        W_gamma_post_mlp=None,
        sinks=None,
    ):
        self.W_qkv = W_qkv
        self.W_out = W_out
        self.W_gate = W_gate
        self.W_up = W_up
        self.W_down = W_down
        self.W_gamma_qkv = W_gamma_qkv
        self.W_gamma_mlp = W_gamma_mlp
        self.W_gamma_q = W_gamma_q
        self.W_gamma_k = W_gamma_k
        self.W_gamma_post_attention = W_gamma_post_attention
        self.W_gamma_post_mlp = W_gamma_post_mlp
        self.sinks = sinks

    def layer(self, number, looped=False):
        """One layer's operands, of all layers'; `number` is a register if `looped`."""
        return LayerOperands(
            self.W_qkv.layer(number, looped=looped),
            self.W_out.layer(number, looped=looped),
            self.W_gate.layer(number, looped=looped),
            self.W_up.layer(number, looped=looped),
            self.W_down.layer(number, looped=looped),
            layer_tensor(self.W_gamma_qkv, number, looped=looped),
            layer_tensor(self.W_gamma_mlp, number, looped=looped),
            W_gamma_q=layer_tensor(self.W_gamma_q, number, looped=looped),
            W_gamma_k=layer_tensor(self.W_gamma_k, number, looped=looped),
            W_gamma_post_attention=layer_tensor(self.W_gamma_post_attention, number, looped=looped),
            W_gamma_post_mlp=layer_tensor(self.W_gamma_post_mlp, number, looped=looped),
            sinks=layer_tensor(self.sinks, number, looped=looped),
        )


class Caches(NKIObject):
    """All layers' caches in HBM: a tensor per layer, or one with a leading layer axis."""

    def __init__(self, K_caches, V_caches, stacked):
        self.K_caches = K_caches
        self.V_caches = V_caches
        self.stacked = stacked

    def layer(self, index, first_layer):
        """The `LayerCaches` of layer `index` of this launch."""
        if self.stacked:
            number = first_layer + index
            return LayerCaches(
                layer_tensor(self.K_caches, number),
                layer_tensor(self.V_caches, number),
                self.K_caches,
                self.V_caches,
                number,
            )
        K_cache = self.K_caches[index]
        V_cache = self.V_caches[index]
        return LayerCaches(LayerTensor(K_cache), LayerTensor(V_cache), K_cache, V_cache, 0)

    def layer_of_loop(self, number):
        """The `LayerCaches` of the layer whose number a register holds."""
        return LayerCaches(
            layer_tensor(self.K_caches, number, looped=True),
            layer_tensor(self.V_caches, number, looped=True),
            self.K_caches,
            self.V_caches,
            0,
        )

    def results(self):
        """The tensors to return, keys before values."""
        if self.stacked:
            return [self.K_caches, self.V_caches]
        results = []
        results.extend(self.K_caches)
        results.extend(self.V_caches)
        return results


class OffsetTables(NKIObject):
    """The kernel's tables of write offsets, each [1 or L, n] in HBM or None."""

    def __init__(self, windows, keys, values):
        self.windows = windows
        self.keys = keys
        self.values = values

    def load(self, number, looped=False):
        """Row `number` of the tables, on chip: `WriteOffsets`."""
        return load_offsets(
            layer_tensor(self.windows, number, looped=looped),
            layer_tensor(self.keys, number, looped=looped),
            layer_tensor(self.values, number, looped=looped),
        )


class Shared(NKIObject):
    """What every layer uses besides the `Context`."""

    def __init__(self, rotation, masks, reduction):
        self.rotation = rotation
        self.masks = masks
        self.reduction = reduction


class LayerRange(NKIObject):
    """The layers of a launch: `count` layers from `first`, in tensors with a layer axis."""

    def __init__(self, first, count):
        self.first = first
        self.count = count


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
    eps,
    replica_groups,
    sbuf_residual_and_cc,
    clamp_bound,
    softmax_scale,
    attention_softcap,
    activation,
    first_layer,
    num_layers,
    stacked_caches,
    looped,
):
    """All layers.

    A per-layer argument is a tuple of tensors. The caches may be one tensor with a leading layer
    axis, because updated tensors are returned whole. With `looped`, every per-layer argument is one
    tensor with a layer axis, and the layers are a loop on the device: one copy of a layer's
    instructions, whatever the depth.

    Args:
      X: [B, S, H].
      W_qkvs: per layer [H, (q + 2k) * d].
      W_outs: per layer [q * d, H].
      W_gates: per layer [H, I]; in X's dtype or float8.
      W_ups: per layer [H, I]; in X's dtype or float8.
      W_downs: per layer [I, H]; in X's dtype or float8.
      W_gamma_qkvs: per layer [1, H].
      W_gamma_mlps: per layer [1, H].
      K_caches: per layer [B, k, d, S_max]; updated.
      V_caches: per layer [B, k, S_max, d]; updated.
      RoPE_cos: [d/2, B, S].
      RoPE_sin: [d/2, B, S].
      prior_mask: [S_prior, B * q * S] uint8, 1 where a query attends a cache slot; None if no query
        attends any slot.
      active_mask: [T, B * q * S] uint8, 1 where a query attends a new key, of any sequence.
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
      bias_qkvs: per layer [1, (q + 2k) * d] or None. This and the next six are None if no layer has
        one.
      bias_outs: per layer [1, H] or None.
      W_gamma_qs: per layer [1, d] or None.
      W_gamma_ks: per layer [1, d] or None.
      W_gamma_post_attentions: per layer [1, H] or None.
      W_gamma_post_mlps: per layer [1, H] or None.
      sinks: per layer [1, q] float32 or None.
      eps: RMSNorm epsilon.
      replica_groups: tuple of tuples of ranks, or None for no all-reduce.
      sbuf_residual_and_cc: whether the all-reduce goes from SBUF to SBUF, else through HBM.
      clamp_bound: bound of the inputs of float8 products; 0 for none.
      softmax_scale: factor of the scores; None for d**-0.5.
      attention_softcap: bound of the scaled scores, by a tanh; 0 for none.
      activation: of the MLP's gate: "silu", "gelu_tanh", "gelu" or "relu2".
      first_layer: the first layer to run, in tensors with a layer axis; tuples begin with it.
      num_layers: how many layers to run.
      stacked_caches: whether the caches have a layer axis.
      looped: whether all per-layer arguments have a layer axis, and the layers loop on the device.

    Returns:
      Hidden states [B, S, H], then the key caches, then the value caches.
    """
    caches = Caches(K_caches, V_caches, stacked_caches)
    sizes = _sizes(
        X,
        W_gates,
        K_caches[0],
        prior_mask,
        active_mask,
        eps,
        clamp_bound,
        softmax_scale,
        attention_softcap,
        activation,
    )
    core = Core()
    group = None
    if replica_groups != None:
        group = ReplicaGroup(replica_groups)
    shared = Shared(
        Rotation(RoPE_cos, RoPE_sin, sizes),
        Masks(prior_mask, active_mask, sizes, core),
        Reduction(group, sbuf_residual_and_cc),
    )
    ring = WeightRing(RING_SLOTS, RING_SLOT_BYTES)
    context = Context(sizes, core, ring, Constants(sizes))
    tables = OffsetTables(window_offsets, key_offsets, value_offsets)
    operands = LayerOperands(
        Weight(W_qkvs, bias=bias_qkvs),
        Weight(W_outs, bias=bias_outs),
        Weight(W_gates, scale=W_gate_scales),
        Weight(W_ups, scale=W_up_scales),
        Weight(W_downs, scale=W_down_scales),
        W_gamma_qkvs,
        W_gamma_mlps,
        W_gamma_q=W_gamma_qs,
        W_gamma_k=W_gamma_ks,
        W_gamma_post_attention=W_gamma_post_attentions,
        W_gamma_post_mlp=W_gamma_post_mlps,
        sinks=sinks,
    )
    layers = LayerRange(first_layer, num_layers)
    x = load_tokens(X, sizes, core)
    if looped:
        x = _looped_layers(x, operands, tables, caches, layers, shared, context)
    else:
        x = _unrolled_layers(x, operands, tables, caches, layers, shared, context)
    hidden = nl.ndarray((sizes.B, sizes.S, sizes.H), dtype=sizes.dtype, buffer=nl.shared_hbm)
    store_tokens(hidden, x, sizes, core)
    results = [hidden]
    results.extend(caches.results())
    return tuple(results)


def _sizes(
    X,
    W_gates,
    K_cache,
    prior_mask,
    active_mask,
    eps,
    clamp_bound,
    softmax_scale,
    attention_softcap,
    activation,
):
    B, S, H = X.shape
    k = K_cache.shape[1]
    d = K_cache.shape[2]
    S_max = K_cache.shape[3]
    q = active_mask.shape[1] // (B * S)
    S_prior = 0
    if prior_mask != None:
        S_prior = prior_mask.shape[0]
    I = W_gates[0].shape[1]  # noqa: E741
    return Sizes(
        B,
        S,
        H,
        I,
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
    )


def _unrolled_layers(x, operands, tables, caches, layers, shared, context):
    """The residual stream after the layers, each with instructions of its own."""
    offsets = tables.load(0)
    for index in range(layers.count):
        own = caches.layer(index, layers.first)
        own.offsets = offsets
        x = _layer(x, operands.layer(index), own, shared, context)
    return x


def _looped_layers(x, operands, tables, caches, layers, shared, context):
    """The same with one copy of a layer's instructions, which the device repeats."""
    ring = context.ring
    masks = shared.masks

    def body(number):
        # Every turn executes the same instructions, so it takes the same buffers.
        ring.restart()
        masks.enter_loop()
        own = caches.layer_of_loop(number)
        own.offsets = tables.load(number, looped=True)
        layer = operands.layer(number, looped=True)
        nisa.tensor_copy(dst=x, src=_layer(x, layer, own, shared, context))

    nl.fori_loop(layers.first, layers.first + layers.count, body)
    return x


def _layer(x, layer, caches, shared, context):
    """One layer of the residual stream x [128, n, T], of which this core holds n chunks of H."""
    normed = rms_norm(x, layer.W_gamma_qkv, context)
    heads = _heads(normed, layer, shared.rotation, context)
    attended, values = attention(
        heads, caches.K_cache, caches.V_cache, shared.masks, context, sinks=layer.sinks
    )
    await_readers(caches, context.core)
    W_out = layer.W_out
    partial = _project_out(attended, W_out, context)
    gamma = layer.W_gamma_post_attention
    x = add_reduced(x, partial, shared.reduction, context, bias=W_out.bias, gamma=gamma)
    normed = rms_norm(x, layer.W_gamma_mlp, context)
    partial = mlp(normed, layer, context)
    offsets = caches.offsets
    if offsets.values != None:
        # Only here, so that no load of weights queues behind writes that wait for attention.
        update_caches(caches, heads, values, context)
    return add_reduced(x, partial, shared.reduction, context, gamma=layer.W_gamma_post_mlp)


def _heads(normed, layer, rotation, context):
    """[rows, q + 2k, chunks, T]: queries and keys rotated, then values, in the compute dtype."""
    W_qkv = layer.W_qkv
    sizes = context.sizes
    rotated = sizes.q + sizes.k
    count = rotated + sizes.k
    shape = (sizes.head_rows, count * sizes.head_chunks, sizes.T)
    product = nl.ndarray(shape, dtype=sizes.dtype, buffer=nl.sbuf)
    bias = load_columns(W_qkv.bias, 0, count * sizes.head_chunks, width=sizes.head_rows)
    columns = Columns(0, sizes.head_rows, bias=bias)
    linear_of_shares(product, normed, W_qkv.tensor, columns, context)
    heads = product.reshape_dim(1, (count, sizes.head_chunks))
    if layer.W_gamma_q != None or layer.W_gamma_k != None:
        normalize_heads(heads[:, 0:rotated, :, :], layer.W_gamma_q, layer.W_gamma_k, context)
    apply_rope(heads[:, 0:rotated, :, :], rotation, context)
    return heads


def _project_out(attended, W_out, context):
    """[128, n, T] float32: this core's chunks of attended [rows, q * chunks, T] @ W_out."""
    sizes = context.sizes
    share = context.hidden_share()
    partial = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    columns = Columns(share.first * PARTITIONS, PARTITIONS)
    linear(partial, attended, W_out.tensor, columns, context)
    return partial
