"""Experts run on blocks of tokens: every pair of a token and an expert counts once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.cpu import expert_groups, formulation, products
from jax_tkg.cpu.formulation import Form
from jax_tkg.cpu.stored_weight import StoredWeight
from jax_tkg.reference import expert_runs

HELD, H = 5, 4


class RunInGroupsTest(parameterized.TestCase):
    @parameterized.parameters((1, 7, 3), (2, 7, 3), (3, 9, 5), (32, 6, 1))
    def test_against_numpy(self, size: int, T: int, k: int) -> None:
        """20 draws each, of which the last has no expert that this rank holds."""
        rng = np.random.default_rng(size)
        matrices = rng.normal(size=(HELD, H, H)).astype(np.float32)

        @jax.jit
        def run(rows: jax.Array, chosen: jax.Array, shares: jax.Array) -> jax.Array:
            def expert(tokens: jax.Array, number: jax.Array) -> jax.Array:
                self.assertEqual(tokens.shape, (min(size, T), H))
                return tokens @ jnp.asarray(matrices)[number]

            grouped = functools.partial(expert_groups.run_in_groups, size, expert)
            return grouped(rows, chosen, shares, HELD, matrices)

        for draw in range(20):
            rows = rng.normal(size=(T, H)).astype(np.float32)
            chosen = np.stack([rng.permutation(HELD)[:k] for _ in range(T)]).astype(np.int32)
            shares = rng.uniform(0.1, 1, (T, k)).astype(np.float32)
            shares *= rng.uniform(size=(T, k)) < (0.7 if draw < 19 else 0)
            results = np.einsum("th,tkhj->tkj", rows, matrices[chosen])
            want = (shares[:, :, np.newaxis] * results).sum(axis=1)
            np.testing.assert_allclose(run(rows, chosen, shares), want, rtol=1e-5, atol=1e-5)


class RunSideBySideTest(parameterized.TestCase):
    @parameterized.parameters((1, 4, 4), (1, 4, 2), (3, 4, 3), (3, 2, 6))
    def test_against_numpy(self, T: int, k: int, together: int) -> None:
        """Matrices of which the loops sum 40 rows in steps of eight, five to a partial sum."""
        inner, columns = 40, 6
        rng = np.random.default_rng(T)
        matrices = rng.normal(size=(HELD, inner, columns)).astype(np.float32)

        def expert(tokens: jax.Array, number: jax.Array) -> jax.Array:
            self.assertEqual(tokens.shape, (1, inner))
            weight = StoredWeight(jnp.asarray(matrices)).expert(number)
            return products.multiply(tokens, weight, Form.SUMMED)

        @jax.jit
        def run(rows: jax.Array, chosen: jax.Array, shares: jax.Array) -> jax.Array:
            return expert_runs.run_pairs(expert, rows, chosen, shares, batch_size=together)

        for _ in range(5):
            rows = rng.normal(size=(T, inner)).astype(np.float32)
            chosen = np.stack([rng.permutation(HELD)[:k] for _ in range(T)]).astype(np.int32)
            shares = rng.uniform(0.1, 1, (T, k)).astype(np.float32)
            want = np.einsum("tk,th,tkhj->tj", shares, rows, matrices[chosen])
            np.testing.assert_allclose(run(rows, chosen, shares), want, rtol=1e-4, atol=1e-4)

    def test_how_many_at_once(self) -> None:
        """As many as read what one step of a large weight reads, a divisor of the pairs."""
        for shape, pairs, want in (
            ((128, 256, 96), 8, 8),
            ((128, 256, 96), 64, 32),
            ((128, 1024, 512), 8, 2),
            ((128, 1024, 512), 5, 1),
            ((128, 1024, 1024), 8, 1),
            ((128, 2048, 1024), 8, 1),
            ((128, 12, 8), 8, 1),  # Not a multiple of the terms: one dot.
        ):
            weight = StoredWeight(np.broadcast_to(np.float32(0), shape))
            self.assertEqual(formulation.experts_at_once(pairs, weight), want, (shape, pairs))


class RunExpertsTest(parameterized.TestCase):
    @parameterized.parameters((1, 8, 4), (3, 2, 8), (4, 2, 8), (6, 3, 4))
    def test_reads_what_is_chosen(self, T: int, k: int, held: int) -> None:
        """One token at a time, and no step for an expert that is not chosen."""
        k = min(k, held)
        calls = []

        def run(chosen: jax.Array) -> jax.Array:
            def expert(tokens: jax.Array, number: jax.Array) -> jax.Array:
                jax.debug.callback(lambda n: calls.append(int(n)), number)
                return jnp.ones_like(tokens)

            rows, shares = jnp.ones((T, H)), jnp.ones((T, k))
            return expert_groups.run_experts(expert, rows, chosen, shares, held, ())

        rng = np.random.default_rng(T)
        chosen = np.stack([rng.permutation(held)[:k] for _ in range(T)]).astype(np.int32)
        got = jax.block_until_ready(jax.jit(run)(chosen))
        jax.effects_barrier()
        np.testing.assert_array_equal(got, np.full((T, H), k))
        self.assertEqual(sorted(calls), sorted(chosen.reshape(-1).tolist()))


if __name__ == "__main__":
    absltest.main()
