"""The SwiGLU MLP of transposed activations."""

import nki.isa as nisa
import nki.language as nl

from .exchange import exchange_tiles
from .layout import load_columns
from .linear import linear
from .sizes import PARTITIONS, Share


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
    share = Share(sizes.mlp_chunks(), sizes.cores, sizes.core)
    gate = _projection(normed.tile, layer.W_gate, layer.W_gate_scale, share, ring, sizes, normed)
    up = _projection(normed.tile, layer.W_up, layer.W_up_scale, share, ring, sizes, normed)
    nisa.activation(dst=gate, op=nl.silu, data=gate)
    hidden = nl.ndarray((PARTITIONS, share.total, sizes.T), dtype=sizes.dtype, buffer=nl.sbuf)
    mine = hidden[:, share.first : share.first + share.count, :]
    nisa.tensor_tensor(dst=mine, data1=gate, data2=up, op=nl.multiply)
    exchange_tiles(hidden, share, sizes)
    down = Share(sizes.hidden_chunks(), sizes.cores, sizes.core)
    return _projection(hidden, layer.W_down, layer.W_down_scale, down, ring, sizes)


def _projection(x, weight, scale, share, ring, sizes, normed=None):
    """[128, share.count, T] f32: this core's tiles of columns of x @ weight, dequantised.

    `normed` is what x is the tile of, or None.
    """
    columns = None
    if scale != None:
        columns = load_columns(scale, share.first, share.count)
        x = _clamped(x, sizes)
    product = nl.ndarray((PARTITIONS, share.count, sizes.T), dtype=nl.float32, buffer=nl.sbuf)
    first = share.first * PARTITIONS
    linear(product, x, weight, first, PARTITIONS, ring, sizes, columns, normed)
    return product


def _clamped(x, sizes):
    """x within +-clamp_bound, where that is positive."""
    if sizes.clamp_bound <= 0.0:
        return x
    clipped = nl.ndarray((x.shape[0], x.shape[1], x.shape[2]), dtype=sizes.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=clipped,
        data=x,
        op0=nl.minimum,
        operand0=sizes.clamp_bound,
        op1=nl.maximum,
        operand1=-sizes.clamp_bound,
    )
    return clipped
