"""The gated MLP of transposed activations."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .feature_order import FeatureOrder, groups_of_a_load
from .layout import load_columns, load_features, load_ordered
from .limits import PSUM_BANK, PSUM_GROUP_BANKS, feature_chunks
from .linear import linear_of_shares
from .residual_product import ResidualLoads, divides_rows, residual_product
from .rms_norm import clamped
from .row_loads import Columns, begin, share_loads
from .sizes import bytes_of


class MlpLoads(NKIObject):
    """What a gated MLP loads from HBM: its scales at once, its weights when they begin.

    Attributes:
      width, chunks: its features, as chunks of so many; a shared expert's need not be of 128.
      order: their `FeatureOrder`, if the cores divide the rows of W_down; else None.
      pieces: (first, last) of the chunks of which gate and up are multiplied together.
      gate, up: for each piece its `share_loads`.
      down: the `ResidualLoads` of W_down.
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
        self.pieces = []
        self.gate = []
        self.up = []
        # As many chunks at a time as PSUM accumulates at once, so that SBUF use does not grow with
        # I.
        at_once = PSUM_GROUP_BANKS * (PSUM_BANK // sizes.T)
        # The cores' halves of several pieces would not be neighbors.
        divided = at_once >= self.chunks and divides_rows(W_down.tensor, self.chunks, context)
        self.order = None
        rows = FeatureOrder(self.width)
        if divided:
            half = self.chunks // 2
            groups = down_groups(0, half, W_gate, W_up, W_down)
            groups.extend(down_groups(half, half, W_gate, W_up, W_down))
            rows = FeatureOrder(self.width, groups)
            self.order = rows
        self.gate_scale = self._scale(W_gate, context)
        self.up_scale = self._scale(W_up, context)
        self.down_scale = load_features(W_down.scale, context)
        first = 0
        while first < self.chunks:
            last = min(first + at_once, self.chunks)
            self.pieces.append((first, last))
            columns = Columns(first * self.width, self.width, order=self.order)
            self.gate.append(share_loads(W_gate.tensor, columns, last - first, context))
            self.up.append(share_loads(W_up.tensor, columns, last - first, context))
            first = last
        self.down = ResidualLoads(W_down.tensor, self.chunks, rows, context, divided=divided)

    def _scale(self, weight, context):
        """[width, chunks] float32 on chip: the scale of W_gate or W_up; None without."""
        if self.order == None:
            return load_columns(weight.scale, 0, self.chunks, context, width=self.width)
        return load_ordered(weight.scale, self.order, 0, self.chunks, context)

    def columns(self, piece, scale):
        """A piece's `Columns`, with their part of the scale."""
        first, last = self.pieces[piece]
        if scale != None:
            scale = scale[:, first:last]
        return Columns(first * self.width, self.width, scale=scale, order=self.order)

    def begin(self):
        """Begins the first loads of W_gate."""
        begin(self.gate[0])

    def after_up(self, piece):
        """The loads of the product that follows that of W_up."""
        if piece + 1 < len(self.gate):
            return self.gate[piece + 1]
        return self.down.loads

    def kept(self):
        """The first of the chunks whose rows of W_down this core multiplies; None if all are."""
        if self.down.divides_rows:
            return self.down.first
        return None


def down_groups(first, count, W_gate, W_up, W_down):
    """(first, size) of groups of chunks of an MLP's features, whose rows of W_down load at once."""
    view = W_down.tensor.view
    row_bytes = view.shape[len(view.shape) - 1] * bytes_of(view.dtype)
    gate_bytes = bytes_of(W_gate.tensor.view.dtype)
    up_bytes = bytes_of(W_up.tensor.view.dtype)
    return groups_of_a_load(first, count, row_bytes, max(gate_bytes, up_bytes))


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
    count = loads.down.last - loads.down.first
    hidden = nl.ndarray((width, count, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    kept = loads.kept()
    arithmetic = context.arithmetic
    gate_input = input_of(normed, W_gate, context)
    up_input = input_of(normed, W_up, context)
    for piece in range(len(loads.pieces)):
        first, last = loads.pieces[piece]
        if kept != None:
            last = count
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
            kept=kept,
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
                kept=kept,
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
                kept=kept,
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


def _down(hidden, weight, loads, context):
    scale = loads.down_scale
    if scale != None:
        hidden = clamped(hidden, context)
    return residual_product(hidden, weight.tensor, loads.down, context, scale=scale)
