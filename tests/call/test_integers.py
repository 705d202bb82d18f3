"""NumPy's 64-bit integers, of which JAX keeps the last 32 bits unless they are saturated."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import caches, kinds, masks
from jax_tkg.call.integers import as_int32, saturated
from tests.call.bad_calls import good

KIND = kinds.Kind(8, np.zeros(4))


class SaturatedTest(parameterized.TestCase):
    @parameterized.parameters(
        (np.int64, [-(2**40), -1, 3, 2**32 + 3], np.int32, [-(2**31), -1, 3, 2**31 - 1]),
        (np.uint64, [0, 3, 2**32 + 3, 2**64 - 1], np.uint32, [0, 3, 2**32 - 1, 2**32 - 1]),
        (np.uint32, [0, 2**32 - 1], np.uint32, [0, 2**32 - 1]),
        (np.float32, [0.5], np.float32, [0.5]),
    )
    def test_numpy(self, given: Any, numbers: Any, held: Any, wanted: Any) -> None:
        for got in (saturated(np.array(numbers, given)), saturated(given(numbers[-1]))):
            self.assertEqual(got.dtype, held)
        np.testing.assert_array_equal(saturated(np.array(numbers, given)), wanted)

    def test_what_stays(self) -> None:
        array = jnp.arange(3)
        self.assertIs(saturated(array), array)
        self.assertIs(saturated(None), None)
        jax.config.update("jax_enable_x64", True)
        self.addCleanup(jax.config.update, "jax_enable_x64", False)
        self.assertEqual(saturated(np.array([2**40])).dtype, np.int64)

    def test_as_int32(self) -> None:
        got = as_int32(np.array([-(2**40), 7, 2**32]))
        np.testing.assert_array_equal(got, [-(2**31), 7, 2**31 - 1])
        self.assertTrue(masks.context_mask(np.array([2**32]), 4, 1, 1).all())

    @parameterized.parameters(
        (lambda numbers: masks.cache_mask(numbers, 4, 1, 1), "lengths"),
        (lambda numbers: masks.unified_mask(numbers, 5, 1, 1), "lengths"),
        (lambda numbers: masks.active_mask(4, 1, 1, numbers), "new_lengths"),
        (lambda numbers: masks.window_mask(numbers, 3, 4, 1, 1), "lengths"),
        (lambda numbers: masks.tree_mask(numbers[None], 1), "parents"),
        (lambda numbers: kinds.decode_inputs(numbers, np.zeros(4)), "lengths"),
        (lambda numbers: kinds.prefill_inputs([KIND], numbers, S=1), "lengths"),
        (lambda numbers: kinds.step_inputs([KIND], numbers, S_tkg=1, q=1), "lengths"),
        (lambda numbers: caches.block_slots(numbers[None], np.zeros((1, 1), int), 4), "positions"),
        (lambda numbers: caches.ring_slots(numbers[None], 4), "positions"),
    )
    def test_no_integers(self, make: Any, name: str) -> None:
        for numbers in (np.float32([1.5]), jnp.ones(1), np.ones(1, np.bool_)):
            with self.assertRaisesRegex(
                TypeError, f"^{name}: expected an integer dtype, got {numbers.dtype.name}$"
            ):
                make(numbers)

    @parameterized.parameters(2**32 + 1, 2**40)
    def test_helpers(self, length: int) -> None:
        """Lengths beyond 32 bits are large, not their last 32 bits."""
        lengths = np.array([length])
        self.assertTrue(masks.cache_mask(lengths, 4, 1, 1).all())
        self.assertTrue(masks.unified_mask(lengths, 5, 1, 1).all())
        self.assertTrue(masks.active_mask(3, 1, 1, lengths)[0].all())
        for made in (
            kinds.decode_inputs(lengths, np.zeros(4)),
            kinds.prefill_inputs([KIND], lengths, S=1),
        ):
            np.testing.assert_array_equal(np.ravel(made["context_lengths"]), [2**31 - 1])


class CallTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.enterContext(warnings.catch_warnings())
        warnings.simplefilter("error")

    def test_slots(self) -> None:
        """Slots outside the cache are not written, whatever their last 32 bits."""
        given = good()
        call = {**given, "position_ids": np.array([[3], [2**32 + 3]])}
        for before, after in zip(
            given["K_caches"], jax_tkg.transformer_tkg(**call).K_caches, strict=True
        ):
            changed = (np.asarray(before) != np.asarray(after)).any(axis=(1, 2))
            np.testing.assert_array_equal(np.flatnonzero(changed[0]), [3, 4])
            self.assertFalse(changed[1].any())

    def test_lengths(self) -> None:
        given = {**good(), "mask_cache": None}
        whole, beyond = (
            jax_tkg.transformer_tkg(**{**given, "context_lengths": np.array([length] * 2)}).hidden
            for length in (24, 2**32)
        )
        np.testing.assert_array_equal(beyond, whole)

    def test_masks(self) -> None:
        """Non-zero elements of a mask stay so."""
        given = good()
        wide = np.where(np.asarray(given["mask_cache"]), np.int64(2**32), 0)
        np.testing.assert_array_equal(
            jax_tkg.transformer_tkg(**{**given, "mask_cache": wide}).hidden,
            jax_tkg.transformer_tkg(**given).hidden,
        )


if __name__ == "__main__":
    absltest.main()
