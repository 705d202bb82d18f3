"""The sum over tensor-parallel ranks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call import replica_groups as groups_of
from jax_tkg.call.arguments import Parameters


def all_reduce(partial: jax.Array, parameters: Parameters) -> jax.Array:
    """Sums `partial` over the ranks of this rank's replica group.

    Args:
      partial: this rank's part of the sum, any shape.
      parameters: whose `axis_name` or `replica_groups` say over which ranks.

    Returns:
      The sum, of the same shape and dtype; `partial` itself where nothing is reduced.
    """
    if parameters.axis_name:
        return jax.lax.psum(partial, parameters.axis_name)
    groups = parameters.replica_groups
    if groups is None or all(len(group) == 1 for group in groups):
        return partial
    axes = groups_of.axes_of_groups(groups)
    if axes is not None:
        return jax.lax.psum(partial, axes)
    return _sum_over_listed_ranks(partial, groups)


def _sum_over_listed_ranks(partial: jax.Array, groups: groups_of.Groups) -> jax.Array:
    """Sums over groups that are no product of mesh axes.

    `lax.psum` refuses `axis_index_groups` under `check_vma=True`, so every rank gathers all parts
    and adds those of its own group.
    """
    axes = groups_of.current_mesh().axis_names
    world = sum(len(group) for group in groups)
    member = np.zeros((world, world), np.bool_)
    for group in groups:
        member[np.ix_(group, group)] = True
    everyone = jax.lax.all_gather(partial, axes)
    mine = jnp.asarray(member)[jax.lax.axis_index(axes)]
    mine = mine.reshape((world,) + (1,) * partial.ndim)
    return jnp.where(mine, everyone, 0).sum(axis=0, dtype=partial.dtype)
