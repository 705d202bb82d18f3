"""Masks, entry by entry."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import masks


def _made(make: Any, *arguments: Any, **options: Any) -> np.ndarray:
    """A mask of these arguments, of which lists are arrays, made by one program."""
    arrays = [jnp.asarray(given) for given in arguments if isinstance(given, list)]

    @jax.jit
    def run(arrays: list[jax.Array]) -> jax.Array:
        left = iter(arrays)
        return make(*(next(left) if isinstance(a, list) else a for a in arguments), **options)

    return np.asarray(run(arrays))


@pytest.mark.thorough
class MasksTest(parameterized.TestCase):
    @parameterized.parameters(([0, 3, 7], 5, 2, 1), ([2], 2, 1, 4), ([9, 1], 8, 3, 2))
    def test_cache_mask(self, lengths: list[int], S_ctx: int, q: int, S: int) -> None:
        mask = _made(masks.cache_mask, lengths, S_ctx, q, S)
        self.assertEqual(mask.shape, (S_ctx, len(lengths), q, S))
        for slot, b, h, s in itertools.product(*map(range, mask.shape)):
            self.assertEqual(bool(mask[slot, b, h, s]), slot < lengths[b])

    @parameterized.parameters(1, 2, 5)
    @pytest.mark.extended_except("1")
    def test_active_mask(self, S: int) -> None:
        mask = _made(masks.active_mask, S, 2, 3)
        self.assertEqual(mask.shape, (S, 2, 3, S))
        for key, b, h, query in itertools.product(*map(range, mask.shape)):
            self.assertEqual(bool(mask[key, b, h, query]), key <= query)

    def test_active_mask_with_padding(self) -> None:
        lengths = [0, 2, 4]
        mask = _made(masks.active_mask, 4, 3, 1, lengths)
        for key, b, h, query in itertools.product(*map(range, mask.shape)):
            expected = key <= query < lengths[b]
            self.assertEqual(bool(mask[key, b, h, query]), expected)

    @parameterized.parameters((4, 4, 6), (1, 8, 8), (7, 3, 16))
    @pytest.mark.extended_except("1")
    def test_window_mask(self, window: int, S: int, S_max: int) -> None:
        """Against a ring into which positions are written one after the other."""
        lengths = [0, 3, 11, 16, 40]
        held = np.full((len(lengths), S_max), -1)
        for b, length in enumerate(lengths):
            for position in range(length):
                held[b, position % S_max] = position
        np.testing.assert_array_equal(
            np.maximum(masks.ring_positions(jnp.asarray(lengths), S_max), -1), held
        )
        for S_ctx in (S_max, 4):
            mask = _made(masks.window_mask, lengths, window, S_ctx, 2, S, S_max)
            self.assertEqual(mask.shape, (S_ctx, len(lengths), 2, S))
            for slot, b, h, s in itertools.product(*map(range, mask.shape)):
                distance = lengths[b] + s - held[b, slot]
                expected = held[b, slot] >= 0 and distance < window
                self.assertEqual(bool(mask[slot, b, h, s]), expected)

    @parameterized.parameters((1, 0, 8), (9, 8, 7), (3, 8, 4))
    def test_windows_that_cannot_be(self, S_ctx: int, window: int, S_max: int) -> None:
        with self.assertRaisesRegex(ValueError, "(window|S_ctx|S_max): expected at (least|most)"):
            masks.window_mask(jnp.zeros(1, jnp.int32), window, S_ctx, 1, 1, S_max)

    def test_active_mask_of_a_window(self) -> None:
        mask = _made(masks.active_mask, 5, 1, 1, window=2)[:, 0, 0]
        for key, query in itertools.product(range(5), repeat=2):
            self.assertEqual(bool(mask[key, query]), 0 <= query - key < 2)

    @parameterized.parameters(0, -1)
    def test_active_mask_of_a_window_that_cannot_be(self, window: int) -> None:
        with self.assertRaisesRegex(ValueError, f"window: expected at least 1, got {window}"):
            masks.active_mask(2, 1, 1, window=window)

    @parameterized.parameters((4, 1, 3), (4, 3, 8), (3, 2, 2), (1, 2, 5), (6, 4, None))
    @pytest.mark.extended_except("1", "3", "4")
    def test_window_ranges(self, window: int, S: int, ring: int | None) -> None:
        """The ranges attend what the window's mask does, in rings that went round and in none."""
        lengths = jnp.arange(0, 17)
        ends, starts = masks.window_ranges(lengths, window, S, ring)
        slots = 20 if ring is None else ring
        got = masks.context_mask(ends, slots, 1, S, starts)
        want = _made(masks.window_mask, lengths.tolist(), window, slots, 1, S)
        np.testing.assert_array_equal(got, want)

    def test_window_ranges_of_a_short_ring(self) -> None:
        with self.assertRaisesRegex(ValueError, "S_max: expected at least window - 1 = 4, got 3"):
            masks.window_ranges(jnp.arange(2), 5, 1, 3)

    @parameterized.parameters((6, 2), (3, 3))
    def test_unified_mask(self, S_ctx: int, S: int) -> None:
        lengths = [0, 2, 9]
        mask = _made(masks.unified_mask, lengths, S_ctx, 2, S)
        self.assertEqual(mask.shape, (S_ctx, 3, 2, S))
        for row, b, h, query in itertools.product(*map(range, mask.shape)):
            new = row - (S_ctx - S)
            expected = new <= query if new >= 0 else row < lengths[b]
            self.assertEqual(bool(mask[row, b, h, query]), expected)

    def test_unified_mask_too_short(self) -> None:
        with self.assertRaisesRegex(ValueError, "S_ctx: expected at least S_tkg = 3, got 2"):
            masks.unified_mask(jnp.zeros(1, jnp.int32), 2, 1, 3)

    @pytest.mark.extended
    def test_dtypes(self) -> None:
        lengths = np.array([1], np.int32)
        for dtype in (jnp.bool_, jnp.uint8, jnp.float32):
            self.assertEqual(masks.cache_mask(lengths, 4, 1, 2, dtype).dtype, dtype)
            self.assertEqual(masks.active_mask(2, 1, 1, dtype=dtype).dtype, dtype)
            self.assertEqual(masks.unified_mask(lengths, 4, 1, 2, dtype).dtype, dtype)

    def test_tree(self) -> None:
        parents = [[-1, 0, 0, 1, 3], [-1, -1, 1, 0, 2]]
        mask = np.asarray(masks.tree_mask(jnp.asarray(parents), 2))
        self.assertEqual(mask.shape, (5, 2, 2, 5))
        depths = np.asarray(masks.tree_depths(jnp.asarray(parents, jnp.int8)))
        for b, token in itertools.product(range(2), range(5)):
            leading = {token}
            before = parents[b][token]
            while before >= 0:
                leading.add(before)
                before = parents[b][before]
            for key, h in itertools.product(range(5), range(2)):
                self.assertEqual(bool(mask[key, b, h, token]), key in leading)
            self.assertEqual(int(depths[b, token]), len(leading) - 1)

    def test_a_tree_without_branches_is_causal(self) -> None:
        parents = jnp.arange(4)[None] - 1
        np.testing.assert_array_equal(masks.tree_mask(parents, 3), masks.active_mask(4, 1, 3))


if __name__ == "__main__":
    absltest.main()
