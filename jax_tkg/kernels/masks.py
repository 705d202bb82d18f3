"""Masks of the scores: which queries attend which keys."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .attention_blocks import key_blocks, sequence_groups
from .layer_tensor import LayerTensor
from .linear import bytes_of
from .sizes import PSUM_BANK, PSUM_GROUP_BANKS

MASK_ROOM_BYTES = 118000
"""Of a partition, for masks and the activations beside them: what constants, buffers of weights and
tables leave."""


class Masks(NKIObject):
    """Which queries attend which keys: 1 where they do, of a byte each.

    Attributes:
      prior: `LayerTensor` [S_prior, B * q * S], of the cache slots; None without slots.
      active: [T, B * q * S] on chip, of the new keys.
      tiles: of the cache slots, per group and block: a tile [rows, chunks, columns] per segment,
        which stays on chip over all layers, or None where there is no room: loaded for each layer.
      all_on_chip: whether none of the tiles is None.
    """

    def __init__(self, prior, active, sizes):
        self.prior = None
        if prior != None:
            self.prior = LayerTensor(prior)
        self.active = nl.ndarray(active.shape, dtype=active.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=self.active, src=active)
        room = _mask_room(sizes)
        self.tiles = []
        self.all_on_chip = True
        for group in sequence_groups(sizes):
            of_group = []
            for block in key_blocks(group, sizes):
                needed = 0
                for segment in block.segments:
                    needed += segment.chunks * group.columns
                tiles = None
                if needed <= room:
                    tiles = self._of_block(block, group)
                    room -= needed
                else:
                    self.all_on_chip = False
                of_group.append(tiles)
            self.tiles.append(of_group)

    def _of_block(self, block, group):
        tiles = []
        for segment in block.segments:
            tiles.append(_load_mask(self.prior, segment, group))
        return tiles

    def enter_loop(self):
        """Masks that are loaded from here on get run-time addresses.

        neuronx-cc has refused a loop on the device whose body loads a kernel's input from a static
        address (NCC_ISQI001). So the masks become the only layer of a tensor of layers.
        """
        if not self.all_on_chip:
            prior = self.prior
            masks = prior.view
            self.prior = LayerTensor(masks, masks.expand_dim(0), nisa.register_alloc(0))

    def get(self, task):
        """Per segment of a task's block, on chip."""
        tiles = self.tiles[task.group_number][task.block_number]
        if tiles == None:
            return self._of_block(task.block, task.group)
        return tiles


def _mask_room(sizes):
    """Bytes of a partition for masks that stay on chip, beside what normalisation and MLP need."""
    item = bytes_of(sizes.dtype)
    hidden = sizes.hidden_share().count * sizes.T
    mlp = sizes.mlp_chunks() * sizes.T
    norm = (8 + 2 * item) * hidden + 2 * item * sizes.hidden_chunks()
    part = min(mlp, PSUM_GROUP_BANKS * PSUM_BANK)
    feed_forward = (3 * item + 4) * hidden + 8 * part + 2 * item * mlp
    return MASK_ROOM_BYTES - max(norm, feed_forward)


def _load_mask(prior, segment, group):
    """[rows, chunks, columns]: the mask of a segment."""
    shape = (segment.rows, segment.chunks, group.columns)
    rows = prior.view[segment.start : segment.start + segment.slots, :]
    rows = rows[:, group.first_column : group.first_column + group.columns]
    rows = rows.reshape_dim(0, (segment.rows, segment.chunks))
    mask = nl.ndarray(shape, dtype=rows.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=mask, src=prior.select_layer(rows))
    return mask
