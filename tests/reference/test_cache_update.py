"""Writing new columns into caches, against a loop in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg.bits import Bits, as_bits
from jax_tkg.reference import cache_update

L, K_HEADS, D, CAPACITY = 2, 2, 4, 6


def _written(cache: np.ndarray, slots: np.ndarray, new: np.ndarray) -> np.ndarray:
    """V_cache [B, k, S_max, d] after the tokens are written in order."""
    cache = cache.copy()
    for sequence, row in enumerate(slots):
        for token, slot in enumerate(row):
            if 0 <= slot < CAPACITY:
                cache[sequence, :, slot] = new[sequence, token]
    return cache


@jax.jit
def _update(K: Any, V: Any, layer: jax.Array, slots: jax.Array, key: Any, value: Any) -> Any:
    plan = cache_update.plan_writes(slots, CAPACITY)
    return cache_update.update_caches(K, V, layer, plan, key, value)


class CacheUpdateTest(parameterized.TestCase):
    @settings(max_examples=60)
    @given(data=st.data(), batch=st.integers(1, 3), tokens=st.integers(1, 4), bits=st.booleans())
    def test_against_numpy(self, data: st.DataObject, batch: int, tokens: int, bits: bool) -> None:
        """Slots drawn from all over the cache and beyond it; some twice in a sequence."""
        rows = st.lists(st.integers(0, CAPACITY + 1), min_size=tokens, max_size=tokens)
        drawn = data.draw(st.lists(rows, min_size=batch, max_size=batch))
        slots = np.minimum(np.array(drawn, np.int32), CAPACITY)
        rng = np.random.default_rng(0)

        def random(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(jnp.bfloat16 if bits else np.float32)

        V = random(L, batch, K_HEADS, CAPACITY, D)
        K = random(L, batch, K_HEADS, D, CAPACITY)
        key, value = random(batch, tokens, K_HEADS, D), random(batch, tokens, K_HEADS, D)
        form = as_bits if bits else jnp.asarray
        got = _update(form(K), form(V), jnp.uint32(1), jnp.asarray(slots), key, value)
        caches = [one.values() if isinstance(one, Bits) else one for one in _caches(got)]
        np.testing.assert_array_equal(caches[0][0], K[0])
        np.testing.assert_array_equal(caches[1][0], V[0])
        transposed = np.swapaxes(K[1], 2, 3)
        np.testing.assert_array_equal(
            np.swapaxes(caches[0][1], 2, 3), _written(transposed, slots, key)
        )
        np.testing.assert_array_equal(caches[1][1], _written(V[1], slots, value))
        first = np.asarray(cache_update.first_writers(jnp.asarray(slots), CAPACITY))
        for sequence, token in zip(*np.nonzero(first), strict=True):
            slot = slots[sequence, token]
            np.testing.assert_array_equal(
                got.displaced_value[sequence, token], V[1, sequence, :, slot]
            )
            np.testing.assert_array_equal(
                got.displaced_key[sequence, token], K[1, sequence, :, :, slot]
            )

    @parameterized.parameters("uint8", "int8", "int32", "uint32")
    def test_slots(self, dtype: str) -> None:
        """One position per sequence or one per token; what is outside becomes the capacity."""
        one = jnp.asarray(np.array([[3], [5], [6], [100]]).astype(dtype))
        got = cache_update.write_slots(one, 3, CAPACITY)
        np.testing.assert_array_equal(got, [[3, 4, 5], [5, 6, 6], [6, 6, 6], [6, 6, 6]])
        each = jnp.asarray(np.array([[3, 0, 7]]).astype(dtype))
        np.testing.assert_array_equal(cache_update.write_slots(each, 3, CAPACITY), [[3, 0, 6]])

    @parameterized.parameters("int8", "int32", "uint32")
    def test_skip_markers(self, dtype: str) -> None:
        one = jnp.asarray(np.array([[-1], [0]]).astype(dtype))
        got = cache_update.write_slots(one, 2, CAPACITY)
        np.testing.assert_array_equal(got, [[6, 6], [0, 1]])

    def test_first_writers(self) -> None:
        slots = jnp.asarray([[2, 2, 0, 6], [6, 1, 3, 1]])
        np.testing.assert_array_equal(
            cache_update.first_writers(slots, CAPACITY),
            [[True, False, True, False], [False, True, True, False]],
        )


def _caches(update: cache_update.CacheUpdate) -> tuple[Any, Any]:
    return update.K_cache, update.V_cache


if __name__ == "__main__":
    absltest.main()
