"""The megakernel: all layers of the forward pass of token generation in one launch."""

import nki
import nki.isa as nisa
import nki.language as nl
from nki.collectives import ReplicaGroup
from nki.language import NKIObject

from .all_reduce import add_reduced
from .attention import attention
from .cache_update import LayerCaches, await_readers, load_places, update_caches
from .constants import Constants
from .layer_tensor import LayerTensor, looped_layer, static_layer
from .layout import load_tokens, store_tokens
from .linear import linear, linear_of_shares
from .masks import Masks
from .mlp import mlp
from .rms_norm import rms_norm
from .rope import apply_rope, load_tables
from .sizes import PARTITIONS, Sizes
from .weight_ring import WeightRing

RING_SLOTS = 6
RING_SLOT_BYTES = 16384
"""96 KiB of each partition hold weights and caches on their way."""


class LayerOperands(NKIObject):
    """One layer's tensors, each a `LayerTensor`; a scale is None where its weight has none."""

    def __init__(self, W_qkv, W_out, W_gate, W_up, W_down, W_gamma_qkv, W_gamma_mlp):
        self.W_qkv = W_qkv
        self.W_out = W_out
        self.W_gate = W_gate
        self.W_up = W_up
        self.W_down = W_down
        self.W_gamma_qkv = W_gamma_qkv
        self.W_gamma_mlp = W_gamma_mlp
        self.W_gate_scale = None
        self.W_up_scale = None
        self.W_down_scale = None


class Caches(NKIObject):
    """All layers' caches in HBM: a tensor per layer, or one with a leading layer axis."""

    def __init__(self, K_caches, V_caches, stacked):
        self.K_caches = K_caches
        self.V_caches = V_caches
        self.stacked = stacked

    def layer(self, index, first_layer):
        """Those of layer `index` of this launch."""
        if self.stacked:
            number = first_layer + index
            return LayerCaches(
                static_layer(self.K_caches, number),
                static_layer(self.V_caches, number),
                self.K_caches,
                self.V_caches,
                number,
            )
        K_cache = self.K_caches[index]
        V_cache = self.V_caches[index]
        return LayerCaches(LayerTensor(K_cache), LayerTensor(V_cache), K_cache, V_cache, 0)

    def layer_of_loop(self, number):
        """Those of the layer whose number a register holds."""
        return LayerCaches(
            looped_layer(self.K_caches, number),
            looped_layer(self.V_caches, number),
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


class Shared(NKIObject):
    """What every layer reads."""

    def __init__(self, cosine, sine, masks, constants, ring):
        self.cosine = cosine
        self.sine = sine
        self.masks = masks
        self.constants = constants
        self.ring = ring


class LayerRange(NKIObject):
    """The layers of a launch: `count`, which begin at `first` in tensors with a layer axis."""

    def __init__(self, first, count):
        self.first = first
        self.count = count


class Reduction(NKIObject):
    """How partial results of the ranks are summed: over `group`, from SBUF to SBUF or in HBM."""

    def __init__(self, group, on_chip):
        self.group = group
        self.on_chip = on_chip


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
    window_places,
    key_places,
    value_places,
    W_gate_scales,
    W_up_scales,
    W_down_scales,
    eps,
    replica_groups,
    sbuf_residual_and_cc,
    clamp_bound,
    first_layer,
    num_layers,
    stacked_caches,
    looped,
):
    """All layers.

    A per-layer argument is a tuple of tensors; the caches may be one tensor with a leading layer
    axis, because what is updated and returned is a whole tensor. Where `looped`, every per-layer
    argument is one tensor with a layer axis, and the layers are a loop on the device, whose
    instructions do not grow with depth.

    Args:
      X: [B, S, H].
      W_qkvs: per layer [H, (q + 2k) * d].
      W_outs: per layer [q * d, H].
      W_gates: per layer [H, I]; in X's dtype or float8.
      W_ups: likewise.
      W_downs: per layer [I, H].
      W_gamma_qkvs: per layer [1, H].
      W_gamma_mlps: likewise.
      K_caches: per layer [B, k, d, S_max]; updated.
      V_caches: per layer [B, k, S_max, d]; updated.
      RoPE_cos: [d/2, B, S].
      RoPE_sin: likewise.
      prior_mask: [S_prior, B * q * S] uint8, 1 where a query attends a cache slot; None where no
        slot is attended.
      active_mask: [T, B * q * S] uint8, likewise for the new keys of all sequences.
      window_places: [1, B] uint32, the first number in a layer's keys of a sequence's S new ones,
        where these are neighbours; 2**32 - 1 for a sequence, and None for all, where they are not.
        Here and below: where `looped`, [L, ...] and counted from the first layer's start.
      key_places: [1, T], the first number of each other key; None for no such.
      value_places: [1, T], each value's first row in a layer's values, as rows of d; None for no
        update.
      W_gate_scales: per layer [1 or 128, I] f32 or None; None for none at all.
      W_up_scales: likewise.
      W_down_scales: likewise, [1 or 128, H].
      eps: RMSNorm epsilon.
      replica_groups: tuple of tuples of ranks, or None for no all-reduce.
      sbuf_residual_and_cc: all-reduce from SBUF to SBUF.
      clamp_bound: bound of the inputs of float8 products; 0 for none.
      first_layer: the first layer to run, in caches with a layer axis; tuples begin with it.
      num_layers: how many layers to run.
      stacked_caches: whether the caches have a layer axis.
      looped: whether all per-layer arguments have one, and the layers loop on the device.

    Returns:
      Hidden states [B, S, H], then the key caches, then the value caches.
    """
    caches = Caches(K_caches, V_caches, stacked_caches)
    sizes = _sizes(X, W_gates, K_caches[0], prior_mask, active_mask, eps, clamp_bound)
    group = None
    if replica_groups != None:
        group = ReplicaGroup(replica_groups)
    shared = _load_shared(RoPE_cos, RoPE_sin, prior_mask, active_mask, sizes)
    places = (window_places, key_places, value_places)
    x = load_tokens(X, sizes)
    weights = (W_qkvs, W_outs, W_gates, W_ups, W_downs, W_gamma_qkvs, W_gamma_mlps)
    scales = (W_gate_scales, W_up_scales, W_down_scales)
    reduction = Reduction(group, sbuf_residual_and_cc)
    layers = LayerRange(first_layer, num_layers)
    if looped:
        x = _looped_layers(x, weights, scales, places, caches, layers, shared, reduction, sizes)
    else:
        x = _unrolled_layers(x, weights, scales, places, caches, layers, shared, reduction, sizes)
    hidden = nl.ndarray((sizes.B, sizes.S, sizes.H), dtype=sizes.dtype, buffer=nl.shared_hbm)
    store_tokens(hidden, x, sizes)
    results = [hidden]
    results.extend(caches.results())
    return tuple(results)


def _sizes(X, W_gates, K_cache, prior_mask, active_mask, eps, clamp_bound):
    B, S, H = X.shape
    k = K_cache.shape[1]
    d = K_cache.shape[2]
    S_max = K_cache.shape[3]
    q = active_mask.shape[1] // (B * S)
    S_prior = 0
    if prior_mask != None:
        S_prior = prior_mask.shape[0]
    I = W_gates[0].shape[1]  # noqa: E741
    return Sizes(B, S, H, I, d, q, k, S_prior, S_max, X.dtype, eps, clamp_bound)


def _unrolled_layers(x, weights, scales, places, caches, layers, shared, reduction, sizes):
    """The residual stream after the layers, each with instructions of its own."""
    window_places, key_places, value_places = places
    on_chip = load_places(
        static_layer(window_places, 0),
        static_layer(key_places, 0),
        static_layer(value_places, 0),
    )
    for index in range(layers.count):
        own = caches.layer(index, layers.first)
        own.places = on_chip
        layer = _layer_of_tuples(weights, scales, index)
        x = _layer(x, layer, own, shared, reduction, sizes)
    return x


def _looped_layers(x, weights, scales, places, caches, layers, shared, reduction, sizes):
    """The same by one copy of a layer's instructions, which the device repeats."""
    window_places, key_places, value_places = places
    ring = shared.ring
    masks = shared.masks

    def body(number):
        # Every iteration executes the same instructions, so it takes the same buffers.
        ring.restart()
        masks.enter_loop()
        own = caches.layer_of_loop(number)
        own.places = load_places(
            looped_layer(window_places, number),
            looped_layer(key_places, number),
            looped_layer(value_places, number),
        )
        layer = _layer_of_loop(weights, scales, number)
        nisa.tensor_copy(dst=x, src=_layer(x, layer, own, shared, reduction, sizes))

    nl.fori_loop(layers.first, layers.first + layers.count, body)
    return x


def _layer_of_tuples(weights, scales, index):
    W_qkvs, W_outs, W_gates, W_ups, W_downs, W_gamma_qkvs, W_gamma_mlps = weights
    W_gate_scales, W_up_scales, W_down_scales = scales
    layer = LayerOperands(
        static_layer(W_qkvs, index),
        static_layer(W_outs, index),
        static_layer(W_gates, index),
        static_layer(W_ups, index),
        static_layer(W_downs, index),
        static_layer(W_gamma_qkvs, index),
        static_layer(W_gamma_mlps, index),
    )
    layer.W_gate_scale = static_layer(W_gate_scales, index)
    layer.W_up_scale = static_layer(W_up_scales, index)
    layer.W_down_scale = static_layer(W_down_scales, index)
    return layer


def _layer_of_loop(weights, scales, number):
    """The layer whose number a register holds, of tensors with a layer axis."""
    W_qkvs, W_outs, W_gates, W_ups, W_downs, W_gamma_qkvs, W_gamma_mlps = weights
    W_gate_scales, W_up_scales, W_down_scales = scales
    layer = LayerOperands(
        looped_layer(W_qkvs, number),
        looped_layer(W_outs, number),
        looped_layer(W_gates, number),
        looped_layer(W_ups, number),
        looped_layer(W_downs, number),
        looped_layer(W_gamma_qkvs, number),
        looped_layer(W_gamma_mlps, number),
    )
    layer.W_gate_scale = looped_layer(W_gate_scales, number)
    layer.W_up_scale = looped_layer(W_up_scales, number)
    layer.W_down_scale = looped_layer(W_down_scales, number)
    return layer


def _load_shared(RoPE_cos, RoPE_sin, prior_mask, active_mask, sizes):
    return Shared(
        load_tables(RoPE_cos, sizes),
        load_tables(RoPE_sin, sizes),
        Masks(prior_mask, active_mask, sizes),
        Constants(sizes.d, sizes.dtype),
        WeightRing(RING_SLOTS, RING_SLOT_BYTES),
    )


def _layer(x, layer, caches, shared, reduction, sizes):
    """One layer of the residual stream x [128, n, T], of which this core holds n chunks of H."""
    normed = rms_norm(x, layer.W_gamma_qkv, shared.constants, sizes)
    heads = _heads(normed, layer, shared, sizes)
    attended, values = attention(
        heads,
        caches.K_cache,
        caches.V_cache,
        shared.masks,
        shared.ring,
        shared.constants,
        sizes,
    )
    await_readers(caches, sizes)
    share = sizes.hidden_share()
    partial = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    first = share.first * PARTITIONS
    linear(partial, attended, layer.W_out, first, PARTITIONS, shared.ring, sizes)
    x = add_reduced(x, partial, reduction.group, reduction.on_chip, sizes)
    normed = rms_norm(x, layer.W_gamma_mlp, shared.constants, sizes)
    partial = mlp(normed, layer, shared.ring, sizes)
    places = caches.places
    if places.values != None:
        # Only here, so that no transfer of weights queues behind those that wait for attention.
        update_caches(caches, heads, values, sizes)
    return add_reduced(x, partial, reduction.group, reduction.on_chip, sizes)


def _heads(normed, layer, shared, sizes):
    """[d, q + 2k, T]: queries and keys rotated, then values, in the compute dtype."""
    rotated = sizes.q + sizes.k
    heads = nl.ndarray((sizes.d, rotated + sizes.k, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    linear_of_shares(heads, normed, layer.W_qkv, 0, sizes.d, shared.ring, sizes)
    part = heads[:, 0:rotated, :]
    apply_rope(part, shared.cosine, shared.sine, shared.constants, sizes)
    return heads
