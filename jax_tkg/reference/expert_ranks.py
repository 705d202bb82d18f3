"""A rank's place in its group, and so which experts or tokens of the vocabulary it holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call import replica_groups as groups_of
from jax_tkg.call.arguments import Parameters


def ranks_of(parameters: Parameters) -> int:
    """How many ranks sum their results."""
    groups = parameters.replica_groups
    return len(groups[0]) if groups else 1


def first_expert(parameters: Parameters, held: int) -> jax.Array:
    """int32 scalar: the number of this rank's first expert.

    Ranks hold consecutive experts, in the order of `axis_name` or else of their replica group.

    Args:
      parameters: of the call, inside the enclosing `jax.shard_map`.
      held: how many experts each rank holds.
    """
    return place_in_group(parameters) * jnp.int32(held)


def place_in_group(parameters: Parameters) -> jax.Array:
    """int32 scalar: this rank's place among those that sum their results."""
    if parameters.axis_name:
        return jax.lax.axis_index(parameters.axis_name)
    groups = parameters.replica_groups
    assert groups is not None
    mesh, axes = groups_of.current_mesh(), groups_of.axes_of_groups(groups)
    if axes is not None:
        in_order = groups_of.groups_of_axes(mesh.axis_names, mesh.axis_sizes, axes)
        if set(in_order) == set(groups):
            return jax.lax.axis_index(axes)
    places = np.zeros(sum(map(len, groups)), np.int32)
    for group in groups:
        places[list(group)] = np.arange(len(group))
    # Ranks number the devices of the whole mesh.
    return jnp.asarray(places)[jax.lax.axis_index(mesh.axis_names)]
