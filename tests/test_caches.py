"""Allocation of caches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.bits import Bits, as_bits
from jax_tkg.caches import allocate_caches, fill_ring, ring_capacity, ring_slots


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

    def test_kinds(self) -> None:
        sizes: dict[str, Any] = {"B": 2, "k": 4, "d": 64, "S_max": (10, 20), "dtype": jnp.float32}
        kinds = (0, 1, 0)
        lists = allocate_caches(3, **sizes, layer_kinds=kinds)
        self.assertEqual([c.shape[-1] for c in lists[0]], [10, 20, 10])
        _, stacks = allocate_caches(3, **sizes, layer_kinds=kinds, stacked=True)
        self.assertEqual([c.shape for c in stacks], [(2, 2, 4, 10, 64), (1, 2, 4, 20, 64)])
        with self.assertRaisesRegex(ValueError, "S_max: expected a capacity for each of 1 kinds"):
            allocate_caches(3, **sizes)

    def test_sharding(self) -> None:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
        spec = jax.sharding.PartitionSpec(None, "tp")
        sharding = jax.sharding.NamedSharding(mesh, spec)
        sizes = {"B": 1, "k": 4, "d": 64, "S_max": 10}
        for caches in allocate_caches(2, **sizes, dtype=jnp.float32, sharding=sharding):
            for cache in caches:
                self.assertEqual(cache.sharding, sharding)
                self.assertEqual(cache.addressable_shards[0].data.shape[1], 2)


class RingTest(parameterized.TestCase):
    def test_capacity(self) -> None:
        self.assertEqual(
            [ring_capacity(w) for w in (1, 120, 121, 512, 4096)], [128] * 2 + [256, 640, 4224]
        )

    def test_slots(self) -> None:
        slots = ring_slots(jnp.asarray([[6, 7, 8], [15, 16, -1]]), 8)
        np.testing.assert_array_equal(slots, [[6, 7, 0], [7, 0, -1]])

    @parameterized.parameters("float32", "bfloat16")
    def test_fill(self, dtype: str) -> None:
        """Against tokens that are written one after the other, into lists and stacks."""
        rng = np.random.default_rng(0)
        lengths, S_max = (0, 5, 8, 19), 8
        ring = rng.random((2, 4, 1, 3, S_max)).astype(jnp.dtype(dtype))
        columns = rng.random((2, 4, 1, 3, 20)).astype(jnp.dtype(dtype))
        want = ring.copy()
        for b, length in enumerate(lengths):
            for position in range(length):
                want[:, b, ..., position % S_max] = columns[:, b, ..., position]
        got = fill_ring(jnp.asarray(ring), columns, jnp.asarray(lengths), -1)
        np.testing.assert_array_equal(got, want)
        turned = (array[0].swapaxes(-1, -2) for array in (ring, columns))
        held = fill_ring(*map(as_bits, turned), jnp.asarray(lengths), -2)
        held = held.values() if isinstance(held, Bits) else held
        np.testing.assert_array_equal(held, want[0].swapaxes(-1, -2))


if __name__ == "__main__":
    absltest.main()
