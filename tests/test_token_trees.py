"""Verifying a token tree in one call is like running the accepted tokens one after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

import jax_tkg
from jax_tkg import caches, masks, rope
from tests import cases

SHAPE = cases.Shape(B=2, S=1, q=4, k=2, d=64, H=128, I=128, L=2)
S_MAX = 24
LENGTHS = np.array([5, 11])
PARENTS = np.array([[-1, 0, 0, 2, 1], [-1, -1, 1, 2, 0]])
ACCEPTED = np.array([[0, 2, 3], [1, 2, -1]])


@pytest.mark.thorough
class TokenTreesTest(absltest.TestCase):
    def test_an_accepted_path(self) -> None:
        rng = np.random.default_rng(0)
        weights = cases.random_weights(SHAPE, rng)
        tokens = rng.standard_normal((2, 5, 128)).astype(np.float32)
        cached = [
            [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]
            for shape in ((2, 2, 64, S_MAX), (2, 2, S_MAX, 64))
        ]

        @jax.jit
        def run(X: Any, positions: Any, slots: Any, mask: Any, K: Any, V: Any) -> Any:
            cos, sin = rope.rope_tables(positions, SHAPE.d)
            return jax_tkg.transformer_tkg(
                X,
                **weights,
                K_caches=K,
                V_caches=V,
                RoPE_cos=cos,
                RoPE_sin=sin,
                mask_cache=None,
                mask_active=mask,
                context_lengths=jnp.asarray(LENGTHS, jnp.int32),
                position_ids=slots,
                num_layers=2,
            )

        start = jnp.asarray(LENGTHS)[:, None]
        positions = start + masks.tree_depths(jnp.asarray(PARENTS))
        mask = masks.tree_mask(jnp.asarray(PARENTS), SHAPE.q)
        tree = run(tokens, positions, start + np.arange(5), mask, *cached)
        K, V = caches.compact(tree.K_caches, tree.V_caches, LENGTHS, jnp.asarray(ACCEPTED))

        kept = np.maximum(ACCEPTED, 0)
        chain = np.take_along_axis(tokens, kept[:, :, None], axis=1)
        places = np.where(ACCEPTED >= 0, start + np.arange(3), -1)
        causal = masks.active_mask(3, 2, SHAPE.q)
        want = run(chain, start + np.arange(3), places, causal, *cached)
        for b, count in enumerate((ACCEPTED >= 0).sum(axis=1)):
            got = np.asarray(tree.hidden)[b, ACCEPTED[b, :count]]
            np.testing.assert_allclose(got, want.hidden[b, :count], rtol=1e-4, atol=1e-4)
            end = LENGTHS[b] + count
            for layer in range(2):
                for mine, other in ((K, want.K_caches), (V, want.V_caches)):
                    axis = 2 if mine is K else 1
                    ours, theirs = (
                        np.take(np.asarray(side[layer][b]), range(end), axis)
                        for side in (mine, other)
                    )
                    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
