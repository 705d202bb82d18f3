"""Replica groups: which ranks an all-reduce sums over, from a mesh or as the caller lists them.

Ranks number the devices of the mesh in row-major order, as XLA does for the program of a
`shard_map`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Groups = tuple[tuple[int, ...], ...]


def current_mesh() -> Any:
    """The abstract mesh of the enclosing `shard_map`; an empty mesh outside of one."""
    return jax.sharding.get_abstract_mesh()


def is_bound(axis_name: str) -> bool:
    """Whether `axis_name` can be reduced over here: a manual axis of the enclosing shard_map."""
    if axis_name not in current_mesh().axis_names:
        return False
    try:
        jax.lax.psum(1, axis_name)
    except NameError:
        return False
    return True


def groups_of_axes(
    mesh_axes: Sequence[str], mesh_sizes: Sequence[int], axis_names: Sequence[str]
) -> Groups:
    """The groups of ranks that `lax.psum` over `axis_names` sums.

    Args:
      mesh_axes: names of the mesh's axes, outermost first.
      mesh_sizes: their sizes.
      axis_names: the axes reduced over, each of them a mesh axis.

    Returns:
      One tuple of ranks per group; ranks count the mesh's devices in row-major order.
    """
    sizes = tuple(mesh_sizes)
    ranks = np.arange(int(np.prod(sizes, dtype=np.int64))).reshape(sizes)
    reduced = [tuple(mesh_axes).index(name) for name in axis_names]
    kept = [axis for axis in range(len(sizes)) if axis not in reduced]
    group_size = int(np.prod([sizes[axis] for axis in reduced], dtype=np.int64))
    rows = ranks.transpose(kept + reduced).reshape(-1, group_size)
    return tuple(tuple(int(rank) for rank in row) for row in rows)


def axes_of_groups(groups: Groups) -> tuple[str, ...] | None:
    """The bound mesh axes whose reduction is exactly `groups`, or None where there are none."""
    mesh = current_mesh()
    bound = [name for name in mesh.axis_names if is_bound(name)]
    wanted = {frozenset(group) for group in groups}
    for count in range(len(bound) + 1):
        for names in itertools.combinations(bound, count):
            found = groups_of_axes(mesh.axis_names, mesh.axis_sizes, names)
            if {frozenset(group) for group in found} == wanted:
                return names
    return None


def check_axis_name(axis_name: Any) -> tuple[str, ...]:
    """Canonical tuple of the axes of the all-reduce.

    Args:
      axis_name: None, the name of a shard_map axis, or a sequence of names.

    Raises:
      TypeError: a name is not a string.
      ValueError: a name is repeated, or is not a manual axis of the enclosing shard_map.
    """
    if axis_name is None:
        return ()
    several = isinstance(axis_name, Sequence) and not isinstance(axis_name, str)
    names = tuple(axis_name) if several else (axis_name,)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"axis_name: expected a string or a sequence of strings, got {axis_name!r}"
            )
    for name in names:
        if not is_bound(name):
            bound = [axis for axis in current_mesh().axis_names if is_bound(axis)]
            raise ValueError(
                f"axis_name: expected an axis of the enclosing jax.shard_map "
                f"(there: {bound or 'none'}), got {name!r}"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"axis_name: expected every axis once, got {names!r}")
    return names


def _as_groups(replica_groups: Any) -> Groups:
    try:
        rows = [[operator.index(rank) for rank in group] for group in replica_groups]
    except TypeError:
        raise TypeError(
            f"replica_groups: expected a list of lists of ranks, got {replica_groups!r}"
        ) from None
    return tuple(tuple(row) for row in rows)


def check_replica_groups(replica_groups: Any, axis_names: tuple[str, ...]) -> Groups | None:
    """Canonical replica groups of the all-reduce, or None where nothing is reduced.

    Args:
      replica_groups: None, or lists of ranks that together name every device of the mesh once.
      axis_names: the canonical axes of the all-reduce; where both are given they must agree.

    Raises:
      TypeError: not a list of lists of integers.
      ValueError: groups overlap, miss ranks, differ in size, disagree with `axis_names`, or are
        those of no axes of an enclosing shard_map that has only some of the mesh's.
    """
    mesh = current_mesh()
    from_axes = groups_of_axes(mesh.axis_names, mesh.axis_sizes, axis_names) if axis_names else None
    if replica_groups is None:
        return from_axes
    groups = _as_groups(replica_groups)
    world = int(np.prod(mesh.axis_sizes, dtype=np.int64)) if mesh.axis_names else 1
    listed = [rank for group in groups for rank in group]
    if len(set(listed)) != len(listed):
        twice = sorted({rank for rank in listed if listed.count(rank) > 1})
        raise ValueError(
            f"replica_groups: expected every rank in one group only, got {list(map(list, groups))} "
            f"where {twice} overlap"
        )
    if sorted(listed) != list(range(world)):
        raise ValueError(
            f"replica_groups: expected the ranks 0..{world - 1} of the enclosing mesh "
            f"({world} device{'s' if world > 1 else ''}), each once, got "
            f"{list(map(list, groups))}; missing {sorted(set(range(world)) - set(listed))}, "
            f"unknown {sorted(set(listed) - set(range(world)))}"
        )
    if len({len(group) for group in groups}) > 1:
        raise ValueError(
            f"replica_groups: expected groups of equal size, got sizes "
            f"{[len(group) for group in groups]}"
        )
    if from_axes is not None and set(map(frozenset, groups)) != set(map(frozenset, from_axes)):
        raise ValueError(
            f"replica_groups: expected the groups of axis_name={axis_names!r}, "
            f"{list(map(list, from_axes))}, got {list(map(list, groups))}"
        )
    # Outside shard_map none is: simulated ranks have a mesh alone.
    bound = [name for name in mesh.axis_names if is_bound(name)]
    if bound and len(bound) < len(mesh.axis_names) and axes_of_groups(groups) is None:
        raise ValueError(
            f"replica_groups: expected the groups of some of the axes {bound} of the enclosing "
            f"jax.shard_map (mesh {dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))}), got "
            f"{list(map(list, groups))}"
        )
    return groups
