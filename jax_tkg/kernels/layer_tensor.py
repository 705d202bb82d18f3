"""One layer's operands in HBM, whose layer may be known only when the kernel runs."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject


class LoopLayer(NKIObject):
    """A layer that a loop on the device runs: first + turn * step.

    Attributes:
      turn: the register that counts the loop's turns, from 0.
      first: the layer of turn 0.
      step: layers from turn to turn.
      turns: how many turns the loop has.
    """

    def __init__(self, turn, first, step, turns):
        self.turn = turn
        self.first = first
        self.step = step
        self.turns = turns

    def place(self, multiplier):
        """[1, 1] float32 on chip: the layer's number times `multiplier`."""
        turn = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.register_store(dst=turn, src=self.turn)
        place = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=place,
            data=turn,
            op0=nl.multiply,
            operand0=self.step * multiplier * 1.0,
            op1=nl.add,
            operand1=self.first * multiplier * 1.0,
        )
        return place

    def tensor(self, tensors):
        """The layer's `LayerTensor`, of a tensor with a layer axis."""
        if self.step == 1:
            return LayerTensor(tensors[self.first], tensors, self.turn)
        # The register counts turns: so dimension 0 is theirs.
        turns = tensors[0 : self.turns * self.step].reshape_dim(0, (self.turns, self.step))
        return LayerTensor(tensors[self.first], turns, self.turn)


class LayerTensor(NKIObject):
    """One layer's tensor in HBM: a weight, gain, scale, cache or table.

    Slice and permute `view`, which is static, and pass the result through `select_layer` before an
    instruction reads it. Only there does a register enter, as the offset of an explicit access
    pattern: the one form of run-time address that NKI documents for registers.

    Attributes:
      view: the tensor; in a loop on the device, that of turn 0.
      whole: in a loop, all layers' tensors, with a leading axis for the turns; else None.
      number: in a loop, the register that holds the number of the turn; else None.
      may_be_absent: whether the tensor is an expert's and its number may be `NO_EXPERT`, so that
        loads are skipped.
    """

    def __init__(self, view, whole=None, number=None, may_be_absent=False):
        self.view = view
        self.whole = whole
        self.number = number
        self.may_be_absent = may_be_absent

    def select_layer(self, view):
        """A view of `self.view` as an instruction's operand: of the layer that runs."""
        if self.whole == None:
            return view
        # The offset counts turns, since dimension 0 of `whole` is the turn.
        return self.whole.ap(
            pattern=view.get_pattern(),
            offset=view.offset,
            scalar_offset=self.number,
            indirect_dim=0,
        )

    def load(self, dst, view):
        """dst = a view of `self.view`, of the layer that runs; nothing if the expert is absent."""
        mode = nisa.oob_mode.error
        if self.may_be_absent:
            mode = nisa.oob_mode.skip
        nisa.dma_copy(
            dst=dst,
            src=self.select_layer(view),
            oob_mode=mode,
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.sync,
        )

    def expert(self, number, may_be_absent):
        """An expert's `LayerTensor`, of that of all experts [E', m, n] or [E', n].

        Args:
          number: [1, 1] int32 on chip: the expert, counted from the first of layer 0 if the layers
            are a loop on the device.
          may_be_absent: whether the number may be `NO_EXPERT`.
        """
        by_expert = self._all_experts()
        return LayerTensor(by_expert.select(0, number), may_be_absent=may_be_absent)

    def rows_of_experts(self, numbers, first, last):
        """Columns of rows [count, n] of experts, of all experts' [E', n] or [E', 1, n].

        Args:
          numbers: [count, 1] uint32 on chip, as `expert` counts; those past the end are skipped.
          first, last: the first column, and the one after the last.
        """
        by_expert = self._all_experts()
        return by_expert.flatten_dims(1, 2)[:, first:last].vector_select(0, numbers)

    def _all_experts(self):
        """[experts, m, n], those of all layers if they are a loop on the device."""
        shape = self.view.shape
        rows = 1
        if len(shape) == 3:
            rows = shape[1]
        columns = shape[len(shape) - 1]
        experts = self.view
        if self.whole != None:
            experts = self.whole
        total = 1
        for size in experts.shape:
            total = total * size
        return experts.reshape((total // (rows * columns), rows, columns))


def layer_tensor(tensors, number, looped=False):
    """One layer's `LayerTensor`, or None if the layer has none.

    Args:
      tensors: a tuple of tensors, entries of which may be None, or one tensor with a layer axis;
        or None. With `looped`, one tensor or None.
      number: which layer: an integer, or with `looped` a `LoopLayer`.
      looped: whether the layers are a loop on the device.
    """
    if tensors == None:
        return None
    if looped:
        return number.tensor(tensors)
    if tensors[number] == None:
        return None
    return LayerTensor(tensors[number])


class Weight(NKIObject):
    """A weight and what belongs to it, of one layer or of all.

    Attributes:
      tensor: [rows, columns], in the compute dtype or float8.
      scale: [1 or 128, columns] float32, factors of the columns of a float8 weight; or None.
      bias: [1, columns], added to the product; or None.

    Of one layer, each is a `LayerTensor`. Of all layers, each is what `layer_tensor` takes.
    """

    def __init__(self, tensor, scale=None, bias=None):
        self.tensor = tensor
        self.scale = scale
        self.bias = bias

    def layer(self, number, looped=False):
        """One layer's `Weight`, of all layers'."""
        return Weight(
            layer_tensor(self.tensor, number, looped=looped),
            scale=layer_tensor(self.scale, number, looped=looped),
            bias=layer_tensor(self.bias, number, looped=looped),
        )
