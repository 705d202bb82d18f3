"""Writing new columns into caches, against a loop in NumPy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg.bits import as_bits, without_bits
from jax_tkg.cpu import cache_update as cpu
from jax_tkg.reference import cache_update as reference

L, K_HEADS, D, CAPACITY = 2, 2, 4, 6


def _written(cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
    """V_cache [B, k, S_max, d] after the tokens are written in order."""
    cache = cache.copy()
    for sequence, row in enumerate(slots):
        for token, slot in enumerate(row):
            if 0 <= slot < CAPACITY:
                cache[sequence, :, slot] = new[sequence, token]
    return cache


@functools.partial(jax.jit, static_argnames="write_caches")
def _update(write_caches: Any, K: Any, V: Any, slots: jax.Array, keys: Any, values: Any) -> Any:
    return write_caches(K, V, slots, keys, values, after=slots)


SLOTS_PER_SHAPE = 3
"""Compiling costs far more than running."""

DRAWN = {
    "data": st.data(),
    "batch": st.integers(1, 3),
    "tokens": st.integers(1, 4),
    "bits": st.booleans(),
    "caches_stacked": st.booleans(),
    "columns_stacked": st.booleans(),
}


@pytest.mark.thorough
class CacheUpdateTest(parameterized.TestCase):
    @settings(max_examples=4)
    @given(**DRAWN)
    def test_against_numpy(self, **drawn: Any) -> None:
        self._check(**drawn)

    @pytest.mark.extended
    @settings(max_examples=20)
    @given(**DRAWN)
    def test_more_against_numpy(self, **drawn: Any) -> None:
        self._check(**drawn)

    def _check(
        self,
        data: st.DataObject,
        batch: int,
        tokens: int,
        bits: bool,
        caches_stacked: bool,
        columns_stacked: bool,
    ) -> None:
        """Slots drawn from all over the cache and beyond it; some twice in a sequence."""
        rows = st.lists(st.integers(0, CAPACITY + 1), min_size=tokens, max_size=tokens)
        rng = np.random.default_rng(0)

        def random(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(jnp.bfloat16 if bits else np.float32)

        # Stacked caches may have a layer more than there are columns.
        held = L + caches_stacked
        V = random(held, batch, K_HEADS, CAPACITY, D)
        K = random(held, batch, K_HEADS, D, CAPACITY)
        keys, values = random(L, batch, tokens, K_HEADS, D), random(L, batch, tokens, K_HEADS, D)
        form = as_bits if bits else jnp.asarray
        caches = [form(one) if caches_stacked else tuple(map(form, one)) for one in (K, V)]
        columns = [one if columns_stacked else list(one) for one in (keys, values)]
        for _ in range(SLOTS_PER_SHAPE):
            drawn = data.draw(st.lists(rows, min_size=batch, max_size=batch))
            slots = np.minimum(np.array(drawn, np.int32), CAPACITY)
            for write_caches in (reference.write_caches, cpu.write_caches):
                updated = _update(write_caches, *caches, jnp.asarray(slots), *columns)
                got_K, got_V = jax.tree.map(np.asarray, without_bits(updated))
                for layer in range(L):
                    want = _written(np.swapaxes(K[layer], 2, 3), slots, keys[layer])
                    np.testing.assert_array_equal(got_K[layer], np.swapaxes(want, 2, 3))
                    want = _written(V[layer], slots, values[layer])
                    np.testing.assert_array_equal(got_V[layer], want)
                if caches_stacked:
                    np.testing.assert_array_equal(got_K[L], K[L])
                    np.testing.assert_array_equal(got_V[L], V[L])

    @parameterized.parameters("uint8", "int8", "int32", "uint32")
    def test_slots(self, dtype: str) -> None:
        """One position per sequence or one per token; what is outside becomes the capacity."""
        one = jnp.asarray(np.array([[3], [5], [6], [100]]).astype(dtype))
        got = reference.write_slots(one, 3, CAPACITY)
        np.testing.assert_array_equal(got, [[3, 4, 5], [5, 6, 6], [6, 6, 6], [6, 6, 6]])
        each = jnp.asarray(np.array([[3, 0, 7]]).astype(dtype))
        np.testing.assert_array_equal(reference.write_slots(each, 3, CAPACITY), [[3, 0, 6]])

    @parameterized.parameters("int8", "int32", "uint32")
    def test_skip_markers(self, dtype: str) -> None:
        one = jnp.asarray(np.array([[-1], [0]]).astype(dtype))
        got = reference.write_slots(one, 2, CAPACITY)
        np.testing.assert_array_equal(got, [[6, 6], [0, 1]])


if __name__ == "__main__":
    absltest.main()
