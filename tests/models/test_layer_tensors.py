"""The order of a head's features: what checkpoints store, and what the operation turns."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models.layer_tensors import head_order


def _turned(head: np.ndarray, first: np.ndarray, second: np.ndarray, angle: float) -> np.ndarray:
    """A head with features `first` and `second` turned as pairs."""
    turned = head.copy()
    turned[first] = head[first] * np.cos(angle) - head[second] * np.sin(angle)
    turned[second] = head[second] * np.cos(angle) + head[first] * np.sin(angle)
    return turned


class HeadOrderTest(parameterized.TestCase):
    @parameterized.product(rotary=(2, 6, 12), interleaved=(False, True))
    def test_contiguous_halves_turn_the_pairs(self, rotary: int, interleaved: bool) -> None:
        size, angle = 12, 0.7
        head = np.random.default_rng(0).standard_normal(size)
        pair = np.arange(rotary // 2)
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotary // 2)
        expected = _turned(head, first, second, angle)
        order = head_order(size, rotary, interleaved)
        order = np.arange(size) if order is None else order
        self.assertEqual(sorted(order), list(range(size)))
        actual = _turned(head[order], pair, pair + size // 2, angle)
        np.testing.assert_allclose(actual, expected[order], rtol=1e-12)

    def test_the_stored_order_is_kept_where_it_fits(self) -> None:
        self.assertIsNone(head_order(16, 16, False))
        self.assertIsNone(head_order(16, 0, False))
        self.assertIsNotNone(head_order(16, 16, True))


if __name__ == "__main__":
    absltest.main()
