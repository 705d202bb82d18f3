"""Under shard_map on eight host devices, every rank with data of its own, against the oracle."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
import jax_tkg.sharding
from jax_tkg.call.replica_groups import groups_of_axes
from tests import cases, parallel_cases

SHAPE = cases.Shape(B=2, S=2, q=2, k=1, d=64, L=2)
MESHES = {
    "tp1": ((1,), ("tp",), None),
    "tp2": ((2,), ("tp",), None),
    "tp4": ((4,), ("tp",), None),
    "dp2_tp2": ((2, 2), ("dp", "tp"), "dp"),
    "tp2_dp2": ((2, 2), ("tp", "dp"), "dp"),
    "dp2_tp4": ((2, 4), ("dp", "tp"), "dp"),
}


def _mesh(sizes: tuple[int, ...], names: tuple[str, ...]) -> jax.sharding.Mesh:
    devices = jax.devices("cpu")[: int(np.prod(sizes))]
    return jax.sharding.Mesh(np.asarray(devices).reshape(sizes), names)


def _sharded_call(
    mesh: jax.sharding.Mesh,
    arguments: dict[str, Any],
    specs: jax_tkg.sharding.TransformerTkgSpecs,
    check_vma: bool = True,
    **options: Any,
) -> Any:
    in_specs = {
        name: None if value is None else getattr(specs, name) for name, value in arguments.items()
    }

    def step(arguments: dict[str, Any]) -> Any:
        return tuple(jax_tkg.transformer_tkg(**arguments, **options))

    run = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(in_specs,),
        out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        check_vma=check_vma,
    )
    return jax_tkg.TransformerTkgOutput(*jax.jit(run)(arguments))


@pytest.mark.thorough
class ParallelTest(parameterized.TestCase):
    def _run(
        self,
        shape: cases.Shape,
        mesh_name: str,
        check_vma: bool = True,
        stacked: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        sizes, names, data_axis = MESHES[mesh_name]
        mesh = _mesh(sizes, names)
        groups = mesh.shape[data_axis] if data_axis else 1
        ranks = parallel_cases.random_ranks(shape, groups, mesh.shape["tp"], seed)
        per_layer = jax_tkg.sharding.partition_specs("tp", data_axis)
        whole = parallel_cases.join(ranks, per_layer, "tp", data_axis)
        if stacked:
            whole = cases.stack(whole)
        specs = jax_tkg.sharding.partition_specs("tp", data_axis, stacked=stacked)
        options = options or {"axis_name": "tp"}
        actual = _sharded_call(mesh, whole, specs, check_vma, **cases.options(shape), **options)
        parallel_cases.check(actual, shape, ranks)

    @parameterized.product(mesh_name=tuple(MESHES), check_vma=(True, False), stacked=(True, False))
    @pytest.mark.extended_except("0", "2", "5", "7", "10", "12", "14", "17", "19", "22")
    def test_mesh(self, mesh_name: str, check_vma: bool, stacked: bool) -> None:
        self._run(SHAPE, mesh_name, check_vma, stacked)

    @parameterized.named_parameters(
        ("two_kv_heads", {"q": 4, "k": 2, "unified": True}),
        ("no_update", {"positions": "none"}),
        ("each_position", {"positions": "each", "S": 4}),
        ("float8", {"quantized": (("float8_e4m3",) * 3, (None,) * 3), "clamp_bound": 0.5}),
        ("bfloat16", {"dtype": "bfloat16"}),
        ("every_option", {"q": 4, "k": 2, **cases.EVERY_OPTION}),
    )
    @pytest.mark.extended_except("two_kv_heads", "no_update", "float8")
    def test_variants_on_two_ranks(self, changes: dict[str, Any]) -> None:
        self._run(dataclasses.replace(SHAPE, **changes), "tp2", seed=1)

    @parameterized.product(mesh_name=("dp2_tp2", "tp2_dp2"), check_vma=(True, False))
    @pytest.mark.extended_except("1", "3")
    def test_explicit_groups_of_an_axis(self, mesh_name: str, check_vma: bool) -> None:
        sizes, names, _ = MESHES[mesh_name]
        groups = groups_of_axes(names, sizes, ("tp",))
        self._run(SHAPE, mesh_name, check_vma, replica_groups=groups)

    @parameterized.product(stacked=(True, False), both=(True, False))
    @pytest.mark.extended_except("1", "3")
    def test_reduction_on_chip_is_the_same_here(self, stacked: bool, both: bool) -> None:
        options = {"axis_name": "tp", "sbuf_residual_and_cc": True}
        if both:
            options["replica_groups"] = [[0, 1]]
        self._run(SHAPE, "tp2", stacked=stacked, **options)

    def test_two_axes_reduced_together(self) -> None:
        mesh = _mesh((2, 2), ("a", "b"))
        ranks = parallel_cases.random_ranks(SHAPE, 1, 4, 2)
        specs = jax_tkg.sharding.partition_specs("tp")
        whole = parallel_cases.join(ranks, specs, "tp", None)
        both = jax_tkg.sharding.partition_specs(("a", "b"))
        actual = _sharded_call(mesh, whole, both, **cases.options(SHAPE), axis_name=("a", "b"))
        parallel_cases.check(actual, SHAPE, ranks)

    @parameterized.product(
        groups=(((0, 3), (1, 2)), ((3, 1), (0, 2)), ((0,), (1,), (2,), (3,))), stacked=(True, False)
    )
    @pytest.mark.extended_except("1", "2", "5")
    def test_groups_that_no_axis_has(self, groups: Any, stacked: bool) -> None:
        """Four ranks of one axis that reduce as listed; results differ from group to group."""
        size = len(groups[0])
        rows = parallel_cases.random_ranks(SHAPE, len(groups), size, 3)
        place = {
            rank: (group, index)
            for group, members in enumerate(groups)
            for index, rank in enumerate(members)
        }
        by_rank = [rows[place[rank][0]][place[rank][1]] for rank in range(4)]
        stack = functools.partial(jax.tree.map, lambda *arrays: np.stack(arrays))
        given = stack(*[cases.stack(one) if stacked else one for one in by_rank])
        mesh = _mesh((4,), ("ranks",))
        spec = jax.sharding.PartitionSpec("ranks")

        def step(arguments: dict[str, Any]) -> Any:
            mine = jax.tree.map(lambda array: array[0], arguments)
            out = jax_tkg.transformer_tkg(**mine, **cases.options(SHAPE), replica_groups=groups)
            return jax.tree.map(lambda array: array[None], tuple(out))

        run = jax.shard_map(step, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=True)
        out = jax.jit(run)(given)
        for group, members in enumerate(groups):
            hidden, K, V, written = cases.expected(SHAPE, rows[group], rows[group])
            for index, rank in enumerate(members):
                mine = jax_tkg.TransformerTkgOutput(*jax.tree.map(lambda a: a[rank], out))  # noqa: B023
                cases.check(mine, SHAPE, rows[group][index], hidden, K[index], V[index], written)

    def test_without_an_axis_nothing_is_summed(self) -> None:
        ranks = parallel_cases.random_ranks(SHAPE, 2, 1, 4)
        specs = jax_tkg.sharding.partition_specs(None, "dp")
        whole = parallel_cases.join(ranks, specs, None, "dp")
        actual = _sharded_call(_mesh((2,), ("dp",)), whole, specs, **cases.options(SHAPE))
        parallel_cases.check(actual, SHAPE, ranks)


if __name__ == "__main__":
    absltest.main()
