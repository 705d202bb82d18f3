"""Calls on arrays that are sharded over Explicit axes of a mesh, outside of `jax.shard_map`."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jax_tkg.call.arguments import Operands, Parameters


def run_on_auto_axes(run: Any, operands: Operands, parameters: Parameters) -> tuple[Any, ...]:
    """Runs the operation with the Explicit axes of the operands' mesh made Auto.

    The compiler then splits the operation as it does on a mesh of Auto axes. The results have the
    shardings of X and of the caches; those of the head have X's, whole for each token.

    Args:
      run: a function of `operands` and `parameters` to the results of `canonical.RunOperation`.
      operands: on Explicit axes or not.
      parameters: of the call.
    """
    meshes = {jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(operands)}
    explicit = [mesh for mesh in meshes if mesh.explicit_axes]
    if not explicit:
        return run(operands, parameters)
    # JAX has refused arrays on different meshes; some may be on none.
    mesh = explicit[0]

    def result_sharding(array: jax.Array) -> NamedSharding:
        given = jax.typeof(array).sharding
        return NamedSharding(mesh, PartitionSpec()) if given.mesh.empty else given

    results = (operands.X, operands.K_caches, operands.V_caches)
    shardings = jax.tree.map(result_sharding, results)
    if operands.W_head is not None:
        of_tokens = shardings[0].spec[:-1] if shardings[0].spec else ()
        shardings += (NamedSharding(mesh, PartitionSpec(*of_tokens)),) * 2
    return jax.sharding.auto_axes(
        functools.partial(run, parameters=parameters),
        axes=mesh.explicit_axes,
        out_sharding=shardings,
    )(operands)
