"""Allocation of caches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jax_tkg.caches import allocate_caches


class AllocateCachesTest(absltest.TestCase):
    def test_lists(self) -> None:
        K_caches, V_caches = allocate_caches(3, B=2, k=4, d=64, S_max=10, dtype=jnp.bfloat16)
        self.assertEqual([c.shape for c in K_caches], [(2, 4, 64, 10)] * 3)
        self.assertEqual([c.shape for c in V_caches], [(2, 4, 10, 64)] * 3)
        arrays = [*K_caches, *V_caches]
        self.assertTrue(all(c.dtype == jnp.bfloat16 and not c.any() for c in arrays))
        # Arrays that share a buffer cannot all be donated.
        self.assertLen({c.unsafe_buffer_pointer() for c in arrays}, 6)

    def test_stacked(self) -> None:
        K_caches, V_caches = allocate_caches(
            3, B=2, k=4, d=64, S_max=10, dtype=jnp.float32, stacked=True
        )
        self.assertEqual(K_caches.shape, (3, 2, 4, 64, 10))
        self.assertEqual(V_caches.shape, (3, 2, 4, 10, 64))
        self.assertFalse(K_caches.any() or V_caches.any())

    def test_sharding(self) -> None:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
        spec = jax.sharding.PartitionSpec(None, "tp")
        sharding = jax.sharding.NamedSharding(mesh, spec)
        sizes = {"B": 1, "k": 4, "d": 64, "S_max": 10}
        for caches in allocate_caches(2, **sizes, dtype=jnp.float32, sharding=sharding):
            for cache in caches:
                self.assertEqual(cache.sharding, sharding)
                self.assertEqual(cache.addressable_shards[0].data.shape[1], 2)


if __name__ == "__main__":
    absltest.main()
