"""The weights, gains and other logits of a layer, out of those of all layers."""

from nki.language import NKIObject

from .layer_tensor import layer_tensor
from .limits import RING_SLOT_BYTES
from .sizes import bytes_of


class LayerOperands(NKIObject):
    """The weights (`Weight`) and gains of a layer, or of all layers.

    Of one layer, gains, sinks, bias_selection, k_scale and v_scale are `LayerTensor`s; of all
    layers, what `layer_tensor` takes. Those with a default may be absent. In a layer with experts,
    W_gate, W_up and W_down have all of them, with an axis in front.
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
        W_router=None,
        bias_selection=None,
        W_shared_gate=None,
        W_shared_up=None,
        W_shared_down=None,
        k_scale=None,
        v_scale=None,
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
        self.W_router = W_router
        self.bias_selection = bias_selection
        self.W_shared_gate = W_shared_gate
        self.W_shared_up = W_shared_up
        self.W_shared_down = W_shared_down
        self.k_scale = k_scale
        self.v_scale = v_scale

    def layer(self, number, looped=False):
        """One layer's operands, of all layers'; `number` is a `LoopLayer` if `looped`."""
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
            W_router=_layer_weight(self.W_router, number, looped),
            bias_selection=layer_tensor(self.bias_selection, number, looped=looped),
            W_shared_gate=_layer_weight(self.W_shared_gate, number, looped),
            W_shared_up=_layer_weight(self.W_shared_up, number, looped),
            W_shared_down=_layer_weight(self.W_shared_down, number, looped),
            k_scale=layer_tensor(self.k_scale, number, looped=looped),
            v_scale=layer_tensor(self.v_scale, number, looped=looped),
        )

    def has_experts(self):
        """Whether this layer's MLP is one of experts."""
        W_gate = self.W_gate
        tensor = W_gate.tensor
        return len(tensor.view.shape) == 3

    def experts_held(self, looped):
        """E', of all layers: the experts that this rank holds in each that has some; else 0."""
        W_gate = self.W_gate
        weights = W_gate.tensor
        held = 0
        if looped:
            if len(weights.shape) == 4:
                held = weights.shape[1]
        else:
            for weight in weights:
                if len(weight.shape) == 3:
                    held = weight.shape[0]
        return held

    def dense_features(self, looped):
        """I, of all layers: most features of a dense MLP or a shared expert; 0 without one."""
        W_gate = self.W_gate
        W_shared_gate = self.W_shared_gate
        dense = _most_columns(W_gate.tensor, 2, looped)
        return max(dense, _most_columns(W_shared_gate.tensor, 2, looped))

    def expert_features(self, looped):
        """I of an expert, of all layers; 0 without experts."""
        W_gate = self.W_gate
        return _most_columns(W_gate.tensor, 3, looped)

    def rows_of_a_load(self):
        """Whole rows of W_gate of the first of all layers that load at once, at least one.

        As many neighbors on a partition make such a load one piece of HBM.
        """
        W_gate = self.W_gate
        first = W_gate.tensor[0]
        row_bytes = first.shape[len(first.shape) - 1] * bytes_of(first.dtype)
        return max(1, RING_SLOT_BYTES // row_bytes)

    def shared_expert(self):
        """The operands whose MLP is the layer's shared expert."""
        return LayerOperands(
            self.W_qkv,
            self.W_out,
            self.W_shared_gate,
            self.W_shared_up,
            self.W_shared_down,
            self.W_gamma_qkv,
            self.W_gamma_mlp,
        )


def _most_columns(weights, axes, looped):
    """Most columns of a weight, among layers whose weight has so many axes; 0 without such layers.

    Args:
      weights: a tuple of tensors or None, or one tensor with a layer axis if `looped`; or None.
      axes: of one layer's weight.
      looped: whether the layers are a loop on the device.
    """
    columns = 0
    if weights == None:
        return columns
    if looped:
        if len(weights.shape) == axes + 1:
            columns = weights.shape[axes]
    else:
        for weight in weights:
            if weight != None and len(weight.shape) == axes:
                columns = max(columns, weight.shape[axes - 1])
    return columns


def _layer_weight(weight, number, looped):
    """One layer's `Weight`, or None if the layer has none."""
    if weight == None or weight.tensor == None:
        return None
    found = weight.layer(number, looped=looped)
    if found.tensor == None:
        return None
    return found
