"""Cases of ranks that share out the context of their KV head, for the oracle and for a mesh.

To the oracle they are ranks with copies of a KV head, its whole cache included.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import jax_tkg
from jax_tkg import caches, sharding
from tests import cases, parallel_cases

SLOT_AXES = {"K_caches": -1, "V_caches": -2}


def random_ranks(shape: cases.Shape, count: int, kv_heads: int, seed: int) -> list[dict[str, Any]]:
    """Arguments of each rank, with whole caches; `count` neighbors have the same KV head."""
    (ranks,) = parallel_cases.random_ranks(shape, 1, count * kv_heads, seed)
    for first in range(0, len(ranks), count):
        head, *others = ranks[first : first + count]
        for other in others:
            for name in SLOT_AXES:
                other[name] = head[name]
            for name in ("W_qkvs", "bias_qkvs"):
                for layer in range(shape.L if name in other else 0):
                    other[name][layer][:, shape.q * shape.d :] = head[name][layer][
                        :, shape.q * shape.d :
                    ]
    return ranks


def join(ranks: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The whole model's arguments: every rank's side by side, caches as the ranks share them."""
    whole = parallel_cases.join([ranks], sharding.partition_specs("tp"), "tp", None)
    for name, axis in SLOT_AXES.items():
        of_heads = [
            np.concatenate([rank[name][layer] for rank in ranks[::count]], axis=1)
            for layer in range(len(ranks[0][name]))
        ]
        whole[name] = [np.asarray(caches.share_out(cache, count, axis)) for cache in of_heads]
    return whole


def put_together(cache: Any, count: int, slot_axis: int) -> np.ndarray:
    """[B, ranks, ...] shared out as [B, ranks / count, ...] whole: slot s of rank s % count."""
    cache = np.asarray(cache)
    B, ranks = cache.shape[:2]
    by_rank = cache.reshape(B, ranks // count, count, *cache.shape[2:])
    by_slot = np.moveaxis(by_rank, 2, slot_axis)
    axis = cache.ndim + slot_axis
    shape = list(cache.shape)
    shape[1], shape[axis] = ranks // count, cache.shape[axis] * count
    return by_slot.reshape(shape)


def check(
    actual: jax_tkg.TransformerTkgOutput,
    shape: cases.Shape,
    ranks: list[dict[str, Any]],
    count: int,
) -> None:
    """Compares the joined results with the oracle's."""
    hidden, K, V, written = cases.expected(shape, ranks, ranks)
    joined = {
        name: [put_together(cache, count, axis) for cache in getattr(actual, name)]
        for name, axis in SLOT_AXES.items()
    }
    for number, rank in enumerate(ranks):
        head = slice(number // count, number // count + 1)
        mine = jax_tkg.TransformerTkgOutput(
            hidden=actual.hidden,
            K_caches=[cache[:, head] for cache in joined["K_caches"]],
            V_caches=[cache[:, head] for cache in joined["V_caches"]],
        )
        cases.check(mine, shape, rank, hidden, K[number], V[number], written)
