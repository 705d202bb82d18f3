"""Replica groups against what XLA emits for psum on the same mesh."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

from jax_tkg.call import replica_groups

MESHES = (
    ((4,), ("tp",), ("tp",)),
    ((2, 2), ("dp", "tp"), ("tp",)),
    ((2, 2), ("tp", "dp"), ("tp",)),
    ((2, 4), ("dp", "tp"), ("dp", "tp")),
    ((2, 2, 2), ("a", "b", "c"), ("c", "a")),
    ((2, 2, 2), ("a", "b", "c"), ("b",)),
    ((1, 4), ("dp", "tp"), ("dp",)),
)


def _mesh(sizes: tuple[int, ...], names: tuple[str, ...]) -> jax.sharding.Mesh:
    devices = np.asarray(jax.devices("cpu")[: int(np.prod(sizes))])
    return jax.sharding.Mesh(devices.reshape(sizes), names)


def _inside(mesh: jax.sharding.Mesh, function: Any, **options: Any) -> Any:
    """What `function` returns within a shard_map over the mesh."""
    found = []

    def step(x: jax.Array) -> jax.Array:
        found.append(function())
        return x

    everywhere = PartitionSpec()
    jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=everywhere, out_specs=everywhere, **options)
    ).trace(jnp.ones(()))
    return found[0]


def _members(groups: Any) -> set[frozenset[int]]:
    return {frozenset(group) for group in groups}


def _of_mesh(text: str) -> list[list[int]] | None:
    """Groups out of HLO in the form mesh['tp'=2,'dp'=2] {'tp'}, of newer XLA; else None."""
    match = re.search(r"all-reduce\(.*replica_groups=mesh\[(.*?)\] \{(.*?)\}", text)
    if match is None:
        return None
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    reduced = re.findall(r"'(\w+)'", match[2])
    names = [name for name in sizes if name not in reduced] + reduced
    ranks = np.arange(np.prod([int(size) for size in sizes.values()]))
    by_axis = ranks.reshape([int(size) for size in sizes.values()])
    ordered = by_axis.transpose([list(sizes).index(name) for name in names])
    return ordered.reshape(-1, int(np.prod([int(sizes[name]) for name in reduced]))).tolist()


def _listed(text: str) -> Iterator[list[int]]:
    """Groups out of HLO: {{0,1},{2,3}}, the iota form [2,2]<=[2,2]T(1,0), or those of a mesh."""
    of_mesh = _of_mesh(text)
    if of_mesh is not None:
        yield from of_mesh
        return
    match = re.search(
        r"all-reduce\(.*replica_groups=(\{\{.*?\}\}|\[\S+?(?:T\([\d,]+\))?(?=[,\s]))", text
    )
    assert match is not None, text
    spelled = match[1]
    if spelled.startswith("{"):
        for group in re.findall(r"\{([\d,]+)\}", spelled):
            yield [int(rank) for rank in group.split(",")]
        return
    shape, reshape, transpose = re.fullmatch(
        r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", spelled
    ).groups()  # type: ignore[union-attr]
    numbers = [int(size) for size in reshape.split(",")]
    ranks = np.arange(np.prod(numbers)).reshape(numbers)
    if transpose:
        ranks = ranks.transpose([int(axis) for axis in transpose.split(",")])
    yield from ranks.reshape([int(size) for size in shape.split(",")]).tolist()


class GroupsOfAxesTest(parameterized.TestCase):
    @parameterized.parameters(*[mesh for mesh in MESHES if mesh != MESHES[-1]])
    def test_what_psum_compiles_to(self, sizes: Any, names: Any, reduced: Any) -> None:
        mesh = _mesh(sizes, names)
        run = jax.shard_map(
            lambda x: jax.lax.psum(x, reduced),
            mesh=mesh,
            in_specs=PartitionSpec(names),
            out_specs=PartitionSpec(tuple(name for name in names if name not in reduced) or None),
        )
        text = jax.jit(run).lower(jnp.ones(int(np.prod(sizes)))).compile().as_text()
        actual = replica_groups.groups_of_axes(names, sizes, reduced)
        self.assertEqual(_members(actual), _members(_listed(text)))

    @parameterized.parameters(*MESHES)
    def test_axes_are_found_again(self, sizes: Any, names: Any, reduced: Any) -> None:
        groups = replica_groups.groups_of_axes(names, sizes, reduced)
        found = _inside(_mesh(sizes, names), lambda: replica_groups.axes_of_groups(groups))
        self.assertEqual(
            _members(replica_groups.groups_of_axes(names, sizes, found)), _members(groups)
        )

    def test_no_axes_have_these_groups(self) -> None:
        mesh = _mesh((2, 2), ("dp", "tp"))
        crossed = ((0, 3), (1, 2))
        self.assertIsNone(_inside(mesh, lambda: replica_groups.axes_of_groups(crossed)))

    def test_by_hand(self) -> None:
        of = replica_groups.groups_of_axes
        self.assertEqual(of(("dp", "tp"), (2, 3), ("tp",)), ((0, 1, 2), (3, 4, 5)))
        self.assertEqual(of(("tp", "dp"), (2, 3), ("tp",)), ((0, 3), (1, 4), (2, 5)))
        self.assertEqual(of(("a", "b"), (2, 2), ("b", "a")), ((0, 2, 1, 3),))
        self.assertEqual(of((), (), ()), ((0,),))


class BoundTest(absltest.TestCase):
    def test_outside_of_a_shard_map(self) -> None:
        self.assertFalse(replica_groups.is_bound("tp"))

    def test_inside(self) -> None:
        mesh = _mesh((2, 2), ("dp", "tp"))
        self.assertTrue(_inside(mesh, lambda: replica_groups.is_bound("tp")))
        self.assertFalse(_inside(mesh, lambda: replica_groups.is_bound("pp")))
        manual = {"axis_names": {"dp"}}
        self.assertFalse(_inside(mesh, lambda: replica_groups.is_bound("tp"), **manual))


if __name__ == "__main__":
    absltest.main()
