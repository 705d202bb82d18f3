"""Which experts a rank runs for a layer, in what order, and with what weights of the tokens."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .limits import LISTED_AT_ONCE, NO_EXPERT, PARTITIONS, PSUM_BANK, ceiling_divide
from .router import EIGHT


class Batch(NKIObject):
    """Up to eight of the experts that this rank runs for a layer.

    Attributes:
      count: how many passes they are.
      numbers: [1, 8] int32: which of the held experts, plus `base`; `NO_EXPERT` for a pass without.
      weights: [128, 8, T] float32, alike on all partitions: the tokens' weights; 0 for no expert.
      present: [128, 8] uint8, 1 where there is an expert; None if there always is.
      places: [8, 1] uint32, the numbers; None if nothing is loaded by them.
      weights_of_places: [8, T] float32, the weights of pass i on partition i; or None.
    """

    def __init__(self, count, numbers, weights, present, places, weights_of_places):
        self.count = count
        self.numbers = numbers
        self.weights = weights
        self.present = present
        self.places = places
        self.weights_of_places = weights_of_places


class Listing(NKIObject):
    """Some of the experts that this rank runs, in their order.

    Attributes:
      exact: [1, n] float32, n a multiple of eight: which of the held experts, plus `base`;
        `NO_EXPERT` for none.
      numbers: the same, int32.
      order: [128, n] float32, alike on all partitions: their `Routing.order`; 0 for no expert.
      present: [128, n] uint8, 1 where there is an expert; None if there always is.
      begun: how many of them were taken for a `Batch`.
    """

    def __init__(self, exact, numbers, order, present):
        self.exact = exact
        self.numbers = numbers
        self.order = order
        self.present = present
        self.begun = 0


class Assignment(NKIObject):
    """The experts that this rank runs for a layer, each once, in ascending order.

    `next_batch` gives them eight at a time, so that the first can begin before all are listed.

    Attributes:
      left: [1, max(E, 8)] float32: the `order` of the experts that are chosen and not yet listed,
        else 0.
      listing: the `Listing` of the next batch; None before the first and after the last.
      listed, given: how many passes were listed, and how many of them were in a `Batch`.
      weights: [min(E, 128), chunks, T] float32: the weights by expert; None before they are needed,
        which is after the first numbers.
    """

    def __init__(self, choices, base, routing, context):
        """The experts of a layer's tokens.

        Args:
          choices: of each of the `token_blocks` its `Choice`.
          base: [1, 1] float32 on chip, added to numbers; or None.
          routing: `Routing`.
          context: the launch's `Context`.
        """
        constants = context.constants
        sizes = context.sizes
        T = sizes.T
        E = routing.experts
        self.base = base
        self.routing = routing
        self.choices = choices
        choice = choices[0]
        users = choice.chosen
        if T > 1:
            users = nl.ndarray((1, E), dtype=nl.float32, buffer=nl.psum)
            for number in range(len(choices)):
                choice = choices[number]
                chosen = choice.chosen
                nisa.nc_matmul(
                    dst=users,
                    stationary=constants.ones[0 : chosen.shape[0], 0:1],
                    moving=chosen,
                    accumulate=number > 0,
                )
        width = ceiling_divide(E, EIGHT) * EIGHT
        self.left = nl.ndarray((1, width), dtype=nl.float32, buffer=nl.sbuf)
        if width > E:
            nisa.memset(dst=self.left, value=0.0)
        nisa.scalar_tensor_tensor(
            dst=self.left[:, 0:E],
            data=users,
            op0=nl.minimum,
            operand0=1.0,
            op1=nl.multiply,
            operand1=routing.order[:, 0:E],
        )
        self.listing = None
        self.listed = 0
        self.given = 0
        self.weights = None

    def next_batch(self, context, places=False):
        """The next eight passes, or what is left of them, as a `Batch`; with its `places`, or not.

        After the last of a `Listing` the next one is made, before the experts of this batch run.
        """
        routing = self.routing
        sizes = context.sizes
        T = sizes.T
        passes = routing.passes(T)
        if self.listing == None:
            self.listing = self._list(min(EIGHT, passes), context)
        listing = self.listing
        first = listing.begun
        last = first + EIGHT
        rows = None
        if places:
            # First, for what is loaded by them queues behind what begins to load before.
            turned = nl.ndarray((EIGHT, 1), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_transpose(
                dst=turned, data=listing.exact[:, first:last], engine=nisa.engine.tensor
            )
            rows = nl.ndarray((EIGHT, 1), dtype=nl.uint32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=rows, src=turned)
        if self.weights == None:
            self.weights = self._by_expert(T)
        present = None
        if listing.present != None:
            present = listing.present[:, first:last]
        picked = self._picked(listing.order[:, first:last])
        of_places = None
        if places:
            of_places = self._of_places(picked)
        weights = nl.ndarray((PARTITIONS, EIGHT, T), dtype=nl.float32, buffer=nl.sbuf)
        at_once = min(EIGHT, PSUM_BANK // T)
        begun = 0
        while begun < EIGHT:
            end = min(begun + at_once, EIGHT)
            self._spread(weights[:, begun:end, :], picked, begun, context)
            begun = end
        listing.begun = last
        count = min(EIGHT, passes - self.given)
        self.given += count
        if last == listing.numbers.shape[1] and self.listed < passes:
            self.listing = self._list(min(LISTED_AT_ONCE, passes - self.listed), context)
        numbers = listing.numbers[:, first:last]
        return Batch(count, numbers, weights, present, rows, of_places)

    def _list(self, count, context):
        """The `Listing` of at least the next `count` passes."""
        routing = self.routing
        sizes = context.sizes
        T = sizes.T
        constants = context.constants
        passes = routing.passes(T)
        if routing.are_all(T):
            order = self.left
        else:
            size = ceiling_divide(count, EIGHT) * EIGHT
            order = nl.ndarray((1, size), dtype=nl.float32, buffer=nl.sbuf)
            found = 0
            while found < size:
                highest = order[:, found : found + EIGHT]
                nisa.max8(dst=highest, src=self.left)
                found += EIGHT
                if self.listed + found < passes:
                    left = nl.ndarray(self.left.shape, dtype=nl.float32, buffer=nl.sbuf)
                    nisa.nc_match_replace8(dst=left, data=self.left, vals=highest, imm=0.0)
                    self.left = left
            if self.listed > 0 and self.listed + size >= passes:
                gaps = routing.gaps
                order = gaps.between(order, passes - self.listed, constants)
        size = order.shape[1]
        self.listed += size
        exact = self._numbers(order, T)
        numbers = nl.ndarray((1, size), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=numbers, src=exact)
        # A product with ones copies a row to all partitions.
        spread = nl.ndarray((PARTITIONS, size), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=spread, stationary=constants.ones[0:1, :], moving=order, accumulate=False
        )
        everywhere = nl.ndarray((PARTITIONS, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=everywhere, src=spread, engine=nisa.engine.scalar)
        present = None
        if routing.may_be_fewer(T):
            present = nl.ndarray((PARTITIONS, size), dtype=nl.uint8, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=present, data=spread, op0=nl.greater, operand0=0.0)
        return Listing(exact, numbers, everywhere, present)

    def _by_expert(self, T):
        """[min(E, 128), chunks, T] float32: the tokens' weights, experts on the partitions."""
        routing = self.routing
        E = routing.experts
        chunks = ceiling_divide(E, PARTITIONS)
        turned = nl.ndarray((min(E, PARTITIONS), chunks, T), dtype=nl.float32, buffer=nl.sbuf)
        token = 0
        for choice in self.choices:
            weights = choice.weights(routing)
            last = token + weights.shape[0]
            for chunk in range(chunks):
                first = chunk * PARTITIONS
                rows = min(PARTITIONS, E - first)
                product = nl.ndarray((rows, last - token), dtype=nl.float32, buffer=nl.psum)
                nisa.nc_transpose(
                    dst=product, data=weights[:, first : first + rows], engine=nisa.engine.tensor
                )
                nisa.tensor_copy(dst=turned[0:rows, chunk, token:last], src=product)
            token = last
        return turned

    def _numbers(self, order, T):
        """[1, n] float32: the numbers of the experts with these places in the order."""
        routing = self.routing
        numbers = nl.ndarray(order.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=numbers,
            data=order,
            op0=nl.multiply,
            operand0=-1.0,
            op1=nl.add,
            operand1=routing.held * 1.0,
        )
        if self.base != None:
            nisa.tensor_scalar(dst=numbers, data=numbers, op0=nl.add, operand0=self.base)
        if routing.may_be_fewer(T):
            beyond = nl.ndarray(order.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(
                dst=beyond,
                data=order,
                op0=nl.equal,
                operand0=0.0,
                op1=nl.multiply,
                operand1=NO_EXPERT * 1.0,
            )
            nisa.tensor_tensor(dst=numbers, data1=numbers, data2=beyond, op=nl.add)
        return numbers

    def _picked(self, order):
        """[rows, 8] float32 for each chunk of experts: 1 where expert and place have one number.

        order: [128, 8], of a `Listing`.
        """
        routing = self.routing
        found = []
        for chunk in range(self.weights.shape[1]):
            rows = min(PARTITIONS, routing.experts - chunk * PARTITIONS)
            is_it = nl.ndarray((rows, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(
                dst=is_it,
                data=order[0:rows, :],
                op0=nl.equal,
                operand0=routing.order_columns[0:rows, chunk : chunk + 1],
            )
            found.append(is_it)
        return found

    def _of_places(self, picked):
        """[8, T] float32: the weights of the expert of each place, of what `_picked` returns."""
        T = self.weights.shape[2]
        product = nl.ndarray((EIGHT, T), dtype=nl.float32, buffer=nl.psum)
        for chunk in range(len(picked)):
            is_it = picked[chunk]
            nisa.nc_matmul(
                dst=product,
                stationary=is_it,
                moving=self.weights[0 : is_it.shape[0], chunk, :],
                accumulate=chunk > 0,
            )
        weights = nl.ndarray((EIGHT, T), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=weights, src=product, engine=nisa.engine.scalar)
        return weights

    def _spread(self, dst, picked, first, context):
        """dst [128, n, T]: the weights of places `first` and on, of what `_picked` returns."""
        constants = context.constants
        count = dst.shape[1]
        T = dst.shape[2]
        spread = nl.ndarray((PARTITIONS, count, T), dtype=nl.float32, buffer=nl.psum)
        for chunk in range(len(picked)):
            is_it = picked[chunk]
            rows = is_it.shape[0]
            weights = nl.ndarray((rows, count, T), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(
                dst=weights,
                data1=is_it[:, first : first + count].expand_dim(2).broadcast(2, T),
                data2=self.weights[0:rows, chunk : chunk + 1, :].broadcast(1, count),
                op=nl.multiply,
            )
            nisa.nc_matmul(
                dst=spread,
                stationary=constants.ones[0:rows, :],
                moving=weights,
                accumulate=chunk > 0,
            )
        nisa.tensor_copy(dst=dst, src=spread)
