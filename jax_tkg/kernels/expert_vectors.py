"""Scales and biases of experts, on chip."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .feature_order import FeatureOrder, even_blocks
from .limits import PSUM_BANK, PSUM_GROUP_BANKS, feature_chunks
from .mlp import down_groups


class ExpertVectors(NKIObject):
    """Scales and biases of the experts of a `Batch`, on chip.

    Attributes:
      gate_scale, up_scale, gate_bias, up_bias: [width, chunks, count], or None.
      down_scale, down_bias: [128, H/128, count], or None; the bias divided by the ranks that have
        all of it, because it counts once.
      down_rows, down_weights: instead of `down_bias` where activations are weighted, [count, H],
        and the tokens' weights [count, T], which are divided instead; both in the bias's dtype.
    """

    def __init__(self, layer, batch, routing, context, weighted):
        W_gate = layer.W_gate
        W_up = layer.W_up
        W_down = layer.W_down
        order = expert_order(layer, context)
        self.gate_scale = _columns_of_experts(W_gate.scale, batch, order, context)
        self.gate_bias = _columns_of_experts(W_gate.bias, batch, order, context)
        self.up_scale = _columns_of_experts(W_up.scale, batch, order, context)
        self.up_bias = _columns_of_experts(W_up.bias, batch, order, context)
        order = context.hidden_order()
        self.down_scale = _columns_of_experts(W_down.scale, batch, order, context)
        self.down_bias = None
        self.down_rows = None
        self.down_weights = None
        sharing = 1.0 / routing.sharing
        if weighted and W_down.bias != None:
            self.down_rows = _rows_of_experts(W_down.bias, batch, context)
            shape = (batch.count, context.sizes.T)
            self.down_weights = nl.ndarray(shape, dtype=self.down_rows.dtype, buffer=nl.sbuf)
            nisa.tensor_scalar(
                dst=self.down_weights,
                data=batch.weights_of_places[0 : batch.count, :],
                op0=nl.multiply,
                operand0=sharing,
            )
        else:
            self.down_bias = _columns_of_experts(W_down.bias, batch, order, context)
            if self.down_bias != None and routing.sharing > 1:
                nisa.tensor_scalar(
                    dst=self.down_bias, data=self.down_bias, op0=nl.multiply, operand0=sharing
                )


def _rows_of_experts(vectors, batch, context):
    """[count, n] of a `LayerTensor` of all experts, [E', n] or [E', 1, n]; None of None.

    One transfer brings the rows of all experts of a `Batch`.
    """
    if vectors == None:
        return None
    shape = vectors.view.shape
    count = batch.count
    rows = context.loaded.take(count, shape[len(shape) - 1], vectors.view.dtype)
    mode = nisa.oob_mode.error
    if batch.present != None:
        # Rows of no expert are skipped.
        mode = nisa.oob_mode.skip
        nisa.memset(dst=rows, value=0.0, engine=nisa.engine.gpsimd)
    nisa.dma_copy(
        dst=rows,
        src=vectors.rows_of_experts(batch.places[0:count, :]),
        oob_mode=mode,
        dge_mode=nisa.dge_mode.swdge,
    )
    return rows


def _columns_of_experts(vectors, batch, order, context):
    """[width, n / width, count] float32: `_rows_of_experts`, features where `order` says."""
    rows = _rows_of_experts(vectors, batch, context)
    if rows == None:
        return None
    width = order.width
    count = batch.count
    chunks = rows.shape[1] // width
    columns = nl.ndarray((width, chunks, count), dtype=nl.float32, buffer=nl.sbuf)
    for block in even_blocks(0, chunks, PSUM_BANK // count):
        first, size = block
        turned = nl.ndarray((width, size, count), dtype=rows.dtype, buffer=nl.psum)
        for chunk in range(size):
            nisa.nc_transpose(
                dst=turned[:, chunk, :],
                data=order.columns(rows, 0, first + chunk),
                engine=nisa.engine.tensor,
            )
        nisa.tensor_copy(
            dst=columns[:, first : first + size, :], src=turned, engine=nisa.engine.scalar
        )
    return columns


def of_expert(columns, index):
    """[width, chunks] of one expert of `_columns_of_experts`, or None."""
    if columns == None:
        return None
    return columns[:, :, index]


def expert_order(layer, context):
    """The `FeatureOrder` of an expert's I features."""
    W_gate = layer.W_gate
    features = W_gate.tensor.view.shape[2]
    chunks = feature_chunks(features)
    groups = None
    if chunks <= chunks_at_once(context):
        groups = down_groups(0, chunks, W_gate, layer.W_up, layer.W_down)
    return FeatureOrder(features // chunks, groups)


def chunks_at_once(context):
    """How many chunks of an expert's features are multiplied at once: half of PSUM."""
    sizes = context.sizes
    return PSUM_GROUP_BANKS * (PSUM_BANK // sizes.T)
