"""Masks of the scores: which queries attend which keys."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .attention_blocks import key_blocks, sequence_groups
from .layer_tensor import LayerTensor
from .limits import mask_room_bytes
from .sizes import bytes_of, hidden_share


class Masks(NKIObject):
    """Which queries attend which keys, one byte each: 1 if the query attends the key.

    Attributes:
      prior: `LayerTensor` [S_prior, B * q * S], for the cache slots; None without slots.
      active: [T, B * q * S] on chip, for the new keys.
      tiles: for the cache slots, per group and block: either a list with a tile
        [rows, chunks, columns] per segment, which stays on chip over all layers, or None if there
        is no room. Then the tiles are loaded again for each layer.
      all_on_chip: whether no entry of `tiles` is None.
      bytes: of a partition, those of other kinds included.
    """

    def __init__(self, prior, active, sizes, core, others=0):
        """Loads the masks of a kind; `others` are the bytes of the kinds before it."""
        self.prior = None
        if prior != None:
            self.prior = LayerTensor(prior)
        self.active = nl.ndarray(active.shape, dtype=active.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=self.active, src=active)
        room = _mask_room(sizes, core) - others
        self.bytes = others
        self.tiles = []
        self.all_on_chip = True
        for group in sequence_groups(sizes):
            of_group = []
            for block in key_blocks(group, sizes, core):
                needed = 0
                for segment in block.segments:
                    needed += segment.chunks * group.columns
                tiles = None
                if needed <= room:
                    tiles = self._load_block(block, group)
                    room -= needed
                    self.bytes += needed
                else:
                    self.all_on_chip = False
                of_group.append(tiles)
            self.tiles.append(of_group)

    def _load_block(self, block, group):
        tiles = []
        for segment in block.segments:
            tiles.append(_load_mask(self.prior, segment, group))
        return tiles

    def enter_loop(self):
        """Gives run-time addresses to the masks that are loaded from here on.

        neuronx-cc has refused a loop on the device whose body loads a kernel's input from a static
        address (NCC_ISQI001). So the masks become the only layer of a tensor of layers.
        """
        if not self.all_on_chip:
            prior = self.prior
            masks = prior.view
            self.prior = LayerTensor(
                masks, whole=masks.expand_dim(0), number=nisa.register_alloc(0)
            )

    def leave_loop(self):
        """Takes back what `enter_loop` did, for layers after the loop."""
        if not self.all_on_chip:
            prior = self.prior
            self.prior = LayerTensor(prior.view)

    def get(self, task):
        """The tiles of a task's block on chip, one per segment."""
        tiles = self.tiles[task.group_number][task.block_number]
        if tiles == None:
            return self._load_block(task.block, task.group)
        return tiles


def _mask_room(sizes, core):
    """Bytes of a partition for masks that stay on chip, beside normalization and MLP."""
    share = hidden_share(sizes, core)
    hidden = share.count * sizes.T
    mlp = sizes.mlp_chunks() * sizes.T
    return mask_room_bytes(hidden, sizes.hidden_chunks(), mlp, bytes_of(sizes.dtype))


def _load_mask(prior, segment, group):
    """[rows, chunks, columns]: the mask of a segment."""
    shape = (segment.rows, segment.chunks, group.columns)
    rows = prior.view[segment.start : segment.start + segment.slots, :]
    rows = rows[:, group.first_column : group.first_column + group.columns]
    rows = rows.reshape_dim(0, (segment.rows, segment.chunks))
    mask = nl.ndarray(shape, dtype=rows.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=mask, src=prior.select_layer(rows))
    return mask
