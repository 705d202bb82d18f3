"""Scales and biases of experts, on chip."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .feature_order import FeatureOrder, even_blocks
from .limits import LAST_QUARTER, PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS, feature_chunks
from .mlp import down_groups


class ExpertVectors(NKIObject):
    """Scales and biases of the experts of a `Batch`, on chip.

    Attributes:
      gate_scale, up_scale, gate_bias, up_bias: `TurnedVectors`, or None.
      down_scale, down_bias: the same; the bias divided by the ranks that have all of it, because it
        counts once.
      down_rows, down_weights: instead of `down_bias` where activations are weighted, [count, n] of
        the tiles of H that this core adds, and the tokens' weights [count, T], which are divided
        instead; both in the bias's dtype, and on the partitions from `LAST_QUARTER` on.
    """

    def __init__(self, layer, batch, routing, context, summed):
        """summed: the `ExpertSum` to which biases of W_down are added."""
        W_gate = layer.W_gate
        W_up = layer.W_up
        W_down = layer.W_down
        order = expert_order(layer, context)
        self.gate_scale = turned_vectors(W_gate.scale, batch, order, context)
        self.gate_bias = turned_vectors(W_gate.bias, batch, order, context)
        self.up_scale = turned_vectors(W_up.scale, batch, order, context)
        self.up_bias = turned_vectors(W_up.bias, batch, order, context)
        order = context.hidden_order()
        self.down_scale = turned_vectors(W_down.scale, batch, order, context)
        self.down_bias = None
        self.down_rows = None
        self.down_weights = None
        sharing = 1.0 / routing.sharing
        if summed.weighted and W_down.bias != None:
            first, last = summed.own_tiles(context)
            if first == last:
                return
            self.down_rows = _rows_of_experts(
                W_down.bias,
                batch,
                first * PARTITIONS,
                last * PARTITIONS,
                LAST_QUARTER,
                context,
            )
            shape = (PARTITIONS, context.sizes.T)
            whole = nl.ndarray(shape, dtype=self.down_rows.dtype, buffer=nl.sbuf)
            self.down_weights = whole[LAST_QUARTER : LAST_QUARTER + batch.count, :]
            nisa.tensor_scalar(
                dst=self.down_weights,
                data=batch.weights_of_places[0 : batch.count, :],
                op0=nl.multiply,
                operand0=sharing,
            )
        else:
            self.down_bias = turned_vectors(W_down.bias, batch, order, context, factor=sharing)


def _rows_of_experts(vectors, batch, first, last, partition, context):
    """[count, last - first]: these columns of the vectors of a `Batch`'s experts.

    `vectors` is a `LayerTensor` of all experts, [E', n] or [E', 1, n]. One transfer brings all rows
    of the batch, to partitions from `partition` on.
    """
    count = batch.count
    rows = context.loaded.take(count, last - first, vectors.view.dtype, partition=partition)
    mode = nisa.oob_mode.error
    if batch.present != None:
        # Rows of no expert are skipped.
        mode = nisa.oob_mode.skip
        nisa.memset(dst=rows, value=0.0, engine=nisa.engine.gpsimd)
    nisa.dma_copy(
        dst=rows,
        src=vectors.rows_of_experts(batch.places[0:count, :], first, last),
        oob_mode=mode,
        dge_mode=nisa.dge_mode.swdge,
    )
    return rows


def turned_vectors(vectors, batch, order, context, factor=1.0):
    """The `TurnedVectors` of a `LayerTensor` of all experts, times a number; None of None."""
    if vectors == None:
        return None
    shape = vectors.view.shape
    rows = _rows_of_experts(vectors, batch, 0, shape[len(shape) - 1], 0, context)
    return TurnedVectors(rows, order, factor)


class TurnedVectors(NKIObject):
    """A vector of each expert of a batch, turned when it is first needed.

    Its row loads while the weights of the first experts do, behind which it may have to wait. So
    the Tensor Engine, which turns rows in the order of the program, multiplies the weights before.

    Attributes:
      rows: [count, n].
      order: the `FeatureOrder` of the n features.
      factor: of the vectors.
      columns: [width, chunks, count] float32, or None until one is needed.
    """

    def __init__(self, rows, order, factor):
        self.rows = rows
        self.order = order
        self.factor = factor
        self.columns = None

    def of_expert(self, index):
        """[width, chunks]: that of one expert."""
        if self.columns == None:
            self.columns = self._turn()
        return self.columns[:, :, index]

    def _turn(self):
        rows = self.rows
        width = self.order.width
        count = rows.shape[0]
        chunks = rows.shape[1] // width
        columns = nl.ndarray((width, chunks, count), dtype=nl.float32, buffer=nl.sbuf)
        for block in even_blocks(0, chunks, PSUM_BANK // count):
            first, size = block
            turned = nl.ndarray((width, size, count), dtype=rows.dtype, buffer=nl.psum)
            for chunk in range(size):
                nisa.nc_transpose(
                    dst=turned[:, chunk, :],
                    data=self.order.columns(rows, 0, first + chunk),
                    engine=nisa.engine.tensor,
                )
            nisa.tensor_copy(
                dst=columns[:, first : first + size, :], src=turned, engine=nisa.engine.scalar
            )
        if self.factor != 1.0:
            nisa.tensor_scalar(dst=columns, data=columns, op0=nl.multiply, operand0=self.factor)
        return columns


class ColumnVectors(NKIObject):
    """Scale and bias of columns of an expert's weight, as `Columns` asks for them.

    Attributes:
      scale, bias: `TurnedVectors`, or None.
      index: the expert's place in them.
      first: the chunk of features with which the columns begin.
    """

    def __init__(self, scale, bias, index, first=0):
        self.scale = scale
        self.bias = bias
        self.index = index
        self.first = first

    def scale_of(self, first, last):
        """[width, last - first]: the scale of these tiles, or None."""
        return self._part(self.scale, first, last)

    def bias_of(self, first, last):
        """[width, last - first]: the bias of these tiles, or None."""
        return self._part(self.bias, first, last)

    def _part(self, turned, first, last):
        if turned == None:
            return None
        columns = turned.of_expert(self.index)
        return columns[:, self.first + first : self.first + last]


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
