"""Writing new keys and values into their cache slots."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .cache_scales import CacheScales, as_stored
from .token_blocks import attended_blocks


def rows_of_blocks(heads, first_head, context):
    """Heads first_head .. first_head + k of [rows, n, chunks, T] as rows [tokens, k, d].

    A tile for each of the `attended_blocks`.
    """
    tiles = []
    for block in attended_blocks(context.sizes, context.core):
        tiles.append(_token_rows(heads, first_head, block, context))
    return tiles


def _token_rows(heads, first_head, block, context):
    """The tile of a `TokenBlock`."""
    sizes = context.sizes
    tokens = block.tokens
    last = block.first_token + tokens
    rows = context.stored.take(tokens, sizes.k * sizes.d, sizes.dtype)
    rows = rows.reshape_dim(1, (sizes.k, sizes.d))
    for kv_head in range(sizes.k):
        turned = nl.ndarray((tokens, sizes.d), dtype=sizes.dtype, buffer=nl.psum)
        for chunk in range(sizes.head_chunks):
            first = chunk * sizes.head_rows
            nisa.nc_transpose(
                dst=turned[:, first : first + sizes.head_rows],
                data=heads[:, first_head + kv_head, chunk, block.first_token : last],
                engine=nisa.engine.tensor,
            )
        nisa.tensor_copy(dst=rows[:, kv_head, :], src=turned)
    return rows


class WriteOffsets(NKIObject):
    """Where the new tokens of a layer are written, on chip; 2**32 - 1 means not written.

    Offsets are relative to this layer's cache or, if the layers loop on the device, to the first
    layer's.

    Attributes:
      windows: [1, B] uint32: for a sequence whose S new keys are neighbors in the cache, the offset
        of the first element of the first key; None if no sequence has such a window.
      keys: the offset of the first element of each key that no window writes: of each of the
        `attended_blocks` a tile [tokens, 1] uint32. None if windows write all keys.
      values: likewise each value's first row, counted in rows of d; None for no update.
      blocks: [1, B * n] uint32: where caches are in blocks, the block of each entry of the tables;
        else None.
    """

    def __init__(self, windows, keys, values, blocks):
        self.windows = windows
        self.keys = keys
        self.values = values
        self.blocks = blocks


def load_offsets(windows, keys, values, blocks, token_blocks):
    """The `WriteOffsets` of a layer, on chip, from tables.

    Args:
      windows, keys, values, blocks: each a `LayerTensor` [n], or None.
      token_blocks: `TokenBlock`s of whose tokens keys and values are written.
    """
    return WriteOffsets(
        _load_row(windows),
        _load_columns(keys, token_blocks),
        _load_columns(values, token_blocks),
        _load_row(blocks),
    )


def _load_row(table):
    """A table [n] on chip: [1, n]."""
    if table == None:
        return None
    return _load_offsets(table, table.view.expand_dim(0))


def _load_columns(table, token_blocks):
    """A table [T] on chip: of each block of tokens [tokens, 1]."""
    if table == None:
        return None
    tiles = []
    for block in token_blocks:
        part = table.view[block.first_token : block.first_token + block.tokens]
        tiles.append(_load_offsets(table, part.expand_dim(1)))
    return tiles


def _load_offsets(table, offsets):
    """`offsets`, a view of a table, on chip."""
    loaded = nl.ndarray(offsets.shape, dtype=nl.uint32, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=loaded,
        src=table.select_layer(offsets),
        dge_mode=nisa.dge_mode.hwdge,
        engine=nisa.engine.sync,
    )
    return loaded


class LayerCaches(NKIObject):
    """One layer's caches, and where its new keys and values are written.

    Attributes:
      K_cache: `LayerTensor` [B, k, d, S_max].
      V_cache: `LayerTensor` [B, k, S_max, d].
      K_whole: the tensor that holds the keys: one layer's, or all layers' with a layer axis.
      V_whole: the same for the values.
      number: the layer's place in these, if `offsets` are relative to the layer; else 0.
      offsets: the layer's `WriteOffsets`.
    """

    def __init__(self, K_cache, V_cache, K_whole, V_whole, number):
        self.K_cache = K_cache
        self.V_cache = V_cache
        self.K_whole = K_whole
        self.V_whole = V_whole
        self.number = number
        self.offsets = None


def await_readers(caches, core):
    """Waits for the other core, which may still be reading slots that are written next."""
    offsets = caches.offsets
    if core.count > 1 and offsets.values != None:
        nisa.core_barrier(data=caches.K_whole, cores=(0, 1))
        nisa.core_barrier(data=caches.V_whole, cores=(0, 1))


def update_caches(caches, heads, values, context, scales=None):
    """Writes the new keys and values of a layer at their offsets; skips those without one.

    A key is a column of the cache, two bytes in each of d rows, the slowest pattern for DMA. So one
    transfer writes all keys of a sequence whose slots are neighbors. One scatter of a block of
    tokens writes the other keys, and another the values, which are rows of the cache. With two
    cores, each writes half.

    Args:
      caches: the layer's `LayerCaches`; both cores have read them.
      heads: [rows, q + 2k, chunks, T].
      values: the `rows_of_blocks` of the new values.
      context: the launch's `Context`.
      scales: the layer's `CacheScales`; None for caches in the compute dtype.
    """
    if scales == None:
        scales = CacheScales()
    sizes = context.sizes
    core = context.core
    offsets = caches.offsets
    d = sizes.d
    rows = sizes.head_rows
    chunks = sizes.head_chunks
    S = sizes.S
    S_max = sizes.S_max
    K_elements = _flat(caches.K_whole, 1)
    if offsets.windows != None:
        columns = heads[:, sizes.q : sizes.q + sizes.k, :, :]
        stored = as_stored(columns, scales.key, K_elements.dtype, context)
        for sequence in range(sizes.B):
            if core.index == sequence % core.count:
                keys = stored[:, :, :, sequence * S : (sequence + 1) * S]
                nisa.dma_copy(
                    dst=K_elements.ap(
                        pattern=[
                            [S_max, rows],
                            [d * S_max, sizes.k],
                            [rows * S_max, chunks],
                            [1, S],
                        ],
                        offset=caches.number * sizes.cache_rows * sizes.k * d * S_max,
                        scalar_offset=offsets.windows[0:1, sequence : sequence + 1],
                        indirect_dim=0,
                    ),
                    src=keys,
                    oob_mode=nisa.oob_mode.skip,
                    dge_mode=nisa.dge_mode.hwdge,
                    engine=nisa.engine.scalar,
                )
    blocks = attended_blocks(sizes, core)
    for number in range(len(blocks)):
        _scatter(number, blocks[number], caches, heads, values[number], context, scales)


def _scatter(number, block, caches, heads, values, context, scales):
    """Writes the keys and values of a `TokenBlock` at its `number` of offsets: this core's part.

    Keys are those that no window writes. `values` has the block's rows.
    """
    sizes = context.sizes
    offsets = caches.offsets
    d = sizes.d
    S_max = sizes.S_max
    first, last = _token_share(block, sizes, context.core)
    if last > first:
        V_rows = _flat(caches.V_whole, d)
        stored_values = as_stored(values, scales.value, V_rows.dtype, context)
        if offsets.keys != None:
            K_elements = _flat(caches.K_whole, 1)
            keys = _token_rows(heads, sizes.q, block, context)
            keys = as_stored(keys, scales.key, K_elements.dtype, context)
            of_keys = offsets.keys[number]
            nisa.dma_copy(
                dst=K_elements.ap(
                    pattern=[[1, last - first], [d * S_max, sizes.k], [S_max, d]],
                    offset=caches.number * sizes.cache_rows * sizes.k * d * S_max,
                    vector_offset=of_keys[first:last, :],
                    indirect_dim=0,
                ),
                src=keys[first:last, :, :],
                oob_mode=nisa.oob_mode.skip,
                dge_mode=nisa.dge_mode.swdge,
            )
        of_values = offsets.values[number]
        nisa.dma_copy(
            dst=V_rows.ap(
                pattern=[[d, last - first], [d * S_max, sizes.k], [1, d]],
                offset=caches.number * sizes.cache_rows * sizes.k * S_max * d,
                vector_offset=of_values[first:last, :],
                indirect_dim=0,
            ),
            src=stored_values[first:last, :, :],
            oob_mode=nisa.oob_mode.skip,
            dge_mode=nisa.dge_mode.swdge,
        )


def _flat(tensor, width):
    """A tensor in HBM as rows of `width` elements."""
    total = 1
    for size in tensor.shape:
        total = total * size
    return tensor.reshape((total // width, width))


def _token_share(block, sizes, core):
    """(first, last) of the tokens of a block that this core scatters.

    The second core takes the odd token, because the first takes the odd window.
    """
    first = 0
    last = sizes.T
    if core.count > 1 and core.index == 0:
        last = sizes.T // 2
    elif core.count > 1:
        first = sizes.T // 2
    start = block.first_token
    return (max(first - start, 0), min(last - start, block.tokens))
