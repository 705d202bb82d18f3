"""Writing new keys and values into their cache slots."""

import nki.isa as nisa
import nki.language as nl


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


def update_caches(K_caches, V_caches, layer, stacked, heads, values, slots, sizes):
    """Writes each new token of a layer at its slot; a slot past the cache's end is skipped.

    With two cores the first writes the keys and the second the values, after both have attended:
    each waits here for the other, which may still be reading.

    Args:
      K_caches: the tensor in HBM that holds the layer's keys [B, k, d, S_max]: that, or
        [L, B, k, d, S_max].
      V_caches: likewise, [B, k, S_max, d].
      layer: the layer's number, used where the caches are stacked.
      stacked: whether they have a layer axis.
      heads: [d, q + 2k, T].
      values: [T, k, d].
      slots: [1, T] uint32 on chip, no slot twice for one sequence.
      sizes: the launch's sizes.
    """
    if sizes.cores > 1:
        nisa.core_barrier(data=K_caches, cores=(0, 1))
        nisa.core_barrier(data=V_caches, cores=(0, 1))
    d = sizes.d
    S_max = sizes.S_max
    per_sequence = sizes.k * d * S_max
    axes = 4
    start = 0
    if stacked:
        axes = 5
        start = layer * sizes.B * per_sequence
    for token in range(sizes.T):
        base = start + (token // sizes.S) * per_sequence
        slot = slots[0:1, token : token + 1]
        if sizes.core == 0:
            nisa.dma_copy(
                dst=K_caches.ap(
                    pattern=[[S_max, d], [d * S_max, sizes.k], [1, 1]],
                    offset=base,
                    scalar_offset=slot,
                    indirect_dim=axes - 1,
                ),
                src=heads[:, sizes.q : sizes.q + sizes.k, token : token + 1],
                oob_mode=nisa.oob_mode.skip,
            )
        if sizes.core == sizes.cores - 1:
            nisa.dma_copy(
                dst=V_caches.ap(
                    pattern=[[d, 1], [d * S_max, sizes.k], [1, d]],
                    offset=base,
                    scalar_offset=slot,
                    indirect_dim=axes - 2,
                ),
                src=values[token : token + 1, :, :],
                oob_mode=nisa.oob_mode.skip,
            )
