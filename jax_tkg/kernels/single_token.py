"""The experts of a single token: those of its highest logits, in their order.

What `Assignment` lists of several tokens is here the result of one search.
"""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .assignment import Batch
from .limits import PARTITIONS
from .router import EIGHT, divide_by_sum


def lists_directly(routing, T):
    """Whether experts may be listed so: all are held, at most eight chosen, by their logits."""
    alone = T == 1 and routing.held == routing.experts
    return alone and routing.chosen <= EIGHT and routing.method != "sigmoid_topk"


class SingleToken(NKIObject):
    """The experts that a token runs; like `Assignment`, of one `Batch`.

    Attributes:
      logits: [1, max(E, 8)] float32.
      base: [1, 1] float32 on chip, added to numbers; or None.
      routing: `Routing`.
      factor: [128, 1] float32, positive, by which the logits are still to be multiplied, which
        does not change their order; or None.
    """

    def __init__(self, logits, base, routing, factor):
        self.logits = logits
        self.base = base
        self.routing = routing
        self.factor = factor

    def next_batch(self, context, places=False):
        """All passes, as a `Batch`; with its `places`, or not."""
        constants = context.constants
        routing = self.routing
        highest = nl.ndarray((1, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
        nisa.max8(dst=highest, src=self.logits)
        found = nl.ndarray((1, EIGHT), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.nc_find_index8(dst=found, data=self.logits, vals=highest)
        numbers = found.view(nl.int32)
        if self.base != None:
            numbers = nl.ndarray((1, EIGHT), dtype=nl.int32, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=numbers, data=found, op0=nl.add, operand0=self.base)
        rows = None
        if places:
            exact = nl.ndarray((1, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=exact, src=numbers)
            rows = nl.ndarray((EIGHT, 1), dtype=nl.uint32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=rows, src=_turned(exact))
        weights = self._weights(highest)
        of_places = None
        if places:
            of_places = nl.ndarray((EIGHT, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=of_places, src=_turned(weights), engine=nisa.engine.scalar)
        # A product with ones copies a row to all partitions.
        spread = nl.ndarray((PARTITIONS, EIGHT), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=spread, stationary=constants.ones[0:1, :], moving=weights, accumulate=False
        )
        everywhere = nl.ndarray((PARTITIONS, EIGHT, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=everywhere, src=spread.expand_dim(2))
        return Batch(routing.chosen, numbers, everywhere, None, rows, of_places)

    def _weights(self, highest):
        """[1, 8] float32: the weights of the experts with the `highest` logits."""
        routing = self.routing
        chosen = routing.chosen
        lowered = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)
        scale = 1.0
        if self.factor == None:
            nisa.tensor_scalar(dst=lowered, data=highest[:, 0:1], op0=nl.multiply, operand0=-1.0)
        else:
            scale = self.factor[0:1, :]
            nisa.tensor_scalar(
                dst=lowered,
                data=highest[:, 0:1],
                op0=nl.multiply,
                operand0=-1.0,
                op1=nl.multiply,
                operand1=scale,
            )
        values = nl.ndarray((1, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=values, op=nl.exp, data=highest, scale=scale, bias=lowered)
        summands = values[:, 0:chosen]
        if routing.method == "softmax_topk" and not routing.normalize:
            logits = self.logits[:, 0 : routing.experts]
            summands = nl.ndarray((1, routing.experts), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=summands, op=nl.exp, data=logits, scale=scale, bias=lowered)
        divide_by_sum(values, summands, routing)
        return values


def _turned(row):
    """[8, 1] float32 in PSUM, of a row [1, 8]."""
    turned = nl.ndarray((EIGHT, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=row, engine=nisa.engine.tensor)
    return turned
