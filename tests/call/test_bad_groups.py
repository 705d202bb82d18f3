"""Bad groups of ranks: messages while a call is traced on a mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from tests.call.bad_calls import good, named

GROUPS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown_axis": (
        {"axis_name": "tensor"},
        ["axis_name:", "['dp', 'tp']", "'tensor'"],
    ),
    "axis_twice": ({"axis_name": ("tp", "tp")}, ["axis_name:", "once", "('tp', 'tp')"]),
    "overlap": (
        {"replica_groups": [[0, 1], [1, 2, 3]]},
        ["replica_groups:", "one group only", "[[0, 1], [1, 2, 3]]", "[1] overlap"],
    ),
    "missing_ranks": (
        {"replica_groups": [[0, 1]]},
        ["replica_groups:", "0..3", "4 devices", "missing [2, 3]"],
    ),
    "unknown_ranks": (
        {"replica_groups": [[0, 1], [2, 4]]},
        ["replica_groups:", "0..3", "missing [3]", "unknown [4]"],
    ),
    "unequal_sizes": (
        {"replica_groups": [[0], [1, 2, 3]]},
        ["replica_groups:", "equal size", "[1, 3]"],
    ),
    "groups_against_axis": (
        {"axis_name": "tp", "replica_groups": [[0, 2], [1, 3]]},
        ["replica_groups:", "axis_name=('tp',)", "[[0, 1], [2, 3]]", "[[0, 2], [1, 3]]"],
    ),
}


class BadGroupsTest(parameterized.TestCase):
    @parameterized.named_parameters(*named(GROUPS))
    def test_groups(self, options: dict[str, Any], parts: list[str]) -> None:
        arguments = good()
        devices = np.asarray(jax.devices("cpu")[:4]).reshape(2, 2)
        mesh = jax.sharding.Mesh(devices, ("dp", "tp"))
        everywhere = jax.sharding.PartitionSpec()

        def step(X: Any) -> Any:
            given = {**arguments, "X": X, **options}
            return jax_tkg.transformer_tkg(**given).hidden

        run = jax.shard_map(step, mesh=mesh, in_specs=everywhere, out_specs=everywhere)
        with self.assertRaises(ValueError) as caught:
            jax.jit(run)(arguments["X"])
        for part in parts:
            self.assertIn(part, str(caught.exception))

    def test_automatic_axis(self) -> None:
        """An axis of the mesh that the shard_map leaves to the compiler cannot be reduced over."""
        devices = np.asarray(jax.devices("cpu")[:4]).reshape(2, 2)
        mesh = jax.sharding.Mesh(devices, ("dp", "tp"))
        everywhere = jax.sharding.PartitionSpec()
        arguments = good()

        def step(X: Any) -> Any:
            return jax_tkg.transformer_tkg(**{**arguments, "X": X}, axis_name="tp").hidden

        run = jax.shard_map(
            step, mesh=mesh, in_specs=everywhere, out_specs=everywhere, axis_names={"dp"}
        )
        with self.assertRaisesRegex(ValueError, r"axis_name: .*\['dp'\].*'tp'"):
            jax.jit(run)(arguments["X"])

    def test_groups_across_an_automatic_axis(self) -> None:
        """Ranks that the shard_map does not bring together cannot be in one group."""
        devices = np.asarray(jax.devices("cpu")[:4]).reshape(2, 2)
        mesh = jax.sharding.Mesh(devices, ("dp", "tp"))
        everywhere = jax.sharding.PartitionSpec()
        arguments = good()

        def step(groups: list[list[int]], X: Any) -> Any:
            return jax_tkg.transformer_tkg(**{**arguments, "X": X}, replica_groups=groups).hidden

        def trace(groups: list[list[int]]) -> Any:
            run = jax.shard_map(
                functools.partial(step, groups),
                mesh=mesh,
                in_specs=everywhere,
                out_specs=everywhere,
                axis_names={"tp"},
            )
            return jax.eval_shape(jax.jit(run), arguments["X"])

        trace([[0, 1], [2, 3]])
        with self.assertRaisesRegex(
            ValueError, r"^replica_groups: .* axes \['tp'\] .*'dp': 2, .* \[\[0, 3\], \[2, 1\]\]$"
        ):
            trace([[0, 3], [2, 1]])


if __name__ == "__main__":
    absltest.main()
