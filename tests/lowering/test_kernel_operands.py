"""What the kernel is given in place of masks and positions, worked out by hand."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.call.dimensions import Dimensions
from jax_tkg.lowering import kernel_operands
from tests import cases
from tests.kernels import launch

SKIPPED = 2**32 - 1
S_MAX = 12


def _operands(positions: Any, stacked: bool = False, **changes: Any) -> Any:
    """Of a small case with these position_ids; None for no update."""
    sizes = {"H": 128, "I": 128, "L": 1, "S_ctx": 8, "S_max": S_MAX, **changes}
    shape = cases.Shape(**sizes, positions="none" if positions is None else "first")
    ((arguments,),) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
    if positions is not None:
        arguments["position_ids"] = np.asarray(positions, np.int32)
    if stacked:
        arguments = cases.stack(arguments)
    operands, _ = launch.canonical(arguments, **cases.options(shape))
    return operands


class PlacesTest(parameterized.TestCase):
    def _offsets(self, positions: Any, looped: bool = False, **changes: Any) -> dict[str, Any]:
        operands = _operands(positions, looped, **changes)
        return kernel_operands.write_offsets(operands, Dimensions.of(operands), looped)

    def test_windows(self) -> None:
        """Offsets of keys [B, k, d, S_max] are in elements, of values in rows."""
        offsets = self._offsets([[2], [S_MAX - 1]], B=2, S=2, q=2, k=2, d=4)
        second = 2 * 4 * S_MAX
        np.testing.assert_array_equal(offsets["window_offsets"], [[2, SKIPPED]])
        np.testing.assert_array_equal(
            offsets["key_offsets"], [[SKIPPED, SKIPPED, second + S_MAX - 1, SKIPPED]]
        )
        rows = 2 * S_MAX
        np.testing.assert_array_equal(offsets["value_offsets"], [[2, 3, rows + S_MAX - 1, SKIPPED]])

    def test_layers_of_a_loop(self) -> None:
        offsets = self._offsets([[2], [-1]], looped=True, B=2, S=2, q=1, k=1, d=4, L=3)
        layer = 2 * 4 * S_MAX
        np.testing.assert_array_equal(
            offsets["window_offsets"], [[2 + n * layer, SKIPPED] for n in range(3)]
        )
        np.testing.assert_array_equal(
            offsets["value_offsets"][2], [2 * 2 * S_MAX + 2, 2 * 2 * S_MAX + 3, SKIPPED, SKIPPED]
        )

    def test_one_token_has_only_a_window(self) -> None:
        offsets = self._offsets([[2], [5]], B=2, S=1)
        self.assertIsNone(offsets["key_offsets"])
        self.assertEqual(offsets["window_offsets"].dtype, jnp.uint32)

    def test_slot_of_each_token_has_no_window(self) -> None:
        offsets = self._offsets([[3, 3]], B=1, S=2, q=1, k=1, d=4)
        self.assertIsNone(offsets["window_offsets"])
        np.testing.assert_array_equal(offsets["key_offsets"], [[SKIPPED, 3]])
        np.testing.assert_array_equal(offsets["value_offsets"], [[SKIPPED, 3]])

    def test_no_update(self) -> None:
        offsets = self._offsets(None)
        self.assertEqual(set(offsets.values()), {None})


class MasksTest(parameterized.TestCase):
    @parameterized.parameters(
        (4, [(0, 2), (2, 4)]), (5, [(0, 2), (2, 4), (4, 5)]), (6, [(0, 2), (2, 3), (3, 5), (5, 6)])
    )
    def test_sequences_that_are_attended_together(self, B: int, groups: list[Any]) -> None:
        """Two of 64 columns each; those of each half of an even number lie on their own."""
        operands = _operands(None, B=B, q=32, S=2, S_ctx=8)
        cache = np.asarray(operands.mask_cache) != 0
        prior = np.asarray(kernel_operands.prior_mask(operands, Dimensions.of(operands)))
        self.assertEqual(prior.shape, (8, B * 64))
        want = [cache[:, first:last].reshape(-1) for first, last in groups]
        np.testing.assert_array_equal(prior.reshape(-1), np.concatenate(want))

    @parameterized.parameters(False, True)
    def test_rows_are_keys_and_columns_are_queries(self, unified: bool) -> None:
        """Column (b, h, s) is query s of head h of sequence b; it attends its own new keys only."""
        B, q, S, S_ctx = 3, 4, 2, 8
        operands = _operands(None, B=B, q=q, S=S, unified=unified)
        cache = np.asarray(operands.mask_cache) != 0
        slots = S_ctx - S if unified else S_ctx
        active = cache[slots:] if unified else np.asarray(operands.mask_active) != 0
        dimensions = Dimensions.of(operands)
        prior = np.asarray(kernel_operands.prior_mask(operands, dimensions))
        new = np.asarray(kernel_operands.active_mask(operands, dimensions))
        self.assertEqual((prior.shape, prior.dtype), ((slots, B * q * S), np.uint8))
        self.assertEqual((new.shape, new.dtype), ((B * S, B * q * S), np.uint8))
        for b, h, s in np.ndindex(B, q, S):
            column = (b * q + h) * S + s
            np.testing.assert_array_equal(prior[:, column], cache[:slots, b, h, s])
            mine = np.zeros((B, S), bool)
            mine[b] = active[:, b, h, s]
            np.testing.assert_array_equal(new[:, column], mine.reshape(-1))

    def test_no_slots(self) -> None:
        operands = _operands([[0]], B=1, S=1, S_ctx=1, unified=True)
        self.assertIsNone(kernel_operands.prior_mask(operands, Dimensions.of(operands)))


if __name__ == "__main__":
    absltest.main()
