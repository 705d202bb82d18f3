"""Products of activations and weights: every formulation against float64, and their choice."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from jax_tkg.bits import as_bits
from jax_tkg.cpu import formulation
from jax_tkg.cpu.formulation import Form
from jax_tkg.cpu.products import multiply, multiply_many
from jax_tkg.cpu.stored_weight import StoredWeight
from jax_tkg.reference.linear import linear

# By the weight's dtype, that of the activations.
DTYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float8_e4m3": "bfloat16",
    "float8_e4m3fn": "float32",
    "float8_e5m2": "float16",
}
# One step and several of SUMMED, two blocks and more, and neither a multiple of the other.
SIZES = ((128, 256), (256, 8192), (384, 640))


def _operands(n: int, m: int, rows: int, dtype: str) -> tuple[jax.Array, np.ndarray]:
    rng = np.random.default_rng(n + m + rows)
    weight = rng.standard_normal((n, m)).astype(np.float32).astype(dtype)
    activations = rng.uniform(-1, 1, (rows, n)).astype(np.float32)
    return jnp.asarray(activations, DTYPES[dtype]), weight


def _exact(rows: Any, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and the sum of magnitudes that its rounding error is relative to."""
    left, right = np.asarray(rows, np.float64), weight.astype(np.float64)
    return left @ right, np.abs(left) @ np.abs(right)


def _stored(weight: np.ndarray, bits: bool, stacked: bool) -> StoredWeight:
    array = jnp.asarray(weight)
    # What stands in the layers beside the one in the middle must not matter.
    array = jnp.stack([jnp.zeros_like(array), array, jnp.ones_like(array)]) if stacked else array
    held = as_bits(array) if bits else array
    return StoredWeight(held, jnp.uint32(1) if stacked else None)


@pytest.mark.thorough
class ProductsTest(parameterized.TestCase):
    @parameterized.parameters(*itertools.product(DTYPES, Form, (1, 8), (False, True)))
    @pytest.mark.extended_except("0", "9", "19", "22", "28", "38", "50", "58", "65", "71")
    def test_against_float64(self, dtype: str, form: Form, rows: int, stacked: bool) -> None:
        for (n, m), bits in itertools.product(SIZES[:2] if stacked else SIZES, (False, True)):
            activations, weight = _operands(n, m, rows, dtype)
            stored = _stored(weight, bits, stacked)
            got = jax.jit(multiply, static_argnums=2)(activations, stored, form)
            self.assertEqual((got.shape, got.dtype), ((rows, m), jnp.float32))
            exact, magnitude = _exact(activations, weight)
            # Sums of n products in f32, in any order.
            np.testing.assert_array_less(np.abs(got - exact), 1e-6 * magnitude)

    @parameterized.parameters(1, 3)
    def test_scale_and_clamp(self, rows: int) -> None:
        activations, weight = _operands(128, 256, rows, "float8_e4m3")
        x = activations[:, None, :] * 4
        scale = np.linspace(0.5, 2, 256, dtype=np.float32)[None]
        got = jax.jit(linear, static_argnums=(3, 4))(
            x, _stored(weight, True, False), jnp.asarray(scale), 1.5, multiply
        )
        clipped = np.clip(np.asarray(x[:, 0], np.float64), -1.5, 1.5)
        np.testing.assert_allclose(
            got[:, 0], (clipped @ weight.astype(np.float64)) * scale, rtol=1e-5, atol=1e-3
        )


class StoredWeightTest(parameterized.TestCase):
    @parameterized.parameters(*itertools.product(DTYPES, (False, True), (False, True)))
    @pytest.mark.extended_except("0", "7", "10", "13", "18", "23")
    def test_rows(self, dtype: str, bits: bool, stacked: bool) -> None:
        _, weight = _operands(128, 256, 1, dtype)
        stored = _stored(weight, bits, stacked)
        self.assertEqual((stored.shape, stored.dtype), ((128, 256), np.dtype(dtype)))
        np.testing.assert_array_equal(stored.whole(), weight)
        for start in (16, jnp.uint32(16)):
            block = stored.rows(start, 8) * stored.factor
            np.testing.assert_array_equal(block, weight[16:24].astype(np.float32))
        if np.dtype(dtype).itemsize == 1 or dtype == "bfloat16":
            block = stored.rows_in(jnp.bfloat16, 16, 8).astype(jnp.float32) * stored.factor
            np.testing.assert_array_equal(block, weight[16:24].astype(np.float32))

    def test_rows_of_several_experts(self) -> None:
        """Side by side they are blocks of rows, each with one number and not one an axis."""
        experts = np.arange(3 * 5 * 16 * 4, dtype=np.float32).reshape(3, 5, 16, 4)
        numbers = np.asarray([4, 0, 4, 2], np.int32)

        def rows(layer: jax.Array, start: jax.Array) -> jax.Array:
            stored = StoredWeight(jnp.asarray(experts), layer)
            return jax.vmap(lambda number: stored.expert(number).rows(start, 8))(numbers)

        run = jax.jit(rows)
        for start in (0, 8):
            got = run(jnp.uint32(1), jnp.uint32(start))
            np.testing.assert_array_equal(got, experts[1, numbers, start : start + 8])
        text = run.lower(jnp.uint32(1), jnp.uint32(8)).as_text()
        self.assertIn("start_index_map = [0]", text)
        self.assertNotIn("stablehlo.concatenate", text)

    def test_rows_of_several_stacks(self) -> None:
        stacks = np.arange(2 * 3 * 16 * 4, dtype=np.float32).reshape(2, 3, 16, 4)
        layers = np.asarray([2, 1], np.uint32)
        got = jax.vmap(lambda stack, layer: StoredWeight(stack, layer).rows(8, 8))(stacks, layers)
        np.testing.assert_array_equal(got, stacks[[0, 1], layers, 8:])


class ChoiceTest(parameterized.TestCase):
    def test_what_xla_would_convert_is_left_whole(self) -> None:
        stored = _stored(np.ones((512, 512), jnp.float8_e4m3), False, False)
        self.assertIs(formulation.choose(stored, 1), Form.WHOLE)

    @parameterized.parameters(
        ("float32", 32, 33), ("bfloat16", 8, 9), ("float8_e4m3", 2, 3), ("float8_e5m2", 1, 8)
    )
    def test_many_rows_decode_once(self, dtype: str, few: int, many: int) -> None:
        stored = _stored(np.ones((2048, 1024), dtype), True, False)
        self.assertIs(formulation.choose(stored, few), Form.SUMMED)
        self.assertIs(formulation.choose(stored, many), Form.BLOCKS)

    @parameterized.parameters(
        ("bfloat16", "bfloat16", True, 2),
        ("bfloat16", "bfloat16", False, 8),
        ("bfloat16", "float32", True, 8),
        ("float8_e4m3", "bfloat16", True, 2),
        ("float32", "float32", True, 32),
    )
    def test_the_processor_decides(
        self, dtype: str, activations: str, has_products: bool, few: int
    ) -> None:
        stored = _stored(np.ones((2048, 1024), dtype), True, False)
        with mock.patch.object(formulation, "has_bfloat16_products", return_value=has_products):
            forms = [formulation.choose(stored, rows, activations) for rows in (few, few + 1)]
        self.assertEqual(forms, [Form.SUMMED, Form.BLOCKS])

    @parameterized.parameters("float32", "bfloat16")
    def test_several_rows_are_summed_in_loops_only(self, dtype: str) -> None:
        stored = _stored(np.ones((128, 1024), dtype), True, False)
        fuses_all = jax.__version_info__ < (0, 10) and dtype == "bfloat16"
        one_row = Form.BLOCKS if fuses_all else Form.SUMMED
        self.assertIs(formulation.choose(stored, 1), one_row)
        self.assertIs(formulation.choose(stored, 2), Form.BLOCKS)
        larger = _stored(np.ones((256, 1024), dtype), True, False)
        self.assertIs(formulation.choose(larger, 2), Form.SUMMED)

    def test_small_weights_are_one_product(self) -> None:
        stored = _stored(np.ones((128, 64), np.float32), False, False)
        self.assertIs(formulation.choose(stored, 8), Form.WHOLE)

    @given(heads=st.integers(1, 256), d=st.sampled_from([64, 128]), context=st.integers(0, 1 << 16))
    def test_heads_attended_at_once(self, heads: int, d: int, context: int) -> None:
        def taken(dtype: str) -> int:
            cache = jax.ShapeDtypeStruct((1, heads, d, context), dtype)
            return formulation.attention_heads(cache, heads, context)

        self.assertEqual(taken("float32"), heads)
        few = taken("bfloat16")
        self.assertEqual(heads % few, 0)
        self.assertLessEqual(few * d * context, max(formulation.ATTENTION_ELEMENTS, d * context))

    @given(n=st.integers(1, 1024), m=st.integers(1, 1 << 15), rows=st.integers(1, 32))
    def test_blocks_cover_the_weight(self, n: int, m: int, rows: int) -> None:
        inner = n * formulation.TERMS
        columns = formulation.block_columns(m, rows)
        self.assertEqual(m % columns, 0)
        self.assertGreaterEqual(columns, min(m, formulation.SMALLEST_BLOCK_COLUMNS))
        group = formulation.group_rows(inner, m, rows)
        self.assertEqual(inner % (formulation.TERMS * group), 0)
        size = formulation.block_rows(inner, m)
        self.assertEqual(inner % size, 0)
        self.assertGreaterEqual(inner // size, 2)
        self.assertLessEqual(size * m, max(formulation.BLOCK_ELEMENTS, m))


class ManyRowsTest(parameterized.TestCase):
    """Products of hundreds of rows, in the dtype that the processor multiplies fastest."""

    @parameterized.product(
        dtype=tuple(DTYPES), has_products=(False, True), held_as_bits=(False, True)
    )
    def test_equals_float64(self, dtype: str, has_products: bool, held_as_bits: bool) -> None:
        activations, weight = _operands(256, 384, 40, dtype)
        values = as_bits(jnp.asarray(weight)) if held_as_bits else jnp.asarray(weight)
        stored = StoredWeight(values)
        with mock.patch.object(formulation, "has_bfloat16_products", return_value=has_products):
            chosen = formulation.many_rows_dtype(activations.dtype, stored.dtype)
            got = multiply_many(activations, stored)
        narrow = has_products and DTYPES[dtype] == "bfloat16"
        self.assertEqual(chosen, jnp.bfloat16 if narrow else jnp.float32)
        self.assertEqual(got.dtype, jnp.float32)
        want = np.asarray(activations, np.float64) @ weight.astype(np.float64)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())

    @parameterized.parameters(
        ("flags : fpu avx512f avx512_bf16 vaes", True),
        ("flags : fpu amx_bf16 amx_tile", True),
        ("flags : fpu avx512f avx512bw", False),
        (None, False),
    )
    def test_instructions_of_the_processor(self, description: str | None, expected: bool) -> None:
        failure = FileNotFoundError() if description is None else None
        with mock.patch.object(
            pathlib.Path, "read_text", return_value=description, side_effect=failure
        ):
            self.assertEqual(formulation.has_bfloat16_products.__wrapped__(), expected)


if __name__ == "__main__":
    absltest.main()
