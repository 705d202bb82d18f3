"""Masks of the scores: which queries attend which keys."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .attention_blocks import key_blocks, sequence_groups
from .divisions import mask_groups
from .layer_tensor import LayerTensor
from .limits import PARTITIONS
from .on_chip_bytes import (
    expert_bytes,
    mask_room_bytes,
    stored_bytes,
    table_bytes,
    term_bytes,
)
from .sizes import bytes_of, hidden_share
from .token_blocks import attended_blocks


class Masks(NKIObject):
    """Which queries attend which keys, one byte each: 1 if the query attends the key.

    Masks of cache slots are loaded from HBM, or made on chip from ranges of slots.

    Attributes:
      prior: `LayerTensor` [S_prior, B * q * S], for the cache slots, in the order of the
        `mask_groups`: of each [S_prior, n * q * S] with its n sequences. None without slots, and if
        the masks are made on chip.
      ranges: `ContextRanges`, of which they are then made; else None.
      active: for the new keys, of each of the `attended_blocks` a tile [tokens, n] on chip; n
        counts the columns of the block's sequences.
      tiles: for the cache slots, per group and block: either a list with a tile
        [rows, chunks, columns] per segment, which stays on chip over all layers, or None if there
        is no room. Then the tiles are loaded or made again for each layer.
      all_on_chip: whether no entry of `tiles` is None.
      bytes: of a partition, those of other kinds included.
    """

    def __init__(self, prior, active, sizes, core, others=0, ranges=None, kinds=1):
        """Loads or makes the masks of a kind.

        Args:
          prior: [S_prior, B * q * S] in HBM, in the order of the `mask_groups`; or None.
          active: [T, B * q * S] in HBM; None for a causal mask.
          sizes: `Sizes` of the kind.
          core: `Core`.
          others: bytes of a partition that the kinds before it have.
          ranges: [1 or 3, n] in HBM, as `ContextRanges` takes them; or None.
          kinds: kinds of layers, each of which has tables beside its masks.
        """
        self.prior = None
        if prior != None:
            self.prior = LayerTensor(prior)
        self.ranges = None
        if ranges != None:
            self.ranges = ContextRanges(ranges, sizes)
        self.active = []
        width = sizes.q * sizes.S
        for block in attended_blocks(sizes, core):
            shape = (block.tokens, block.count * width)
            tile = nl.ndarray(shape, dtype=nl.uint8, buffer=nl.sbuf)
            if active != None:
                rows = active[block.first_token : block.first_token + block.tokens, :]
                nisa.dma_copy(
                    dst=tile,
                    src=rows[:, block.first * width : (block.first + block.count) * width],
                    dge_mode=nisa.dge_mode.hwdge,
                    engine=nisa.engine.sync,
                )
            else:
                _make_causal(tile, block.count, sizes)
            self.active.append(tile)
        room = _mask_room(sizes, core, kinds) - others
        self.bytes = others
        self.tiles = []
        self.sizes = sizes
        self.all_on_chip = True
        for group in sequence_groups(sizes, core):
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
        ranges = self.ranges
        for segment in block.segments:
            if ranges != None:
                tiles.append(ranges.mask(segment, group))
            else:
                tiles.append(_load_mask(self.prior, segment, group, self.sizes))
        return tiles

    def enter_loop(self):
        """Gives run-time addresses to the masks that are loaded from here on.

        neuronx-cc has refused a loop on the device whose body loads a kernel's input from a static
        address (NCC_ISQI001). So the masks become the only layer of a tensor of layers.
        """
        if not self.all_on_chip and self.prior != None:
            prior = self.prior
            masks = prior.view
            self.prior = LayerTensor(
                masks, whole=masks.expand_dim(0), number=nisa.register_alloc(0)
            )

    def leave_loop(self):
        """Takes back what `enter_loop` did, for layers after the loop."""
        if not self.all_on_chip and self.prior != None:
            prior = self.prior
            self.prior = LayerTensor(prior.view)

    def of_new_keys(self, group):
        """[tokens, columns]: the mask of the new keys of a group's `TokenBlock`."""
        tile = self.active[group.tokens_number]
        first = (group.first - group.tokens.first) * group.width
        return tile[:, first : first + group.columns]

    def get(self, task):
        """The tiles of a task's block on chip, one per segment."""
        tiles = self.tiles[task.group_number][task.block_number]
        if tiles == None:
            return self._load_block(task.block, task.group)
        return tiles


class ContextRanges(NKIObject):
    """Ranges of cache slots, of which masks are made by comparing slots with their ends.

    Attributes:
      rows: [128, 1 or 3, n] float32, alike on all partitions; n = B, or T for a range of each
        token. Row 0: the ends. Row 1, if there is one: the first slots. Row 2: 1 if all slots
        outside of the range are attended, 0 if those inside are.
      tokens: ranges of a sequence: 1 or S.
    """

    def __init__(self, ranges, sizes):
        """Loads ranges [1 or 3, n] float32."""
        count, n = ranges.shape
        self.tokens = n // sizes.B
        self.rows = nl.ndarray((PARTITIONS, count, n), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=self.rows,
            src=ranges.ap(pattern=[[0, PARTITIONS], [n, count], [1, n]]),
            dge_mode=nisa.dge_mode.hwdge,
            engine=nisa.engine.sync,
        )

    def mask(self, segment, group):
        """[rows, chunks, columns] uint8: the mask of a segment."""
        slots = nl.ndarray((segment.rows, segment.chunks), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(
            dst=slots,
            pattern=[[1, segment.chunks]],
            offset=segment.start,
            channel_multiplier=segment.chunks,
        )
        shape = (segment.rows, segment.chunks, group.columns)
        mask = nl.ndarray(shape, dtype=nl.uint8, buffer=nl.sbuf)
        # One comparison has three dimensions beside the partition: so each token has its own.
        per_range = group.width // self.tokens
        if self.tokens == 1:
            self._compare(mask.reshape_dim(2, (group.count, per_range)), slots, group, 0)
        else:
            by_token = mask.reshape_dim(2, (group.count, per_range, self.tokens))
            for token in range(self.tokens):
                self._compare(by_token[:, :, :, :, token], slots, group, token)
        if segment.attended < segment.slots:
            within = nl.ndarray(slots.shape, dtype=nl.uint8, buffer=nl.sbuf)
            end = segment.start + segment.attended
            nisa.tensor_scalar(dst=within, data=slots, op0=nl.less, operand0=end)
            every = within.expand_dim(2).broadcast(2, group.columns)
            nisa.tensor_tensor(dst=mask, data1=mask, data2=every, op=nl.multiply)
        return mask

    def _compare(self, dst, slots, group, token):
        """Writes dst [rows, chunks, sequences, n]: slots [rows, chunks] in a token's ranges."""
        numbers = slots.expand_dim(2).broadcast(2, dst.shape[2])
        numbers = numbers.expand_dim(3).broadcast(3, dst.shape[3])
        ends = self._row(0, dst, group, token)
        if self.rows.shape[1] == 1:
            nisa.tensor_tensor(dst=dst, data1=numbers, data2=ends, op=nl.less)
        else:
            begun = nl.ndarray(dst.shape, dtype=nl.uint8, buffer=nl.sbuf)
            starts = self._row(1, dst, group, token)
            nisa.tensor_tensor(dst=begun, data1=numbers, data2=starts, op=nl.greater_equal)
            within = nl.ndarray(dst.shape, dtype=nl.uint8, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=within, data1=numbers, data2=ends, op=nl.less)
            nisa.tensor_tensor(dst=within, data1=within, data2=begun, op=nl.multiply)
            inverted = self._row(2, dst, group, token)
            nisa.tensor_tensor(dst=dst, data1=within, data2=inverted, op=nl.not_equal)

    def _row(self, row, dst, group, token):
        """A row of a token's ranges of a group's sequences, in the shape of `dst`."""
        tokens = self.tokens
        first = group.first * tokens
        numbers = self.rows[0 : dst.shape[0], row, first : first + group.count * tokens]
        numbers = numbers.reshape_dim(1, (group.count, tokens))
        numbers = numbers[:, :, token].expand_dim(1).broadcast(1, dst.shape[1])
        return numbers.expand_dim(3).broadcast(3, dst.shape[3])


def _make_causal(mask, B, sizes):
    """mask [T, B * q * S] = 1 where a query attends a new key of its sequence: not a later one.

    Of B sequences, which have T tokens.
    """
    S = sizes.S
    T = B * S
    ones = nl.ndarray((T, B, S), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    # Key p, query (b, s): p >= b * S, then also p <= b * S + s.
    begun = nl.ndarray((T, B, S), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=begun,
        pattern=[[-S, B], [0, S]],
        channel_multiplier=1,
        on_true_tile=ones,
        on_false_value=0.0,
        cmp_op=nl.greater_equal,
    )
    causal = nl.ndarray((T, B, S), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=causal,
        pattern=[[S, B], [1, S]],
        channel_multiplier=-1,
        on_true_tile=begun,
        on_false_value=0.0,
        cmp_op=nl.greater_equal,
    )
    nisa.tensor_copy(
        dst=mask.reshape_dim(1, (B, sizes.q, S)),
        src=causal.expand_dim(2).broadcast(2, sizes.q),
    )


def _mask_room(sizes, core, kinds):
    """Bytes of a partition for masks that stay on chip, beside normalization and MLP."""
    share = hidden_share(sizes, core)
    hidden = share.count * sizes.T
    mlp = sizes.mlp_chunks() * sizes.T
    item = bytes_of(sizes.dtype)
    whole = sizes.hidden_chunks() * sizes.T
    experts = expert_bytes(hidden, whole, sizes.expert_I, sizes.experts, sizes.T, item)
    terms = term_bytes(share.count, sizes.T, item) + term_bytes(sizes.mlp_chunks(), sizes.T, item)
    own_q = sizes.q // sizes.context_ranks
    return mask_room_bytes(
        hidden,
        sizes.hidden_chunks(),
        mlp,
        item,
        experts=experts,
        terms=terms,
        tables=table_bytes(sizes.B, sizes.S, sizes.q, kinds, sizes.experts),
        stored=stored_bytes(sizes.B, sizes.S, own_q, sizes.k, sizes.d, core.count, item),
    )


def _load_mask(prior, segment, group, sizes):
    """[rows, chunks, columns]: the mask of a segment; zero for slots that no query attends."""
    chunks = segment.chunks
    shape = (segment.rows, chunks, group.columns)
    mask = nl.ndarray(shape, dtype=prior.view.dtype, buffer=nl.sbuf)
    if segment.attended // chunks < segment.rows:
        nisa.memset(dst=mask, value=0, engine=nisa.engine.gpsimd)
    width = group.width
    slots = sizes.S_prior
    flat = prior.view.reshape((slots * sizes.B * width,))
    groups = mask_groups(
        sizes.B,
        width,
        slots,
        sizes.d,
        bytes_of(sizes.dtype),
        sizes.block_len,
        sizes.context_ranks,
    )
    for neighbors in groups:
        first, count = neighbors
        begin = max(first, group.first)
        end = min(first + count, group.first + group.count)
        if begin < end:
            rows = flat[slots * first * width : slots * (first + count) * width]
            rows = rows.reshape((slots, count * width))
            own = mask[:, :, (begin - group.first) * width : (end - group.first) * width]
            part = rows[:, (begin - first) * width : (end - first) * width]
            _load_rows(own, part, segment, prior)
    return mask


def _load_rows(mask, slots, segment, prior):
    """Fills mask [rows, chunks, n] with a segment's attended slots, of [S_prior, n]."""
    chunks = segment.chunks
    whole = segment.attended // chunks
    rest = segment.attended % chunks
    attended = slots[segment.start : segment.start + segment.attended, :]
    if whole > 0:
        rows = attended[0 : whole * chunks, :].reshape_dim(0, (whole, chunks))
        _load(mask[0:whole, :, :], rows, prior)
    if rest > 0:
        rows = attended[whole * chunks : segment.attended, :].expand_dim(0)
        _load(mask[whole : whole + 1, 0:rest, :], rows, prior)


def _load(dst, rows, prior):
    nisa.dma_copy(
        dst=dst,
        src=prior.select_layer(rows),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.sync,
    )
