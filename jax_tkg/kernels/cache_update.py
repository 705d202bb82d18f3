"""Writing new keys and values into their cache slots."""

import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject


def value_rows(heads, sizes):
    """The new values of heads [d, q + 2k, T] as rows [T, k, d]."""
    rows = nl.ndarray((sizes.T, sizes.k, sizes.d), dtype=sizes.dtype, buffer=nl.sbuf)
    for kv_head in range(sizes.k):
        turned = nl.ndarray((sizes.T, sizes.d), dtype=sizes.dtype, buffer=nl.psum)
        nisa.nc_transpose(
            dst=turned,
            data=heads[:, sizes.q + sizes.k + kv_head, :],
            engine=nisa.engine.tensor,
        )
        nisa.tensor_copy(dst=rows[:, kv_head, :], src=turned)
    return rows


class LayerCaches(NKIObject):
    """One layer's caches, and where its new keys and values are written.

    Attributes:
      K_cache: [B, k, d, S_max] in HBM, a view.
      V_cache: [B, k, S_max, d] in HBM, a view.
      K_whole: the tensor that holds the keys: like K_cache, or with a leading layer axis.
      V_whole: likewise.
      number: the layer's place in these; None where it is part of the slots.
      slots: uint32 on chip, no slot twice for one sequence, and the largest number for a token
        that is not written; None for no update. [1, T] slots of the layer, or where `number` is
        None [1, 2 T]: the first number of a token's keys in K_whole, and its first row in V_whole.
    """

    def __init__(self, K_cache, V_cache, K_whole, V_whole, number):
        self.K_cache = K_cache
        self.V_cache = V_cache
        self.K_whole = K_whole
        self.V_whole = V_whole
        self.number = number
        self.slots = None


def update_caches(caches, heads, values, sizes):
    """Writes each new token of a layer at its slot; a slot past the cache's end is skipped.

    With two cores each writes the keys of every other token and the values of the rest, after both
    have attended: each waits here for the other, which may still be reading.

    Args:
      caches: the layer's.
      heads: [d, q + 2k, T].
      values: [T, k, d].
      sizes: the launch's sizes.
    """
    if sizes.cores > 1:
        nisa.core_barrier(data=caches.K_whole, cores=(0, 1))
        nisa.core_barrier(data=caches.V_whole, cores=(0, 1))
    for token in range(sizes.T):
        if sizes.core == token % sizes.cores:
            nisa.dma_copy(
                dst=_keys_of(caches, token, sizes),
                src=heads[:, sizes.q : sizes.q + sizes.k, token : token + 1],
                oob_mode=nisa.oob_mode.skip,
            )
        if sizes.core == (token + 1) % sizes.cores:
            nisa.dma_copy(
                dst=_values_of(caches, token, sizes),
                src=values[token : token + 1, :, :],
                oob_mode=nisa.oob_mode.skip,
            )


def _keys_of(caches, token, sizes):
    """[d, k, 1] of the cache: where a token's keys go."""
    d = sizes.d
    S_max = sizes.S_max
    pattern = [[S_max, d], [d * S_max, sizes.k], [1, 1]]
    whole = caches.K_whole
    slot = caches.slots[0:1, token : token + 1]
    if caches.number == None:
        # A view has one dynamic offset, which counts single numbers here.
        numbers = whole.reshape((whole.shape[0] * sizes.B * sizes.k * d * S_max,))
        return numbers.ap(pattern=pattern, offset=0, scalar_offset=slot, indirect_dim=0)
    base = (caches.number * sizes.B + token // sizes.S) * sizes.k * d * S_max
    last = len(whole.shape) - 1
    return whole.ap(pattern=pattern, offset=base, scalar_offset=slot, indirect_dim=last)


def _values_of(caches, token, sizes):
    """[1, k, d] of the cache: where a token's values go."""
    d = sizes.d
    S_max = sizes.S_max
    pattern = [[d, 1], [d * S_max, sizes.k], [1, d]]
    whole = caches.V_whole
    if caches.number == None:
        slot = caches.slots[0:1, sizes.T + token : sizes.T + token + 1]
        rows = whole.reshape((whole.shape[0] * sizes.B * sizes.k * S_max, d))
        return rows.ap(pattern=pattern, offset=0, scalar_offset=slot, indirect_dim=0)
    slot = caches.slots[0:1, token : token + 1]
    base = (caches.number * sizes.B + token // sizes.S) * sizes.k * d * S_max
    rows_dim = len(whole.shape) - 2
    return whole.ap(pattern=pattern, offset=base, scalar_offset=slot, indirect_dim=rows_dim)
