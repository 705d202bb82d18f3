"""`shard_map` with `check_vma=True`, whichever operands vary over whichever axes of the mesh."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

import jax_tkg
from jax_tkg import caches
from jax_tkg.bits import as_bits, without_bits
from tests import cases, hlo

# One layer's keys have more elements than any weight, so that a copy of them stands out.
SHAPE = cases.Shape(B=2, S=1, q=2, k=2, d=64, H=128, I=128, L=2, S_ctx=16, S_max=512)
CACHE_ELEMENTS = SHAPE.B * SHAPE.k * SHAPE.d * SHAPE.S_max
MESHES = {"dp": (2,), "dp tp": (2, 2)}
DRAWS = 60
"""Subsets of varying operands, a quarter of them on each mesh with lists and with stacks."""

QUICK_DRAWS = 20
"""Those of them that are not left to the exhaustive tests."""


def _mesh(names: str) -> jax.sharding.Mesh:
    sizes = MESHES[names]
    devices = np.asarray(jax.devices("cpu")[: math.prod(sizes)]).reshape(sizes)
    return jax.sharding.Mesh(devices, tuple(names.split()))


def _arguments(
    seed: int, stacked: bool, dtype: str = "float32", options: tuple[str, ...] = ()
) -> dict[str, Any]:
    shape = dataclasses.replace(SHAPE, dtype=dtype, options=options)
    rng = np.random.default_rng(seed)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    arguments["position_ids"] = rng.integers(0, SHAPE.S_max, (SHAPE.B, 1)).astype(np.int32)
    return cases.stack(arguments) if stacked else arguments


def _per_rank(array: np.ndarray, mesh: jax.sharding.Mesh, axes: str) -> np.ndarray:
    """[*sizes of the axes, ...]: the same numbers in another order on each rank along `axes`."""
    sizes = tuple(mesh.shape[axis] for axis in axes.split())
    rolled = [np.roll(array, index, axis=-2) for index in range(math.prod(sizes))]
    return np.stack(rolled).reshape(*sizes, *array.shape)


def _zeros(B: int, stacked: bool) -> Any:
    return caches.allocate_caches(
        SHAPE.L, B=B, k=SHAPE.k, d=SHAPE.d, S_max=SHAPE.S_max, dtype="bfloat16", stacked=stacked
    )


def _split(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The caches, which are donated, and the other arguments."""
    names = ("K_caches", "V_caches")
    return {n: tree[n] for n in names}, {n: tree[n] for n in tree if n not in names}


def _step(mesh: jax.sharding.Mesh, axes: dict[str, Any], check_vma: bool, options: Any) -> Any:
    """A jitted step on every rank.

    Args:
      mesh: of the step.
      axes: for every array given, the axes over which it varies, separated by spaces; these are
        its first dimensions.
      check_vma: of `shard_map`.
      options: of `transformer_tkg`.

    Returns:
      A function of the caches and the other arguments to the results, every rank's in a row.
    """

    def step(caches: Any, others: Any) -> Any:
        mine = jax.tree.map(
            lambda array, names: array.reshape(array.shape[len(names.split()) :]),
            {**caches, **others},
            axes,
        )
        out = jax_tkg.transformer_tkg(**mine, **cases.options(SHAPE), **options)
        return jax.tree.map(lambda array: array[None], tuple(out))

    run = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=_split(jax.tree.map(lambda names: PartitionSpec(*names.split()), axes)),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=check_vma,
    )
    return jax.jit(run, donate_argnums=0)


@functools.cache
def _unchecked(names: str, form: Any, axis_name: str | None) -> Any:
    """A step to which every array is given as if it varied over all axes."""
    axes = jax.tree.unflatten(form, [names] * form.num_leaves)
    return _step(_mesh(names), axes, False, {"axis_name": axis_name})


def _on_all_axes(mesh: jax.sharding.Mesh, array: np.ndarray, names: str) -> np.ndarray:
    """An array whose first dimensions are the axes `names`, repeated along the others."""
    varying = names.split()
    rest = array.shape[len(varying) :]
    ones = [mesh.shape[axis] if axis in varying else 1 for axis in mesh.axis_names]
    return np.broadcast_to(array.reshape(*ones, *rest), (*mesh.axis_sizes, *rest))


@pytest.mark.thorough
class VaryingAxesTest(parameterized.TestCase):
    def _check(
        self, names: str, arguments: dict[str, Any], axes: dict[str, Any], axis_name: Any = None
    ) -> None:
        """Compares a step that checks which axes its values vary over with one that does not.

        Args:
          names: of the mesh's axes.
          arguments: of `transformer_tkg`, as one rank has them.
          axes: for every array of `arguments`, the axes over which it varies.
          axis_name: of `transformer_tkg`.
        """
        mesh = _mesh(names)
        given = jax.tree.map(lambda array, over: _per_rank(array, mesh, over), arguments, axes)
        compiled = _step(mesh, axes, True, {"axis_name": axis_name}).lower(*_split(given)).compile()
        if all(over == names for over in jax.tree.leaves(_split(axes)[0])):
            self.assertEqual(hlo.copies_of(compiled, CACHE_ELEMENTS), [])
        got = compiled(*_split(given))
        everywhere = jax.tree.map(lambda array, over: _on_all_axes(mesh, array, over), given, axes)
        form = jax.tree.structure(arguments)
        want = _unchecked(names, form, axis_name)(*_split(everywhere))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)

    @parameterized.parameters(*range(QUICK_DRAWS))
    @pytest.mark.slow
    @pytest.mark.extended_except("2", "4", "5", "15")
    def test_drawn_subset(self, seed: int) -> None:
        self._check_drawn_subset(seed)

    @parameterized.parameters(*range(QUICK_DRAWS, DRAWS))
    @pytest.mark.exhaustive
    @pytest.mark.slow
    def test_more_drawn_subsets(self, seed: int) -> None:
        self._check_drawn_subset(seed)

    def _check_drawn_subset(self, seed: int) -> None:
        names, stacked = list(MESHES)[seed % 2], seed // 2 % 2 == 1
        arguments = _arguments(seed, stacked, options=cases.LAYER_OPTIONS)
        rng = np.random.default_rng(seed)
        share = rng.choice([0.1, 0.3, 0.6])

        def some(_: Any) -> str:
            return " ".join(axis for axis in names.split() if rng.random() < share)

        axes = jax.tree.map(some, arguments)
        if seed // 4 % 2:
            # A cache that is donated must vary over all axes, as the result does.
            for field in ("K_caches", "V_caches"):
                axes[field] = jax.tree.map(lambda _: names, arguments[field])
        self._check(names, arguments, axes, [None, *names.split()][seed // 8 % 2])

    @parameterized.product(
        varying=("X", "position_ids", "K_caches", "V_caches"), stacked=(False, True)
    )
    @pytest.mark.extended_except("3", "4")
    def test_only_one_varies(self, varying: str, stacked: bool) -> None:
        arguments = _arguments(0, stacked)
        axes = {
            name: jax.tree.map(lambda _: "dp" if name == varying else "", value)  # noqa: B023
            for name, value in arguments.items()
        }
        self._check("dp", arguments, axes)

    @parameterized.product(stacked=(False, True), held=(False, True))
    @pytest.mark.extended_except("1")
    def test_caches_allocated_inside(self, stacked: bool, held: bool) -> None:
        """Zeros made within the shard_map vary over no axis."""
        arguments = _arguments(0, stacked, "bfloat16")
        arguments["mask_cache"][:] = False  # The cases' caches are not zeros.
        del arguments["K_caches"], arguments["V_caches"]
        mesh = _mesh("dp tp")
        per_batch = {"X": 0, "RoPE_cos": 1, "RoPE_sin": 1, "mask_cache": 1, "mask_active": 1}
        per_batch["position_ids"] = 0
        specs = {
            name: PartitionSpec(*[None] * per_batch[name], "dp")
            if name in per_batch
            else PartitionSpec()
            for name in arguments
        }

        def step(arguments: Any) -> Any:
            B = arguments["X"].shape[0]
            K, V = _zeros(B, stacked)
            if held:
                K, V = jax.tree.map(as_bits, (K, V))
            out = jax_tkg.transformer_tkg(
                **arguments, K_caches=K, V_caches=V, **cases.options(SHAPE)
            )
            return without_bits(tuple(out))

        batch = PartitionSpec("dp")
        stack = PartitionSpec(None, "dp") if stacked else batch
        results = [
            jax.jit(
                jax.shard_map(
                    step,
                    mesh=mesh,
                    in_specs=(specs,),
                    out_specs=(batch, stack, stack),
                    check_vma=check_vma,
                )
            )(arguments)
            for check_vma in (False, True)
        ]
        jax.tree.map(np.testing.assert_array_equal, *results)
        K, V = _zeros(SHAPE.B, stacked)
        want = jax_tkg.transformer_tkg(**arguments, K_caches=K, V_caches=V, **cases.options(SHAPE))
        jax.tree.map(np.testing.assert_array_equal, results[1], tuple(want))


if __name__ == "__main__":
    absltest.main()
