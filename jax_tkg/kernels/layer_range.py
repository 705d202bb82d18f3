"""Which layers a launch runs, of which kinds, and where their operands are."""

from nki.language import NKIObject

from .layer_tensor import LoopLayer


class LayerRange(NKIObject):
    """The layers of a launch: `count` layers from `first`.

    Layers are numbered over all launches. Operands with a layer axis hold all layers.

    Attributes:
      first: the first layer.
      count: how many layers.
      kinds: the kind of each layer of all launches; None if layers are alike.
      looped: whether the layers are a loop on the device, and all operands have a layer axis.
    """

    def __init__(self, first, count, kinds, looped):
        self.first = first
        self.count = count
        self.kinds = kinds
        self.looped = looped

    def kind(self, layer):
        """The kind of a layer."""
        if self.kinds == None:
            return 0
        return self.kinds[layer]

    def kind_count(self):
        """How many kinds there are, in all launches."""
        count = 1
        if self.kinds != None:
            for kind in self.kinds:
                count = max(count, kind + 1)
        return count

    def first_of(self, kind):
        """The launch's first layer of a kind, or None if it has none."""
        found = None
        for index in range(self.count):
            layer = self.first + index
            if found == None and self.kind(layer) == kind:
                found = layer
        return found

    def place(self, layer):
        """How many layers of a layer's kind come before it, in all launches."""
        return self.count_of(self.kind(layer), 0, layer)

    def count_of(self, kind, first, last):
        """How many of the layers first .. last - 1 are of a kind."""
        count = 0
        for layer in range(first, last):
            if self.kind(layer) == kind:
                count += 1
        return count

    def pattern_size(self):
        """The fewest layers that, repeated, give the kinds of the launch's layers."""
        size = self.count
        for index in range(self.count - 1):
            # From the longest to the shortest.
            candidate = self.count - 1 - index
            if self._repeats(candidate):
                size = candidate
        return size

    def _repeats(self, size):
        same = True
        for index in range(self.count - size):
            layer = self.first + index
            if self.kind(layer) != self.kind(layer + size):
                same = False
        return same

    def loop_layer(self, turn, index, size, turns):
        """Layer `index` of a turn of `size` layers, in operands that hold the layers of all kinds.

        Args:
          turn: the register of a loop of `turns` turns that begins with the launch.
          index: 0 .. size - 1.
          size: layers of a turn.
          turns: turns of the loop.
        """
        return LoopLayer(turn, self.first + index, size, turns)

    def loop_place(self, turn, index, size, turns):
        """The same layer in operands that hold the layers of its kind only."""
        layer = self.first + index
        step = self.count_of(self.kind(layer), self.first, self.first + size)
        return LoopLayer(turn, self.place(layer), step, turns)
