"""The gated MLP of transposed activations."""

import nki.isa as nisa
import nki.language as nl

from .layout import load_columns, load_features
from .limits import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS, feature_chunks
from .linear import Columns, linear, linear_of_shares
from .rms_norm import clamped


def mlp(normed, layer, context):
    """This core's columns of a(x @ W_gate) * (x @ W_up) @ W_down, before the all-reduce.

    The activation a is the launch's.

    Args:
      normed: the `Normed` input.
      layer: the layer's operands, of which the weights W_gate, W_up and W_down are used.
      context: the launch's `Context`.

    Returns:
      [128, tiles, T] float32: the tiles of H that `Share` gives this core.
    """
    sizes = context.sizes
    W_gate = layer.W_gate
    W_up = layer.W_up
    # A shared expert's features need not be whole chunks of 128.
    features = W_gate.tensor.view.shape[1]
    chunks = feature_chunks(features)
    width = features // chunks
    hidden = nl.ndarray((width, chunks, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    gate_scale = load_columns(W_gate.scale, 0, chunks, width=width)
    up_scale = load_columns(W_up.scale, 0, chunks, width=width)
    gate_input = input_of(normed, W_gate, sizes)
    up_input = input_of(normed, W_up, sizes)
    # As many chunks at a time as PSUM accumulates at once, so that SBUF use does not grow with I.
    at_once = PSUM_GROUP_BANKS * (PSUM_BANK // sizes.T)
    first = 0
    while first < chunks:
        last = min(first + at_once, chunks)
        shape = (width, last - first, sizes.T)
        gate = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        columns = _columns(first, last, gate_scale, width)
        # The other core's part arrives while W_up is multiplied.
        linear_of_shares(gate, gate_input, W_gate.tensor, columns, context, urgent=False)
        activate(gate, sizes)
        product = hidden[:, first:last, :]
        columns = _columns(first, last, up_scale, width)
        if sizes.activation == "swiglu_oai":
            up = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            linear_of_shares(up, up_input, W_up.tensor, columns, context)
            multiply_up(product, gate, up, sizes)
        else:
            linear_of_shares(product, up_input, W_up.tensor, columns, context, multiplier=gate)
        first = last
    return _down(hidden, layer.W_down, context)


def activate(gate, sizes):
    """Applies the launch's activation to a tile, in place."""
    activation = sizes.activation
    if activation == "swiglu_oai":
        # x * sigmoid(alpha * x) of x = min(gate, limit).
        shape = (gate.shape[0], gate.shape[1], gate.shape[2])
        nisa.tensor_scalar(dst=gate, data=gate, op0=nl.minimum, operand0=sizes.activation_limit)
        share = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=share, op=nl.sigmoid, data=gate, scale=sizes.activation_alpha)
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


def multiply_up(dst, gate, up, sizes):
    """dst = the activated gate * up; in "swiglu_oai" up is bounded, in place, and 1 is added."""
    if sizes.activation == "swiglu_oai":
        nisa.tensor_scalar(
            dst=up,
            data=up,
            op0=nl.minimum,
            operand0=sizes.activation_limit,
            op1=nl.maximum,
            operand1=-sizes.activation_limit,
        )
        nisa.scalar_tensor_tensor(
            dst=dst, data=up, op0=nl.add, operand0=1.0, op1=nl.multiply, operand1=gate
        )
    else:
        nisa.tensor_tensor(dst=dst, data1=gate, data2=up, op=nl.multiply)


def input_of(normed, weight, sizes):
    """The input of a product with a weight: clamped if the weight is float8."""
    if weight.scale == None:
        return normed
    return normed.clamped(sizes)


def _columns(first, last, scale, width):
    """Chunks first .. last of a weight's columns, with their part of its scale."""
    if scale != None:
        scale = scale[:, first:last]
    return Columns(first * width, width, scale=scale)


def _down(hidden, weight, context):
    sizes = context.sizes
    share = context.hidden_share()
    scale = load_features(weight.scale, context)
    if scale != None:
        hidden = clamped(hidden, sizes)
    out = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    columns = Columns(
        share.first * PARTITIONS, PARTITIONS, scale=scale, order=context.hidden_order()
    )
    linear(out, hidden, weight.tensor, columns, context)
    return out
