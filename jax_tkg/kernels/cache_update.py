"""Writing new keys and values into their cache slots."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject


def token_rows(heads, first_head, sizes):
    """Heads first_head .. first_head + k of [d, n, T] as rows [T, k, d]."""
    rows = nl.ndarray((sizes.T, sizes.k, sizes.d), dtype=sizes.dtype, buffer=nl.sbuf)
    for kv_head in range(sizes.k):
        turned = nl.ndarray((sizes.T, sizes.d), dtype=sizes.dtype, buffer=nl.psum)
        nisa.nc_transpose(
            dst=turned, data=heads[:, first_head + kv_head, :], engine=nisa.engine.tensor
        )
        nisa.tensor_copy(dst=rows[:, kv_head, :], src=turned)
    return rows


class Places(NKIObject):
    """Where the new tokens of a layer are written, on chip; the largest number where not.

    Attributes:
      windows: [1, B] uint32: where a sequence's S new keys lie in a row in the cache, the first
        number of the first; None where they do not.
      keys: [T, 1] uint32: the first number of a key that no window writes; None for no such.
      values: [T, 1] uint32: a value's first row; None for no update at all.
    """

    def __init__(self, windows, keys, values):
        self.windows = windows
        self.keys = keys
        self.values = values


def load_places(windows, keys, values):
    """The `Places` of a layer, on chip, from tables: each a `LayerTensor` [n], or None."""
    return Places(_load_places(windows, 0), _load_places(keys, 1), _load_places(values, 1))


def _load_places(table, dim):
    """A table [n] on chip: [1, n] where `dim` is 0, [n, 1] where it is 1."""
    if table == None:
        return None
    places = table.view.expand_dim(dim)
    loaded = nl.ndarray(places.shape, dtype=nl.uint32, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=table.select_layer(places))
    return loaded


class LayerCaches(NKIObject):
    """One layer's caches, and where its new keys and values are written.

    Attributes:
      K_cache: `LayerTensor` [B, k, d, S_max].
      V_cache: `LayerTensor` [B, k, S_max, d].
      K_whole: the tensor that holds the keys: one layer's, or with a leading layer axis.
      V_whole: likewise.
      number: the layer's place in these, where `places` count from the layer's start; else 0.
      places: the layer's `Places`.
    """

    def __init__(self, K_cache, V_cache, K_whole, V_whole, number):
        self.K_cache = K_cache
        self.V_cache = V_cache
        self.K_whole = K_whole
        self.V_whole = V_whole
        self.number = number
        self.places = None


def await_readers(caches, sizes):
    """Waits for the other core, which may still be reading slots that are written next."""
    places = caches.places
    if sizes.cores > 1 and places.values != None:
        nisa.core_barrier(data=caches.K_whole, cores=(0, 1))
        nisa.core_barrier(data=caches.V_whole, cores=(0, 1))


def update_caches(caches, heads, values, sizes):
    """Writes the new tokens of a layer at their places; what has none is skipped.

    The keys of a sequence are columns of the cache. Where they are neighbours, one transfer writes
    them together, two bytes each being what DMA is slowest at. The rest are written by one scatter,
    and so are the values, which are rows of the cache. With two cores each writes a half.

    Args:
      caches: the layer's; both cores have read them.
      heads: [d, q + 2k, T].
      values: [T, k, d].
      sizes: the launch's sizes.
    """
    places = caches.places
    d = sizes.d
    S = sizes.S
    S_max = sizes.S_max
    K_numbers = _flat(caches.K_whole, 1)
    if places.windows != None:
        for sequence in range(sizes.B):
            if sizes.core == sequence % sizes.cores:
                keys = heads[:, sizes.q : sizes.q + sizes.k, sequence * S : (sequence + 1) * S]
                nisa.dma_copy(
                    dst=K_numbers.ap(
                        pattern=[[S_max, d], [d * S_max, sizes.k], [1, S]],
                        offset=caches.number * sizes.B * sizes.k * d * S_max,
                        scalar_offset=places.windows[0:1, sequence : sequence + 1],
                        indirect_dim=0,
                    ),
                    src=keys,
                    oob_mode=nisa.oob_mode.skip,
                )
    first, last = _token_share(sizes)
    if last > first:
        if places.keys != None:
            rows = token_rows(heads, sizes.q, sizes)
            nisa.dma_copy(
                dst=K_numbers.ap(
                    pattern=[[1, last - first], [d * S_max, sizes.k], [S_max, d]],
                    offset=caches.number * sizes.B * sizes.k * d * S_max,
                    vector_offset=places.keys[first:last, :],
                    indirect_dim=0,
                ),
                src=rows[first:last, :, :],
                oob_mode=nisa.oob_mode.skip,
            )
        nisa.dma_copy(
            dst=_flat(caches.V_whole, d).ap(
                pattern=[[d, last - first], [d * S_max, sizes.k], [1, d]],
                offset=caches.number * sizes.B * sizes.k * S_max * d,
                vector_offset=places.values[first:last, :],
                indirect_dim=0,
            ),
            src=values[first:last, :, :],
            oob_mode=nisa.oob_mode.skip,
        )


def _flat(tensor, width):
    """A tensor in HBM as rows of `width` numbers."""
    total = 1
    for size in tensor.shape:
        total = total * size
    return tensor.reshape((total // width, width))


def _token_share(sizes):
    """(first, last) of the tokens that this core scatters; the second core has the odd one, for the
    first has the odd window."""
    if sizes.cores == 1:
        return (0, sizes.T)
    half = sizes.T // 2
    if sizes.core == 0:
        return (0, half)
    return (half, sizes.T)
