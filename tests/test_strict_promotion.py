"""Under JAX's strictest promotion rules: no rank and no dtype is ever promoted implicitly."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import bits, caches, kinds, masks, quantize, rope, weights
from tests import cases

# Two KV heads of one sequence are attended together, those of eight sequences in turns.
SEVERAL_TURNS = cases.Shape(B=8, S=1, S_ctx=1000, S_max=1030, dtype="bfloat16")
SHAPES = {
    "each_position": cases.Shape(S=3, positions="each"),
    "no_update": cases.Shape(positions="none"),
    "bfloat16": cases.Shape(dtype="bfloat16", unified=True),
    "float16_with_options": cases.Shape(dtype="float16", **cases.EVERY_OPTION),
    "float8": cases.Shape(quantized=(("float8_e4m3",) * 3,) * 2, clamp_bound=0.5),
    "float8_one_row": cases.Shape(
        quantized=(("float8_e4m3fn",) * 3,) * 2, scale_rows=1, dtype="bfloat16"
    ),
    "several_turns": SEVERAL_TURNS,
    "lengths": cases.Shape(S=2, context="lengths"),
    "ranges": cases.Shape(S=2, context="ranges", unified=True),
    "blocks": cases.Shape(S=2, context="ranges", block_len=4, S_ctx=20, S_max=20),
    "experts": cases.EXPERTS,
}
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")


@pytest.mark.thorough
class StrictPromotionTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        for option, value in (
            ("jax_numpy_rank_promotion", "raise"),
            ("jax_numpy_dtype_promotion", "strict"),
        ):
            self.addCleanup(jax.config.update, option, getattr(jax.config, option))
            jax.config.update(option, value)

    def _check(
        self, shape: cases.Shape, stacked: bool = False, held: bool = False, **options: Any
    ) -> None:
        rng = np.random.default_rng(0)
        given, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        arguments = {**given, **inputs}
        if stacked:
            arguments = cases.stack(arguments)
        if held:
            arguments |= cases.held_as_bits(arguments)
        run = functools.partial(jax_tkg.transformer_tkg, **cases.options(shape), **options)
        got = bits.without_bits(jax.jit(run)(**arguments))
        hidden, K, V, written = cases.expected(shape, [given], [inputs])
        cases.check(got, shape, inputs, hidden, K[0], V[0], written)

    @parameterized.product(shape=tuple(SHAPES), stacked=(False, True))
    @pytest.mark.extended_except("1", "6", "9", "12", "16", "18", "20")
    def test_call(self, shape: str, stacked: bool) -> None:
        self._check(SHAPES[shape], stacked)

    @parameterized.product(shape=("bfloat16", "float8", "several_turns"), stacked=(False, True))
    @pytest.mark.extended_except("1", "2", "4")
    def test_bits(self, shape: str, stacked: bool) -> None:
        self._check(SHAPES[shape], stacked, held=True)

    @parameterized.parameters("float8", "bfloat16", "each_position")
    def test_simulated(self, shape: str) -> None:
        self._check(SHAPES[shape], implementation="simulate")

    @parameterized.product(shape=("each_position", "float8_one_row"), stacked=(False, True))
    @pytest.mark.extended_except("0", "3")
    def test_reference(self, shape: str, stacked: bool) -> None:
        self._check(SHAPES[shape], stacked, implementation="reference")

    @pytest.mark.extended
    def test_gradient_of_the_reference(self) -> None:
        shape = cases.Shape(d=4, S_ctx=6, S_max=8)
        rng = np.random.default_rng(0)
        arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}

        def loss(X: Any) -> jax.Array:
            out = jax_tkg.reference.transformer_tkg(**{**arguments, "X": X}, **OPTIONS)
            return out.hidden.sum() + sum(cache.sum() for cache in out.V_caches)

        self.assertTrue(np.isfinite(jax.grad(loss)(arguments["X"])).all())

    @pytest.mark.extended
    def test_vmap(self) -> None:
        shape = cases.Shape()
        rng = np.random.default_rng(0)
        given = cases.random_weights(shape, rng)
        inputs = [cases.random_inputs(shape, rng) for _ in range(2)]
        for one in inputs:
            one["position_ids"] = one["position_ids"].astype(np.int32)
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *inputs)
        got = jax.vmap(lambda one: jax_tkg.transformer_tkg(**given, **one, **OPTIONS))(batch)
        for index, one in enumerate(inputs):
            hidden, K, V, written = cases.expected(shape, [given], [one])
            mine = jax.tree.map(lambda array: array[index], got)  # noqa: B023
            cases.check(mine, shape, one, hidden, K[0], V[0], written)

    @parameterized.parameters(*INTEGERS)
    @pytest.mark.extended_except("2", "4")
    def test_tables_and_masks(self, dtype: str) -> None:
        """Lengths and positions of any integer dtype, beyond whose range the sizes may be."""
        lengths = np.array([0, 3, 120], dtype)
        cos, sin = rope.rope_tables(jnp.asarray(lengths)[:, None], 8)
        angles = (
            np.asarray(lengths, np.float64)[None, :, None] * rope.rope_frequencies(8)[:, None, None]
        )
        np.testing.assert_allclose(cos, np.cos(angles), atol=1e-5)
        np.testing.assert_allclose(sin, np.sin(angles), atol=1e-5)
        prior = masks.cache_mask(jnp.asarray(lengths), 300, 2, 3)
        active = masks.active_mask(3, 3, 2, jnp.asarray(lengths))
        unified = masks.unified_mask(jnp.asarray(lengths), 300, 2, 3)
        prior, active, unified = map(np.asarray, (prior, active, unified))
        for slot, b in itertools.product(range(300), range(3)):
            self.assertEqual(bool(prior[slot, b, 1, 2]), slot < int(lengths[b]))
            if slot < 297:
                self.assertEqual(bool(unified[slot, b, 1, 2]), slot < int(lengths[b]))
        for key, b, query in itertools.product(range(3), repeat=3):
            self.assertEqual(bool(active[key, b, 0, query]), key <= query < int(lengths[b]))
            self.assertEqual(bool(unified[297 + key, b, 0, query]), key <= query)

    @parameterized.parameters("int32", "uint8")
    def test_windows_rings_and_trees(self, dtype: str) -> None:
        """Judged in `tests.test_masks` and others; here that nothing is promoted."""
        lengths, new = jnp.asarray(np.array([3, 9], dtype)), jnp.asarray(np.array([2, 1], dtype))
        parents = jnp.asarray([[-1, 0, 0]] * 2)
        frequencies = rope.rope_frequencies(8)
        ends, starts = masks.window_ranges(lengths, 4, 3, 8)
        mask = masks.context_mask(ends, 8, 2, 3, starts)
        np.testing.assert_array_equal(mask, masks.window_mask(lengths, 4, 8, 2, 3))
        self.assertEqual(masks.tree_mask(parents, 2).shape, (3, 2, 2, 3))
        kind = kinds.Kind(8, frequencies, window=4)
        for made in (
            kinds.step_inputs([kind], lengths, S_tkg=3, q=2, new_lengths=new),
            kinds.prefill_inputs([kind], lengths, S=3, new_lengths=new),
            kinds.decode_inputs(lengths, frequencies, S_tkg=3, new_lengths=new, window=4, q=2),
        ):
            self.assertIn("position_ids", made)
        K, V = caches.allocate_caches(1, B=2, k=1, d=8, S_max=8, dtype="bfloat16")
        filled = caches.fill_ring(K[0], jnp.ones((2, 1, 8, 12), "bfloat16"), lengths, -1)
        self.assertEqual(filled.dtype, K[0].dtype)
        kept = jnp.asarray(np.array([[0, 2], [1, -1]], "int8"))
        moved = caches.compact(K, V, lengths, kept, rings=True)
        self.assertEqual(jax.tree.structure(moved), jax.tree.structure((K, V)))

    def test_the_largest_unsigned_length(self) -> None:
        lengths = jnp.asarray(np.array([2**32 - 1], np.uint32))
        self.assertTrue(masks.cache_mask(lengths, 4, 1, 1).all())

    @parameterized.parameters("float32", "bfloat16")
    def test_quantize_and_pack(self, dtype: str) -> None:
        weight = jnp.ones((128, 256), dtype)
        quantized, scale = quantize.quantize_float8(weight)
        wide = quantize.dequantize_float8(quantized, scale)
        np.testing.assert_allclose(wide, 1.0, rtol=1e-6)
        self.assertEqual(weights.pack_qkv(weight, weight, weight, 64, 2).shape, (128, 768))


OPTIONS = cases.options(cases.Shape())


if __name__ == "__main__":
    absltest.main()
