"""Writing new keys and values into their cache slots."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject

from .cache_scales import CacheScales, as_stored


def token_rows(heads, first_head, sizes):
    """Heads first_head .. first_head + k of [rows, n, chunks, T] as rows [T, k, d]."""
    rows = nl.ndarray((sizes.T, sizes.k, sizes.d), dtype=sizes.dtype, buffer=nl.sbuf)
    for kv_head in range(sizes.k):
        turned = nl.ndarray((sizes.T, sizes.d), dtype=sizes.dtype, buffer=nl.psum)
        for chunk in range(sizes.head_chunks):
            first = chunk * sizes.head_rows
            nisa.nc_transpose(
                dst=turned[:, first : first + sizes.head_rows],
                data=heads[:, first_head + kv_head, chunk, :],
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
      keys: [T, 1] uint32: the offset of the first element of each key that no window writes; None
        if windows write all keys.
      values: [T, 1] uint32: each value's first row, counted in rows of d; None for no update.
      blocks: [1, B * n] uint32: where caches are in blocks, the block of each entry of the tables;
        else None.
    """

    def __init__(self, windows, keys, values, blocks):
        self.windows = windows
        self.keys = keys
        self.values = values
        self.blocks = blocks


def load_offsets(windows, keys, values, blocks=None):
    """The `WriteOffsets` of a layer, on chip, from tables: each a `LayerTensor` [n], or None."""
    return WriteOffsets(
        _load_offsets(windows, 0),
        _load_offsets(keys, 1),
        _load_offsets(values, 1),
        _load_offsets(blocks, 0),
    )


def _load_offsets(table, dim):
    """A table [n] on chip: [1, n] if `dim` is 0, [n, 1] if it is 1."""
    if table == None:
        return None
    offsets = table.view.expand_dim(dim)
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
    transfer writes all keys of a sequence whose slots are neighbors. One scatter writes the other
    keys, and another the values, which are rows of the cache. With two cores, each writes half.

    Args:
      caches: the layer's `LayerCaches`; both cores have read them.
      heads: [rows, q + 2k, chunks, T].
      values: [T, k, d].
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
        stored = as_stored(columns, scales.key, K_elements.dtype)
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
    first, last = _token_share(sizes, core)
    if last > first:
        V_rows = _flat(caches.V_whole, d)
        stored_values = as_stored(values, scales.value, V_rows.dtype)
        if offsets.keys != None:
            keys = as_stored(token_rows(heads, sizes.q, sizes), scales.key, K_elements.dtype)
            nisa.dma_copy(
                dst=K_elements.ap(
                    pattern=[[1, last - first], [d * S_max, sizes.k], [S_max, d]],
                    offset=caches.number * sizes.cache_rows * sizes.k * d * S_max,
                    vector_offset=offsets.keys[first:last, :],
                    indirect_dim=0,
                ),
                src=keys[first:last, :, :],
                oob_mode=nisa.oob_mode.skip,
                dge_mode=nisa.dge_mode.swdge,
            )
        nisa.dma_copy(
            dst=V_rows.ap(
                pattern=[[d, last - first], [d * S_max, sizes.k], [1, d]],
                offset=caches.number * sizes.cache_rows * sizes.k * S_max * d,
                vector_offset=offsets.values[first:last, :],
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


def _token_share(sizes, core):
    """(first, last) of the tokens that this core scatters.

    The second core takes the odd token, because the first takes the odd window.
    """
    if core.count == 1:
        return (0, sizes.T)
    half = sizes.T // 2
    if core.index == 0:
        return (0, half)
    return (half, sizes.T)
