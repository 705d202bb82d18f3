"""Arrays sharded over Explicit axes of a mesh, which `jax.make_mesh` makes from JAX 0.10 on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_tkg
import jax_tkg.sharding
from jax_tkg import masks
from jax_tkg.call.operand_table import OPERANDS
from tests import cases, hlo

# One layer's keys have more elements than any weight, so that a copy of them stands out.
SHAPE = cases.Shape(B=2, S=1, q=2, k=2, d=64, L=2, S_ctx=16, S_max=512)


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("dp", "tp"), axis_types=(AxisType.Explicit,) * 2)


def _arguments(stacked: bool, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arguments = {**cases.random_weights(SHAPE, rng), **cases.random_inputs(SHAPE, rng)}
    arguments["position_ids"] = rng.integers(0, SHAPE.S_max, (SHAPE.B, 1)).astype(np.int32)
    return cases.stack(arguments) if stacked else arguments


def _sharded(arguments: dict[str, Any], tensor_axis: str | None, stacked: bool) -> dict[str, Any]:
    mesh = _mesh()
    specs = jax_tkg.sharding.partition_specs(tensor_axis, "dp", stacked=stacked)
    return {
        name: jax.device_put(value, NamedSharding(mesh, getattr(specs, name)))
        for name, value in arguments.items()
    }


@pytest.mark.thorough
class ExplicitMeshTest(parameterized.TestCase):
    def _check(self, got: Any, given: dict[str, Any], arguments: dict[str, Any]) -> None:
        for result, name in (
            (got.hidden, "X"),
            (got.K_caches, "K_caches"),
            (got.V_caches, "V_caches"),
        ):
            for one, other in zip(
                jax.tree.leaves(result), jax.tree.leaves(given[name]), strict=True
            ):
                self.assertEqual(jax.typeof(one).sharding, jax.typeof(other).sharding)
        lists = {
            name: list(value) if BY_LAYER[name] else value for name, value in arguments.items()
        }
        hidden, K, V, written = cases.expected(SHAPE, [lists], [lists])
        cases.check(got, SHAPE, lists, hidden, K[0], V[0], written)

    @parameterized.product(
        way=("eager", "jit", "set_mesh", "reference"),
        stacked=(False, True),
        tensor_axis=(None, "tp"),
    )
    @pytest.mark.extended_except("2", "7", "8", "13")
    def test_without_shard_map(self, way: str, stacked: bool, tensor_axis: str | None) -> None:
        """The batch over one axis; with a tensor axis, the compiler splits the layers as well."""
        arguments = _arguments(stacked)
        given = _sharded(arguments, tensor_axis, stacked)
        call = jax_tkg.reference.transformer_tkg if way == "reference" else jax_tkg.transformer_tkg
        run = functools.partial(call, **cases.options(SHAPE))
        if way == "eager":
            got = run(**given)
        elif way == "set_mesh":
            with jax.set_mesh(_mesh()):
                got = jax.jit(run)(**given)
        else:
            got = jax.jit(run)(**given)
        self._check(got, given, arguments)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("0")
    def test_some_arrays_are_on_no_mesh(self, stacked: bool) -> None:
        arguments = _arguments(stacked)
        names = ("K_caches", "V_caches", "position_ids")
        sharded = _sharded({name: arguments[name] for name in names}, None, stacked)
        got = jax.jit(functools.partial(jax_tkg.transformer_tkg, **cases.options(SHAPE)))(
            **{**arguments, **sharded}
        )
        self.assertTrue(got.hidden.sharding.is_fully_replicated)
        self._check(got, {**sharded, "X": got.hidden}, arguments)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("1")
    def test_donated_caches_stay_in_place(self, stacked: bool) -> None:
        given = _sharded(_arguments(stacked), None, stacked)
        caches = {name: given.pop(name) for name in ("K_caches", "V_caches")}

        def step(caches: Any, given: Any) -> Any:
            return tuple(jax_tkg.transformer_tkg(**given, **caches, **cases.options(SHAPE)))

        compiled = jax.jit(step, donate_argnums=0).lower(caches, given).compile()
        elements = SHAPE.B // 2 * SHAPE.k * SHAPE.d * SHAPE.S_max
        self.assertEqual(hlo.copies_of(compiled, elements), [])
        held = 4 * 2 * SHAPE.L * elements
        self.assertGreaterEqual(compiled.memory_analysis().alias_size_in_bytes, held)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("1")
    def test_vmap_over_an_explicit_axis(self, jit: bool) -> None:
        weights = cases.random_weights(SHAPE, np.random.default_rng(0))
        inputs = [
            {name: value for name, value in _arguments(False, seed).items() if name not in weights}
            for seed in range(2)
        ]
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *inputs)
        mesh = _mesh()
        given = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("dp")))
        run = jax.vmap(lambda one: jax_tkg.transformer_tkg(**weights, **one, **OPTIONS))
        with jax.set_mesh(mesh):
            got = jax.tree.map(np.asarray, (jax.jit(run) if jit else run)(given))
        for index, one in enumerate(inputs):
            hidden, K, V, written = cases.expected(SHAPE, [weights], [one])
            mine = jax.tree.map(lambda array: array[index], got)  # noqa: B023
            cases.check(mine, SHAPE, one, hidden, K[0], V[0], written)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("1")
    def test_masks_of_sharded_lengths(self, set_mesh: bool) -> None:
        mesh = _mesh()
        lengths = np.array([3, 7, 0, 5])
        given = jax.device_put(lengths, NamedSharding(mesh, PartitionSpec("dp")))

        def make(lengths: Any) -> Any:
            return (
                masks.cache_mask(lengths, 8, 2, 3),
                masks.active_mask(3, 4, 2, lengths),
                masks.unified_mask(lengths, 8, 2, 3),
            )

        if set_mesh:
            with jax.set_mesh(mesh):
                got = jax.jit(make)(given)
        else:
            got = make(given)
        for one, other in zip(got, make(lengths), strict=True):
            self.assertEqual(jax.typeof(one).sharding.spec[1], "dp")
            np.testing.assert_array_equal(one, other)


BY_LAYER = {row.name: row.per_layer for row in OPERANDS}
OPTIONS = cases.options(SHAPE)


if __name__ == "__main__":
    absltest.main()
