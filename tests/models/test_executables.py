"""Executables: one per set of sizes, and the results of the function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jax_tkg.models.executables import Executables


class ExecutablesTest(absltest.TestCase):
    def test_one_per_set_of_sizes(self) -> None:
        traced = []

        def scaled_sum(weight: jax.Array, x: jax.Array, times: int) -> jax.Array:
            traced.append((x.shape, x.dtype, times))
            return weight * x.sum() * times

        executables = Executables(scaled_sum, ("times",))
        weight = jnp.float32(2)
        for x in (np.ones(3, np.float32), np.ones(3, np.float32), np.ones(4, np.float32)):
            self.assertEqual(executables(weight, x, times=5), 10 * x.size)
        self.assertEqual(executables.count, 2)
        self.assertEqual(executables(weight, np.ones(3, np.float32), times=6), 36)
        self.assertEqual(executables(weight, np.ones(3, np.int32), times=6), 36)
        self.assertEqual(executables.count, 4)
        self.assertLen(traced, 4)

    def test_seconds_count_compiling_only(self) -> None:
        executables = Executables(lambda weight, x: weight + x, ())
        self.assertEqual(executables.seconds, 0)
        executables(jnp.ones(3), jnp.ones(3))
        first = executables.seconds
        self.assertGreater(first, 0)
        executables(jnp.ones(3), jnp.ones(3))
        self.assertEqual(executables.seconds, first)


if __name__ == "__main__":
    absltest.main()
