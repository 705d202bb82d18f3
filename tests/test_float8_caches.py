"""float8 caches: against the oracle, within the format's rounding of what is written."""

from __future__ import annotations

import functools
import os
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import bits, caches, quantize, sharding
from jax_tkg.hardware import TARGET_VARIABLE
from tests import cases

VALUES_PER_SHAPE = 10

SMALL = cases.Shape(L=2, d=16, S_ctx=20, S_max=24, cache_dtype="float8_e4m3")

SHAPES = {
    "e4m3fn": cases.Shape(
        L=1, d=16, dtype="bfloat16", cache_dtype="float8_e4m3fn", unified=True, positions="each"
    ),
    "some_layers": cases.Shape(L=2, d=16, cache_dtype="float8_e4m3", plain_caches=(0,)),
    "kinds": cases.Shape(
        L=3, d=16, layer_kinds=(0, 1, 0), kinds=((9, 12, True, "each"),), cache_dtype="float8_e4m3"
    ),
    "options": cases.Shape(
        L=1, d=16, cache_dtype="float8_e4m3", attention_softcap=2.0, options=("sinks",)
    ),
}


@functools.lru_cache(maxsize=4)
def _compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(jax_tkg.transformer_tkg, **options))


class CasesTest(parameterized.TestCase):
    """4 shapes x 2 implementations x 10 draws: 80 cases."""

    @parameterized.product(name=tuple(SHAPES), implementation=("reference", "cpu"))
    @pytest.mark.extended_except("3", "4")
    def test_against_the_oracle(self, name: str, implementation: str) -> None:
        shape = SHAPES[name]
        rng = np.random.default_rng(0)
        weights = cases.random_weights(shape, rng)
        stacked = not shape.plain_caches and implementation == "cpu"
        call = _compiled(**cases.options(shape), implementation=implementation)
        for _ in range(VALUES_PER_SHAPE):
            inputs = cases.random_inputs(shape, rng)
            inputs["position_ids"] = jax.tree.map(
                lambda ids: ids.astype(np.int32), inputs["position_ids"]
            )
            given = {**weights, **inputs}
            got = call(**(cases.stack(given, shape.layer_kinds) if stacked else given))
            hidden, K, V, written = cases.expected(shape, [weights], [inputs])
            cases.check(got, shape, inputs, hidden, K[0], V[0], written)


class FormsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        rng = np.random.default_rng(0)
        self.weights = cases.random_weights(SMALL, rng)
        self.inputs = {**cases.random_inputs(SMALL, rng), "position_ids": np.array([[3], [-1]])}
        self.options = cases.options(SMALL)

    def _call(self, **changes: Any) -> Any:
        given = {**self.weights, **self.inputs, **self.options, **changes}
        return jax_tkg.transformer_tkg(**given)

    def test_new_columns_are_attended_unrounded(self) -> None:
        """With a scale that rounds every new key and value to zero, hidden states stay."""
        nothing = {"mask_cache": np.zeros_like(self.inputs["mask_cache"])}
        tiny = [np.full((1, 1), 1e-8, np.float32)] * 2
        want = self._call(**nothing)
        got = self._call(**nothing, k_scales=tiny, v_scales=tiny)
        np.testing.assert_array_equal(got.hidden, want.hidden)
        written = np.asarray(got.K_caches[0])[0, :, :, 3].astype(np.float32)
        np.testing.assert_array_equal(written, np.zeros_like(written))

    def test_vmap_over_scales(self) -> None:
        members = np.array([[[[1.0]], [[2.0]]], [[[30.0]], [[4.0]]]], np.float32)

        def one(scales: Any) -> Any:
            return self._call(k_scales=list(scales)).hidden

        got = jax.jit(jax.vmap(one))(members)
        for index, own in enumerate(members):
            np.testing.assert_allclose(got[index], one(own), rtol=1e-5, atol=1e-5)

    def test_abstract_values_and_bits(self) -> None:
        given = {**self.weights, **self.inputs}
        call = functools.partial(jax_tkg.transformer_tkg, **self.options)
        out = jax.eval_shape(call, **given)
        self.assertEqual({cache.dtype for cache in out.K_caches}, {jnp.dtype("float8_e4m3")})
        held = {name: jax.tree.map(bits.as_bits, given[name]) for name in ("K_caches", "V_caches")}
        got = jax.jit(call)(**{**given, **held})
        want = jax.jit(call)(**given)
        np.testing.assert_array_equal(got.hidden, want.hidden)
        for mine, other in zip(got.V_caches, want.V_caches, strict=True):
            np.testing.assert_array_equal(mine.values(), other)

    def test_donated_bits_are_updated_in_place(self) -> None:
        held = [jax.tree.map(bits.as_bits, self.inputs[name]) for name in ("K_caches", "V_caches")]

        def step(K: Any, V: Any) -> Any:
            out = self._call(K_caches=K, V_caches=V)
            return out.K_caches, out.V_caches

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*jax.tree.map(jnp.asarray, held))
        text = lowered.compile().as_text()
        for leaf in jax.tree.leaves(held):
            shown = f"u8[{','.join(map(str, leaf.shape))}]"
            self.assertIn(shown, text)
            copies = [line for line in text.splitlines() if " copy(" in line]
            self.assertEmpty([line for line in copies if f"= {shown}" in line])

    def test_specs_replicate_scales(self) -> None:
        specs = sharding.partition_specs("tp", "dp", stacked=True)
        self.assertEqual(specs.k_scales, jax.sharding.PartitionSpec(None, None, None))

    def test_aws_kernel_refuses_them_by_name(self) -> None:
        with self.assertRaisesRegex(ValueError, "k_scales: expected None|NKILIB"):
            self._call(implementation="nkilib")

    def test_e4m3fn_needs_trainium3(self) -> None:
        kind = np.dtype(ml_dtypes.float8_e4m3fn)
        changes = {name: [c.astype(kind) for c in self.inputs[name]] for name in ("K_caches",)}
        with (
            mock.patch.dict(os.environ, {TARGET_VARIABLE: "trn2"}),
            self.assertRaisesRegex(ValueError, "K_caches: expected .*float8_e4m3.* needs trn3"),
        ):
            self._call(implementation="simulate", **changes)

    @parameterized.named_parameters(
        ("no_scale", {"k_scales": None}, ["k_scales:", "a scale for K_caches[0]", "float8_e4m3"]),
        (
            "one_missing",
            {"v_scales": [np.ones((1, 1), np.float32), None]},
            ["v_scales[1]:", "a scale for V_caches[1]", "None"],
        ),
        (
            "no_float8_cache",
            {"K_caches": [np.zeros((2, 2, 16, 24), np.float32)] * 2},
            ["k_scales[0]:", "expected None", "K_caches[0] has dtype float32"],
        ),
        (
            "other_float8",
            {"V_caches": [np.zeros((2, 2, 24, 16), ml_dtypes.float8_e5m2)] * 2},
            ["V_caches[0]:", "float32 or float8_e4m3 or float8_e4m3fn", "float8_e5m2"],
        ),
        (
            "scale_shape",
            {"k_scales": [np.ones((1, 16), np.float32)] * 2},
            ["k_scales[0]:", "[1, 1]", "[1, 16]"],
        ),
        (
            "scale_dtype",
            {"k_scales": [np.ones((1, 1), np.float16)] * 2},
            ["k_scales[0]:", "float32", "float16"],
        ),
    )
    def test_bad(self, changes: dict[str, Any], parts: list[str]) -> None:
        with self.assertRaises((TypeError, ValueError)) as caught:
            self._call(**changes)
        for part in parts:
            self.assertIn(part, str(caught.exception))


class HelpersTest(parameterized.TestCase):
    @parameterized.product(dtype=("float8_e4m3", "float8_e4m3fn"), stacked=(False, True))
    @pytest.mark.extended_except("1", "2")
    def test_scales_of_samples(self, dtype: str, stacked: bool) -> None:
        """The largest sample is the largest value; all are back within a part in sixteen."""
        rng = np.random.default_rng(0)
        sample = rng.standard_normal((2, 3, 2, 16, 8)).astype(np.float32)
        sample[1] *= 0.01
        samples = sample if stacked else list(sample)
        scales = quantize.cache_scales(samples, dtype)
        held = quantize.quantize_caches(samples, scales, dtype)
        largest = float(ml_dtypes.finfo(getattr(ml_dtypes, dtype)).max)
        for layer in range(2):
            stored = np.asarray(held[layer]).astype(np.float64)
            self.assertEqual(np.abs(stored).max(), largest)
            back = stored / np.asarray(scales[layer])[0, 0]
            rounding = np.abs(sample[layer]) / 16 + 2.0**-10 / np.asarray(scales[layer])[0, 0]
            np.testing.assert_array_less(np.abs(back - sample[layer]), rounding * 1.001)

    def test_margin_zeros_and_bits(self) -> None:
        samples = [np.full((1, 1, 4, 2), 3.0, np.float32), np.zeros((1, 1, 4, 2), np.float32)]
        first, second = quantize.cache_scales(samples, margin=2.0)
        self.assertEqual((float(first[0, 0]), float(second[0, 0])), (40.0, 1.0))
        K_caches, _ = caches.allocate_caches(2, B=1, k=1, d=4, S_max=2, dtype="float8_e4m3")
        self.assertEqual(K_caches[0].dtype, jnp.dtype("float8_e4m3"))
        held = [bits.as_bits(sample.astype(ml_dtypes.bfloat16)) for sample in samples]
        got = quantize.quantize_caches(held, [first, second])
        np.testing.assert_array_equal(got[0].values().astype(np.float32), 120.0)

    def test_bad(self) -> None:
        with self.assertRaisesRegex(TypeError, "dtype: expected float8_e4m3 or float8_e4m3fn"):
            quantize.cache_scales([np.ones(3)], "float8_e5m2")
        for margin in (0, np.inf, np.nan):
            message = f"margin: expected a positive finite number, got {margin}"
            with self.assertRaisesRegex(ValueError, message):
                quantize.cache_scales([np.ones(3)], margin=margin)
        for bad in (np.nan, np.inf):
            sample = np.array([1.0, bad])
            for samples, label in (
                ([np.ones(2), sample], r"samples\[1\]"),
                (np.stack([np.ones(2), sample]), "samples"),
            ):
                message = f"^{label}: expected finite numbers in float32, got {bad}"
                with self.assertRaisesRegex(ValueError, message):
                    quantize.cache_scales(samples)
        traced = jax.jit(quantize.cache_scales)(np.array([[1.0, 2.0], [1.0, np.nan]], np.float32))
        np.testing.assert_array_equal(traced[:, 0, 0], [120.0, np.nan])

    @parameterized.parameters((1e-37, 1.0), (2e-38, 1e-3), (2e38, 2.0), (3e38, 1e3))
    def test_scales_are_normal_numbers(self, largest: float, margin: float) -> None:
        sample = np.full((2, 2), largest, np.float32)
        ((scale,),) = np.asarray(quantize.cache_scales([sample], margin=margin)[0], np.float64)
        tiny = float(np.finfo(np.float32).tiny)
        wanted = np.clip(240 / margin / np.float64(sample[0, 0]), tiny, 1 / tiny)
        np.testing.assert_allclose(scale, wanted, rtol=1e-6)

    def test_scales_of_bits(self) -> None:
        samples = np.stack([np.full((4, 2), 3.0), np.full((4, 2), 0.5)]).astype(ml_dtypes.bfloat16)
        for given in (list(samples), samples):
            held = jax.tree.map(bits.as_bits, given)
            wanted = quantize.cache_scales(given)
            np.testing.assert_array_equal(quantize.cache_scales(held), wanted)


if __name__ == "__main__":
    absltest.main()
