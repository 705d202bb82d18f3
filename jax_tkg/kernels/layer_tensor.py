"""One layer's tensor in HBM, whose layer may be known only when the kernel runs."""

from nki.language import NKIObject


class LayerTensor(NKIObject):
    """One layer's tensor in HBM: a weight, gain, scale, cache or table.

    Slice and permute `view`, which is static, and pass the result through `select_layer` before an
    instruction reads it. Only there does a register enter, as the offset of an explicit access
    pattern: the one form of run-time address that NKI documents for registers.

    Attributes:
      view: the tensor; in a loop on the device, that of layer 0.
      whole: in a loop, all layers' tensors, with a leading layer axis; else None.
      number: in a loop, the register that holds the layer's number; else None.
    """

    def __init__(self, view, whole=None, number=None):
        self.view = view
        self.whole = whole
        self.number = number

    def select_layer(self, view):
        """A view of `self.view` as an instruction's operand: of the layer that runs."""
        if self.whole == None:
            return view
        # The offset counts layers, since dimension 0 of `whole` is the layer.
        return self.whole.ap(
            pattern=view.get_pattern(),
            offset=view.offset,
            scalar_offset=self.number,
            indirect_dim=0,
        )


def static_layer(tensors, index):
    """Layer `index` of a tuple of tensors, or of a tensor with a layer axis; None for None."""
    if tensors == None:
        return None
    if tensors[index] == None:
        return None
    return LayerTensor(tensors[index])


def looped_layer(tensor, number):
    """The layer that the register `number` holds of a tensor with a layer axis; None for None."""
    if tensor == None:
        return None
    return LayerTensor(tensor[0], tensor, number)
