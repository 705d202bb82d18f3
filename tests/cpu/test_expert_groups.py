"""Experts run on blocks of tokens: every pair of a token and an expert counts once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.cpu import expert_groups

pytestmark = pytest.mark.usefixtures("quick_compilation")

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
