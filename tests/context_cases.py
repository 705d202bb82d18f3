"""Cases of ranks that share out the context of their KV head, for the oracle and for a mesh.

To the oracle they are ranks with copies of a KV head, its whole cache included.
"""

from __future__ import annotations

from typing import Any

import jax
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


def check_call(
    shape: cases.Shape,
    count: int,
    kv_heads: int,
    draws: int = 1,
    mesh: jax.sharding.Mesh | None = None,
    axes: Any = "tp",
    check_vma: bool = True,
    stacked: bool = False,
    **options: Any,
) -> None:
    """Calls the operation on random ranks of a mesh, and compares the results with the oracle's.

    Args:
      shape: of a rank, with the S_max of the whole context.
      count: ranks that share out a context.
      kv_heads: KV heads of all ranks.
      draws: how often the arrays are drawn, for one compiled program.
      mesh: with `axes`; None: of one axis.
      axes: that sum.
      check_vma: whether `jax.shard_map` checks what varies over its axes.
      stacked: whether per-layer arguments have a layer axis.
      **options: of the operation.
    """
    mesh = mesh or mesh_of(tp=count * kv_heads)
    specs = sharding.partition_specs(axes, stacked=stacked)
    options = {
        "axis_name": axes,
        "context_parallel": count,
        **cases.options(shape),
        **options,
    }
    call = None
    for seed in range(draws):
        ranks = random_ranks(shape, count, kv_heads, seed)
        whole = join(ranks, count)
        if stacked:
            whole = cases.stack(whole, shape.layer_kinds)
        call = call or sharded_call(mesh, specs, whole, check_vma, **options)
        hidden, *results = call(whole)
        by_layer = [cases.by_layer(each, shape.layer_kinds) for each in results]
        check(jax_tkg.TransformerTkgOutput(hidden, *by_layer), shape, ranks, count)


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    """A mesh of CPU devices, with its axes by name."""
    devices = np.asarray(jax.devices("cpu")[: int(np.prod(list(sizes.values())))])
    return jax.sharding.Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes))


def sharded_call(
    mesh: jax.sharding.Mesh,
    specs: sharding.TransformerTkgSpecs,
    given: dict[str, Any],
    check_vma: bool = True,
    **options: Any,
) -> Any:
    """The jitted call on arguments like the given ones: hidden states, key and value caches."""
    in_specs = {name: None if x is None else getattr(specs, name) for name, x in given.items()}
    return jax.jit(
        jax.shard_map(
            lambda arguments: tuple(jax_tkg.transformer_tkg(**arguments, **options)),
            mesh=mesh,
            in_specs=(in_specs,),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
            check_vma=check_vma,
        )
    )
