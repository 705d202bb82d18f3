"""The SwiGLU MLP of transposed activations."""

import nki.isa as nisa
import nki.language as nl

from .layout import load_columns
from .linear import linear, linear_of_shares
from .rms_norm import clamped
from .sizes import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS


def mlp(normed, layer, ring, sizes):
    """This core's columns of silu(x @ W_gate) * (x @ W_up) @ W_down, before the all-reduce.

    Args:
      normed: the `Normed` input.
      layer: whose W_gate, W_up, W_down and scales are used.
      ring: buffers for the weights.
      sizes: the launch's sizes.

    Returns:
      [128, tiles, T] f32: the tiles of H that `Share` gives this core.
    """
    chunks = sizes.mlp_chunks()
    hidden = nl.ndarray((PARTITIONS, chunks, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    gate_scale = _all_columns(layer.W_gate_scale, chunks)
    up_scale = _all_columns(layer.W_up_scale, chunks)
    gate_input = _input(normed, gate_scale, sizes)
    up_input = _input(normed, up_scale, sizes)
    # As many chunks at a time as are summed in PSUM at once, so that SBUF use does not grow with I.
    at_once = PSUM_GROUP_BANKS * (PSUM_BANK // sizes.T)
    first = 0
    while first < chunks:
        last = min(first + at_once, chunks)
        shape = (PARTITIONS, last - first, sizes.T)
        gate = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
        # The other core's part comes while W_up is multiplied.
        _projection(gate, gate_input, layer.W_gate, gate_scale, first, ring, sizes, None, False)
        nisa.activation(dst=gate, op=nl.silu, data=gate)
        product = hidden[:, first:last, :]
        _projection(product, up_input, layer.W_up, up_scale, first, ring, sizes, gate, True)
        first = last
    return _down(hidden, layer, ring, sizes)


def _all_columns(scale, chunks):
    """A scale [rows, chunks * 128] on chip as [128, chunks]; None for none."""
    if scale == None:
        return None
    return load_columns(scale, 0, chunks)


def _input(normed, scale, sizes):
    """The input of a product with a weight that has this scale: clamped if the weight is float8."""
    if scale == None:
        return normed
    return normed.clamped(sizes)


def _projection(dst, normed, weight, scale, first, ring, sizes, times, urgent):
    """dst [128, n, T] = chunks first .. first + n of x @ weight, dequantised; on every core.

    Multiplied by `times` [128, n, T] f32 where given.
    """
    columns = None
    if scale != None:
        columns = scale[:, first : first + dst.shape[1]]
    start = first * PARTITIONS
    linear_of_shares(dst, normed, weight, start, PARTITIONS, ring, sizes, columns, times, urgent)


def _down(hidden, layer, ring, sizes):
    share = sizes.hidden_share()
    columns = None
    if layer.W_down_scale != None:
        columns = load_columns(layer.W_down_scale, share.first, share.count)
        hidden = clamped(hidden, sizes)
    out = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    first = share.first * PARTITIONS
    linear(out, hidden, layer.W_down, first, PARTITIONS, ring, sizes, columns)
    return out
