"""The gated MLP of transposed activations."""

import nki.isa as nisa
import nki.language as nl

from .layout import load_columns
from .limits import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS
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
    chunks = sizes.mlp_chunks()
    hidden = nl.ndarray((PARTITIONS, chunks, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    gate_scale = load_columns(W_gate.scale, 0, chunks)
    up_scale = load_columns(W_up.scale, 0, chunks)
    gate_input = _input(normed, W_gate, sizes)
    up_input = _input(normed, W_up, sizes)
    # As many chunks at a time as PSUM accumulates at once, so that SBUF use does not grow with I.
    at_once = PSUM_GROUP_BANKS * (PSUM_BANK // sizes.T)
    first = 0
    while first < chunks:
        last = min(first + at_once, chunks)
        shape = (PARTITIONS, last - first, sizes.T)
        gate = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        columns = _columns(first, last, gate_scale)
        # The other core's part arrives while W_up is multiplied.
        linear_of_shares(gate, gate_input, W_gate.tensor, columns, context, urgent=False)
        _activate(gate, sizes.activation)
        product = hidden[:, first:last, :]
        columns = _columns(first, last, up_scale)
        linear_of_shares(product, up_input, W_up.tensor, columns, context, multiplier=gate)
        first = last
    return _down(hidden, layer.W_down, context)


def _activate(gate, activation):
    """Applies the activation of that name to a tile, in place."""
    if activation == "silu":
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


def _input(normed, weight, sizes):
    """The input of a product with a weight: clamped if the weight is float8."""
    if weight.scale == None:
        return normed
    return normed.clamped(sizes)


def _columns(first, last, scale):
    """Chunks first .. last of a weight's columns, with their part of its scale."""
    if scale != None:
        scale = scale[:, first:last]
    return Columns(first * PARTITIONS, PARTITIONS, scale=scale)


def _down(hidden, weight, context):
    sizes = context.sizes
    share = context.hidden_share()
    scale = load_columns(weight.scale, share.first, share.count)
    if scale != None:
        hidden = clamped(hidden, sizes)
    out = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    columns = Columns(share.first * PARTITIONS, PARTITIONS, scale=scale)
    linear(out, hidden, weight.tensor, columns, context)
    return out
