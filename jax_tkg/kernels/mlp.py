"""The gated MLP of transposed activations."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .feature_order import FeatureOrder
from .layout import load_columns, load_features
from .limits import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS, feature_chunks
from .linear import Columns, begin, linear, linear_of_shares, product_loads, share_loads
from .rms_norm import clamped


class MlpLoads(NKIObject):
    """What a gated MLP loads from HBM: its scales at once, its weights when they begin.

    Attributes:
      width, chunks: its features, as chunks of so many; a shared expert's need not be of 128.
      pieces: (first, last) of the chunks of which gate and up are multiplied together.
      gate, up: for each piece its `share_loads`.
      down: the `product_loads` of W_down.
      gate_scale, up_scale, down_scale: on chip, or None.
    """

    def __init__(self, layer, context):
        W_gate = layer.W_gate
        W_up = layer.W_up
        W_down = layer.W_down
        sizes = context.sizes
        features = W_gate.tensor.view.shape[1]
        self.chunks = feature_chunks(features)
        self.width = features // self.chunks
        self.gate_scale = load_columns(W_gate.scale, 0, self.chunks, width=self.width)
        self.up_scale = load_columns(W_up.scale, 0, self.chunks, width=self.width)
        self.down_scale = load_features(W_down.scale, context)
        self.pieces = []
        self.gate = []
        self.up = []
        # As many chunks at a time as PSUM accumulates at once, so that SBUF use does not grow with
        # I.
        at_once = PSUM_GROUP_BANKS * (PSUM_BANK // sizes.T)
        first = 0
        while first < self.chunks:
            last = min(first + at_once, self.chunks)
            self.pieces.append((first, last))
            columns = Columns(first * self.width, self.width)
            self.gate.append(share_loads(W_gate.tensor, columns, last - first, context))
            self.up.append(share_loads(W_up.tensor, columns, last - first, context))
            first = last
        share = context.hidden_share()
        rows = FeatureOrder(self.width)
        columns = _down_columns(None, context)
        self.down = product_loads(W_down.tensor, columns, share.count, self.chunks, context, rows)

    def columns(self, piece, scale):
        """A piece's `Columns`, with their part of the scale."""
        first, last = self.pieces[piece]
        if scale != None:
            scale = scale[:, first:last]
        return Columns(first * self.width, self.width, scale=scale)

    def begin(self):
        """Begins the first loads of W_gate."""
        begin(self.gate[0])

    def after_up(self, piece):
        """The loads of the product that follows that of W_up."""
        if piece + 1 < len(self.gate):
            return self.gate[piece + 1]
        return self.down


def mlp(normed, layer, context, loads=None):
    """This core's columns of a(x @ W_gate) * (x @ W_up) @ W_down, before the all-reduce.

    The activation a is the launch's.

    Args:
      normed: the `Normed` input.
      layer: the layer's operands, of which the weights W_gate, W_up and W_down are used.
      context: the launch's `Context`.
      loads: its `MlpLoads`, which may have begun; None: they begin here.

    Returns:
      [128, tiles, T] float32: the tiles of H that `Share` gives this core.
    """
    sizes = context.sizes
    W_gate = layer.W_gate
    W_up = layer.W_up
    if loads == None:
        loads = MlpLoads(layer, context)
    width = loads.width
    hidden = nl.ndarray((width, loads.chunks, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    arithmetic = context.arithmetic
    gate_input = input_of(normed, W_gate, context)
    up_input = input_of(normed, W_up, context)
    for piece in range(len(loads.pieces)):
        first, last = loads.pieces[piece]
        shape = (width, last - first, sizes.T)
        gate = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        # The other core's part arrives while W_up is multiplied.
        linear_of_shares(
            gate,
            gate_input,
            W_gate.tensor,
            loads.columns(piece, loads.gate_scale),
            context,
            urgent=False,
            loads=loads.gate[piece],
            ahead=loads.up[piece],
        )
        activate(gate, arithmetic)
        product = hidden[:, first:last, :]
        columns = loads.columns(piece, loads.up_scale)
        if arithmetic.activation == "swiglu_oai":
            up = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            linear_of_shares(
                up,
                up_input,
                W_up.tensor,
                columns,
                context,
                loads=loads.up[piece],
                ahead=loads.after_up(piece),
            )
            multiply_up(product, gate, up, arithmetic)
        else:
            linear_of_shares(
                product,
                up_input,
                W_up.tensor,
                columns,
                context,
                multiplier=gate,
                loads=loads.up[piece],
                ahead=loads.after_up(piece),
            )
    return _down(hidden, layer.W_down, loads, context)


def activate(gate, arithmetic):
    """Applies the launch's activation to a tile, in place."""
    activation = arithmetic.activation
    if activation == "swiglu_oai":
        # x * sigmoid(alpha * x) of x = min(gate, limit).
        shape = (gate.shape[0], gate.shape[1], gate.shape[2])
        limit = arithmetic.activation_limit
        nisa.tensor_scalar(dst=gate, data=gate, op0=nl.minimum, operand0=limit)
        share = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=share, op=nl.sigmoid, data=gate, scale=arithmetic.activation_alpha)
        nisa.tensor_tensor(dst=gate, data1=gate, data2=share, op=nl.multiply)
    elif activation == "silu":
        nisa.activation(dst=gate, op=nl.silu, data=gate)
    elif activation == "gelu_tanh":
        nisa.activation(dst=gate, op=nl.gelu_apprx_tanh, data=gate)
    elif activation == "gelu":
        nisa.activation(dst=gate, op=nl.gelu, data=gate)
    else:
        # relu2(x) = max(x, 0) * x.
        nisa.scalar_tensor_tensor(
            dst=gate, data=gate, op0=nl.maximum, operand0=0.0, op1=nl.multiply, operand1=gate
        )


def multiply_up(dst, gate, up, arithmetic):
    """dst = the activated gate * up; in "swiglu_oai" up is bounded, in place, and 1 is added."""
    if arithmetic.activation == "swiglu_oai":
        nisa.tensor_scalar(
            dst=up,
            data=up,
            op0=nl.minimum,
            operand0=arithmetic.activation_limit,
            op1=nl.maximum,
            operand1=-arithmetic.activation_limit,
        )
        nisa.scalar_tensor_tensor(
            dst=dst, data=up, op0=nl.add, operand0=1.0, op1=nl.multiply, operand1=gate
        )
    else:
        nisa.tensor_tensor(dst=dst, data1=gate, data2=up, op=nl.multiply)


def input_of(normed, weight, context):
    """The input of a product with a weight: clamped if the weight is float8."""
    if weight.scale == None:
        return normed
    return normed.clamped(context)


def _down_columns(scale, context):
    """This core's `Columns` of W_down."""
    share = context.hidden_share()
    order = context.hidden_order()
    return Columns(share.first * PARTITIONS, PARTITIONS, scale=scale, order=order)


def _down(hidden, weight, loads, context):
    sizes = context.sizes
    share = context.hidden_share()
    scale = loads.down_scale
    if scale != None:
        hidden = clamped(hidden, context)
    out = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    columns = _down_columns(scale, context)
    linear(out, hidden, weight.tensor, columns, context, loads=loads.down)
    return out
