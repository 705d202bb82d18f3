"""The caches of a layer and where they are written, out of those of all layers."""

from nki.language import NKIObject

from .cache_update import LayerCaches, load_offsets
from .layer_tensor import LayerTensor, layer_tensor


class Caches(NKIObject):
    """All layers' caches in HBM.

    A tensor per layer of the launch; or if `stacked`, one with a leading layer axis, or if
    `by_kind`, one for each kind of layers, None for a kind that has none in the launch.
    """

    def __init__(self, K_caches, V_caches, stacked, by_kind):
        self.K_caches = K_caches
        self.V_caches = V_caches
        self.stacked = stacked
        self.by_kind = by_kind

    def keys_like(self, layer, layers):
        """A tensor [B, k, d, S_max], as a layer's keys."""
        if self.by_kind:
            stack = self.K_caches[layers.kind(layer)]
            return stack[0]
        if self.stacked:
            return self.K_caches[0]
        return self.K_caches[layer - layers.first]

    def number(self, layer, layers):
        """Where a layer is in tensors with a layer axis."""
        if self.by_kind:
            return layers.place(layer)
        return layer

    def layer(self, layer, layers):
        """The `LayerCaches` of a layer."""
        if self.stacked:
            number = self.number(layer, layers)
            K_whole, V_whole = self._stacks(layer, layers)
            return LayerCaches(
                layer_tensor(K_whole, number),
                layer_tensor(V_whole, number),
                K_whole,
                V_whole,
                number,
            )
        K_cache = self.K_caches[layer - layers.first]
        V_cache = self.V_caches[layer - layers.first]
        return LayerCaches(LayerTensor(K_cache), LayerTensor(V_cache), K_cache, V_cache, 0)

    def layer_of_loop(self, number, layer, layers):
        """The `LayerCaches` of a `LoopLayer`, which is `layer` in turn 0."""
        K_whole, V_whole = self._stacks(layer, layers)
        return LayerCaches(
            layer_tensor(K_whole, number, looped=True),
            layer_tensor(V_whole, number, looped=True),
            K_whole,
            V_whole,
            0,
        )

    def _stacks(self, layer, layers):
        """The stacks of keys and of values that hold a layer."""
        if self.by_kind:
            kind = layers.kind(layer)
            return (self.K_caches[kind], self.V_caches[kind])
        return (self.K_caches, self.V_caches)

    def results(self):
        """The tensors to return, keys before values."""
        if self.stacked and not self.by_kind:
            return [self.K_caches, self.V_caches]
        results = []
        for caches in [self.K_caches, self.V_caches]:
            for cache in caches:
                if cache != None:
                    results.append(cache)
        return results


class OffsetTables(NKIObject):
    """The kernel's tables of write offsets and blocks, each [1 or L, n] in HBM or None.

    Attributes:
      token_blocks: the `TokenBlock`s whose keys and values this core writes.
    """

    def __init__(self, windows, keys, values, blocks, token_blocks):
        self.windows = windows
        self.keys = keys
        self.values = values
        self.blocks = blocks
        self.token_blocks = token_blocks

    def load(self, number, looped=False):
        """Row `number` of the tables, on chip: `WriteOffsets`."""
        return load_offsets(
            layer_tensor(self.windows, number, looped=looped),
            layer_tensor(self.keys, number, looped=looped),
            layer_tensor(self.values, number, looped=looped),
            layer_tensor(self.blocks, number, looped=looped),
            self.token_blocks,
        )
