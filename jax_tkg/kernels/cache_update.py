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


def update_caches(K_cache, V_cache, heads, values, slots, sizes):
    """Writes each new token at its slot; a slot past the cache's end is skipped.

    With two cores the first writes the keys and the second the values, after both have attended:
    each waits here for the other, which may still be reading.

    Args:
      K_cache: [B, k, d, S_max] in HBM.
      V_cache: [B, k, S_max, d] in HBM.
      heads: [d, q + 2k, T].
      values: [T, k, d].
      slots: [1, T] uint32 on chip, no slot twice for one sequence.
      sizes: the launch's sizes.
    """
    if sizes.cores > 1:
        nisa.core_barrier(data=K_cache, cores=(0, 1))
        nisa.core_barrier(data=V_cache, cores=(0, 1))
    d = sizes.d
    S_max = sizes.S_max
    for token in range(sizes.T):
        base = (token // sizes.S) * sizes.k * d * S_max
        slot = slots[0:1, token : token + 1]
        if sizes.core == 0:
            nisa.dma_copy(
                dst=K_cache.ap(
                    pattern=[[S_max, d], [d * S_max, sizes.k], [1, 1]],
                    offset=base,
                    scalar_offset=slot,
                    indirect_dim=3,
                ),
                src=heads[:, sizes.q : sizes.q + sizes.k, token : token + 1],
                oob_mode=nisa.oob_mode.skip,
            )
        if sizes.core == sizes.cores - 1:
            nisa.dma_copy(
                dst=V_cache.ap(
                    pattern=[[d, 1], [d * S_max, sizes.k], [1, d]],
                    offset=base,
                    scalar_offset=slot,
                    indirect_dim=2,
                ),
                src=values[token : token + 1, :, :],
                oob_mode=nisa.oob_mode.skip,
            )
