"""Activations as float8 terms, and products of them, against the values and against single rows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.kernels import double_rows, limits
from jax_tkg.kernels.double_rows import split
from jax_tkg.kernels.feature_order import even_blocks
from jax_tkg.kernels.sizes import Context
from tests import cases
from tests.kernels import launch
from tests.stages import drawing, small_kernels
from tests.stages.kernel_stages import KernelStages

MOST_TOKENS = 63
"""Two terms of each are 126 columns, which take less time than two products of 64."""


@contextlib.contextmanager
def _counted() -> Iterator[dict[str, int]]:
    """Counts the matrix products by their mode, of all cores."""
    counts = {"none": 0, "double_row": 0}
    real = small_kernels.nisa.nc_matmul
    none = small_kernels.nisa.matmul_perf_mode.none

    def counted(*args: Any, perf_mode: Any = none, **kwargs: Any) -> Any:
        counts[perf_mode.name] += 1
        return real(*args, perf_mode=perf_mode, **kwargs)

    with mock.patch.object(small_kernels.nisa, "nc_matmul", counted):
        yield counts


def _single_rows() -> Any:
    return mock.patch.object(limits, "FREE_COLUMNS", 0)


def _small_products() -> Any:
    """In double rows, as large ones are."""
    return mock.patch.object(double_rows, "LEAST_SAVED_CYCLES", 1)


def _magnitudes(rng: np.random.Generator, tokens: int, features: int) -> np.ndarray:
    """[tokens, features]: normal ones, one 1000 times the rest, zeros, tiny and large ones."""
    x = rng.standard_normal((tokens, features)).astype(np.float32)
    x[0, 3] = 1000
    if tokens > 1:
        x[1] = 0
    if tokens > 2:
        x[2] *= 2.0**-100
    if tokens > 3:
        x[3] *= 2.0**100
    if tokens > 4:
        x[4] *= 2.0 ** rng.integers(-12, 1, features)
    return x.astype(jnp.dtype("bfloat16"))


class SplitTest(parameterized.TestCase):
    @parameterized.product(
        weight=("float8_e4m3", "float8_e4m3fn"),
        size=((128, 3, 5), (96, 2, MOST_TOKENS), (2, 7, 1)),
    )
    def test_terms_are_the_activation(self, weight: str, size: tuple[int, int, int]) -> None:
        width, chunks, tokens = size
        x = _magnitudes(np.random.default_rng(0), tokens, width * chunks)

        def body(context: Context, x: Any) -> Any:
            terms = split(small_kernels.load(x), context, weight)
            self.assertEqual(terms.tile.dtype, weight)
            # What the moving operand of two chunks has from row to row.
            self.assertEqual(terms.tile.shape[2] % 16, 0)
            scale = terms.scale
            factor, undo = scale.factor, scale.undo(None)
            columns = terms.moving(0, chunks) if chunks > 1 else terms.moving(0, 1)
            copied = small_kernels.nl.ndarray(columns.shape, dtype=columns.dtype, buffer="sbuf")
            small_kernels.nisa.tensor_copy(dst=copied, src=columns)
            return tuple(small_kernels.store(each, context) for each in (copied, factor, undo))

        given = {"x": small_kernels.turned(x, width)}
        numbers = {"B": tokens, "H": 128, "dtype": "bfloat16"}
        target = small_kernels.TARGETS.get(weight, "trn2")
        ((tile, factor, undo),) = KernelStages(1).run(body, [given], target=target, **numbers)
        factor, undo = (small_kernels.same(small_kernels.same(part)) for part in (factor, undo))
        np.testing.assert_array_equal(np.frexp(factor)[0], 0.5)
        np.testing.assert_array_equal(factor * undo, 1)
        terms = drawing.wide(tile[0]).reshape(width, chunks, 2, tokens)
        self.assertLessEqual(np.abs(terms).max(), 128)
        summed = (32 * terms[:, :, 0] + terms[:, :, 1]).transpose(2, 1, 0).reshape(tokens, -1)
        wanted = drawing.wide(x) * factor[:, None]
        largest = np.abs(wanted).max(axis=1)
        largest = largest[largest > 0]
        self.assertTrue(((largest >= 2.0**10) & (largest < 2.0**12)).all())
        np.testing.assert_allclose(summed, wanted, rtol=0, atol=2.0**-10)
        large = np.abs(wanted) >= 2.0**-2
        np.testing.assert_array_equal(summed[large], wanted[large])

    @parameterized.parameters(np.inf, np.nan)
    def test_what_is_not_finite_stays_so(self, value: float) -> None:
        x = np.ones((1, 2, 256), jnp.dtype("bfloat16"))
        x[0, 1, 5] = value
        weight, scale = cases.quantize(np.ones((256, 128), np.float32), "float8_e4m3", 1)
        with _small_products():
            got = KernelStages(1).linear(x, weight, scale)
        np.testing.assert_allclose(got[0, 0], 256, rtol=1e-6)
        self.assertFalse(np.isfinite(got[0, 1]).any())


class ProductTest(parameterized.TestCase):
    @parameterized.product(
        cores=(1, 2),
        # Tokens, chunks of 128 features, columns.
        sizes=((1, 5, 256), (5, 4, 640), (32, 4, 1280), (MOST_TOKENS, 3, 384), (64, 2, 128)),
    )
    def test_as_in_single_rows(self, cores: int, sizes: tuple[int, int, int]) -> None:
        tokens, chunks, columns = sizes
        stages = KernelStages(cores)
        rng = np.random.default_rng(tokens)
        for quantized in ("float8_e4m3", "float8_e5m2"):
            x = _magnitudes(rng, tokens, 128 * chunks)[None]
            wide = cases.projection(rng, 128 * chunks, columns)
            weight, scale = cases.quantize(wide, quantized, 1)
            exact = drawing.wide(x[0]) @ (drawing.wide(weight) * drawing.wide(scale))
            for run in (stages.linear, stages.linear_of_shares):
                with _counted() as counts, _small_products():
                    got = run(x, weight, scale=scale)
                with _single_rows():
                    wanted = run(x, weight, scale=scale)
                with self.subTest(f"{quantized} {run.__name__}"):
                    self.assertEqual(counts["double_row"] > 0, tokens <= MOST_TOKENS)
                    largest = np.abs(exact).max(axis=-1, keepdims=True)
                    for each in (got, wanted):
                        error = np.abs(each - exact) / np.maximum(largest, 1e-38)
                        self.assertLess(error.max(), 4e-6)

    def test_other_kinds(self) -> None:
        """float8_e4m3fn, whose terms are of that kind; float16, which two terms do not hold."""
        rng = np.random.default_rng(0)
        wide = cases.projection(rng, 512, 256)
        for dtype, quantized, double in (
            ("bfloat16", "float8_e4m3fn", True),
            ("float16", "float8_e4m3", False),
        ):
            x = drawing.uniform(rng, 1, 5, 512, dtype=dtype)
            weight, scale = cases.quantize(wide, quantized, 1)
            exact = drawing.wide(x) @ (drawing.wide(weight) * drawing.wide(scale))
            with _counted() as counts, _small_products():
                got = KernelStages(1).linear(x, weight, scale=scale)
            with self.subTest(quantized):
                self.assertEqual(counts["double_row"] > 0, double)
                self.assertLess(np.abs(got - exact).max(), 4e-6 * np.abs(exact).max())

    @parameterized.product(cores=(1, 2), clamp=(0.0, 0.5))
    def test_mlp(self, cores: int, clamp: float) -> None:
        """Odd chunks of the residual stream and of the hidden features; one is an outlier."""
        stages = KernelStages(cores)
        rng = np.random.default_rng(1)
        H, I = 384, 640  # noqa: E741
        x = drawing.uniform(rng, 1, 7, H, dtype="bfloat16")
        weights, scales = [], []
        for shape in ((H, I), (H, I), (I, H)):
            weight = cases.projection(rng, *shape)
            if shape == (H, I):
                weight[:, 77] *= 1000
            quantized, scale = cases.quantize(weight, "float8_e4m3", 1)
            weights.append(quantized)
            scales.append(scale)
        with _counted() as counts, _small_products():
            got = stages.mlp(x, weights, scales, clamp)
        with _single_rows():
            wanted = stages.mlp(x, weights, scales, clamp)
        # Hidden features are rounded to bfloat16, perhaps to the other neighbor.
        self.assertLess(np.abs(got - wanted).max(), 1e-3 * np.abs(wanted).max())
        own = -(-3 // cores)
        halves = [3] if cores == 1 else [2, 1]
        pairs = sum(2 * 5 * (half // 2) + own * 2 for half in halves)
        self.assertEqual(counts["double_row"], pairs)


class KernelTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("two_cores", {"cores": 2, "ranks": 2, "on_chip": True}),
        ("stacked", {"cores": 1, "stacked": True}),
    )
    def test_layers(self, how: dict[str, Any]) -> None:
        """Whole layers against the oracle, of which each core holds an odd number of chunks."""
        shape = cases.Shape(
            B=3, S=2, H=768, I=384, dtype="bfloat16", quantized=(("float8_e4m3",) * 3,) * 2, L=2
        )
        with _counted() as counts, _small_products():
            launch.check(shape, **how)
        self.assertGreater(counts["double_row"], 0)

    def test_experts(self) -> None:
        shape = dataclasses.replace(
            cases.EXPERTS,
            H=512,
            I_expert=256,
            L=1,
            dtype="bfloat16",
            quantized=(("float8_e4m3", "float8_e5m2", "float8_e4m3"),),
        )
        with _counted() as counts, _small_products():
            launch.check(shape, cores=2)
        self.assertGreater(counts["double_row"], 0)

    def test_large_products_alone_are_in_double_rows(self) -> None:
        x = drawing.uniform(np.random.default_rng(0), 1, 1, 1024, dtype="bfloat16")
        for columns, pairs in ((2048, 4 * 16), (1920, 0)):
            weight = np.zeros((1024, columns), jnp.dtype("float8_e4m3"))
            scale = np.ones((1, columns), np.float32)
            with _counted() as counts:
                KernelStages(1).linear_of_shares(x, weight, scale=scale)
            with self.subTest(columns):
                self.assertEqual(counts["double_row"], pairs)


class BlocksTest(absltest.TestCase):
    def test_blocks_of_pairs(self) -> None:
        self.assertEqual(even_blocks(0, 7, 5, 2), [(0, 4), (4, 3)])
        self.assertEqual(even_blocks(3, 14, 4, 2), [(3, 2), (5, 4), (9, 4), (13, 4)])
        self.assertEqual(even_blocks(0, 3, 1, 2), [(0, 1), (1, 1), (2, 1)])

    def test_two_rows_fit_in_a_buffer(self) -> None:
        tiles = limits.tiles_of_a_product(3, 128, 2)
        self.assertEqual(2 * tiles * 128, limits.RING_SLOT_BYTES)


if __name__ == "__main__":
    absltest.main()
