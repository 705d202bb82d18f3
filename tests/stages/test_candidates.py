"""Final norm, head and the largest logits, each form against float64, to the last tie."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import nki.language as nl
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.call.arguments import Parameters
from jax_tkg.kernels import divisions, limits
from jax_tkg.kernels.candidates import candidates as kernel_candidates
from jax_tkg.kernels.layer_tensor import LayerTensor
from jax_tkg.reference import candidates as reference
from tests.stages.kernel_stages import KernelStages
from tests.stages.small_kernels import load_share, same, store

EPS = 1e-5
DTYPES = {"float32": nl.float32, "bfloat16": nl.bfloat16}


def _reference(x: np.ndarray, gamma: np.ndarray, W: np.ndarray, **options: Any) -> Any:
    parameters = Parameters(1, eps=EPS, **options)
    logits, columns = reference.candidates(
        jnp.asarray(x)[None], jnp.asarray(gamma), jnp.asarray(W), parameters
    )
    return np.asarray(logits[0]), np.asarray(columns[0])


def _kernel(cores: int, x: np.ndarray, gamma: np.ndarray, W: np.ndarray, **options: Any) -> Any:
    T, H = x.shape
    parameters = Parameters(1, eps=EPS, **options)

    def body(context: Any, x: Any, gamma: Any, W: Any) -> Any:
        ((logits, columns),) = kernel_candidates(
            load_share(x, context),
            LayerTensor(gamma),
            LayerTensor(W),
            parameters.candidates_per_token,
            parameters.logit_scale,
            parameters.logit_softcap,
            context,
        )
        return store(logits, context), store(columns, context)

    stages = KernelStages(cores)
    given = {"x": stages.residual(x), "gamma": gamma, "W": W}
    dtype = DTYPES[x.dtype.name]
    (result,) = stages.run(body, [given], B=T, H=H, eps=EPS, dtype=dtype)
    return tuple(map(same, result))


def _both(cores: int) -> Any:
    if cores == 0:
        return _reference
    return lambda *arrays, **options: _kernel(cores, *arrays, **options)


def _integers(rng: np.random.Generator, T: int, H: int, V: int) -> Any:
    """Inputs whose logits, but for a factor of each token, are small integers: with many ties."""
    x = rng.integers(-2, 3, (T, H)).astype(np.float32)
    x[:, 0] = 1
    W = np.zeros((H, V), np.float32)
    W[rng.integers(0, H, V), np.arange(V)] = rng.integers(1, 3, V)
    return x, np.ones((1, H), np.float32), W


class CandidatesTest(parameterized.TestCase):
    # 0 cores: the reference.
    @parameterized.product(cores=(0, 1, 2), sizes=((3, 128, 5), (1, 384, 300), (20, 256, 1100)))
    @pytest.mark.extended_except("1", "3", "8")
    def test_ties_have_the_lowest_columns(self, cores: int, sizes: tuple[int, int, int]) -> None:
        T, H, V = sizes
        rng = np.random.default_rng(V)
        x, gamma, W = _integers(rng, T, H, V)
        integers = x.astype(np.float64) @ W
        count = min(V, 11)
        logits, columns = _both(cores)(x, gamma, W, candidates_per_token=count)
        self.assertEqual((logits.dtype, columns.dtype), (np.float32, np.int32))
        order = np.argsort(-integers, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(columns, order)
        norm = np.sqrt(np.square(x.astype(np.float64)).mean(axis=1, keepdims=True) + EPS)
        want = np.take_along_axis(integers / norm, order, 1)
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)

    @parameterized.product(cores=(0, 1, 2), dtype=("float32", "bfloat16"))
    @pytest.mark.extended_except("1", "2", "4")
    def test_against_float64(self, cores: int, dtype: str) -> None:
        """Several segments of columns on a core, the last of which is no whole tiles."""
        T, H, V = 2, 256, 8400 if cores == 1 else 16900
        rng = np.random.default_rng(1)
        kind = jnp.dtype(dtype)
        x = rng.uniform(-1, 1, (T, H)).astype(kind)
        gamma = rng.uniform(0.5, 1.5, (1, H)).astype(kind)
        W = (rng.standard_normal((H, V)) / np.sqrt(H)).astype(kind)
        wide = [array.astype(np.float64) for array in (x, gamma, W)]
        norm = np.sqrt(np.square(wide[0]).mean(axis=1, keepdims=True) + EPS)
        exact = 3 * (wide[0] / norm * wide[1] @ wide[2])
        exact = 2 * np.tanh(exact / 2)
        options = {"candidates_per_token": 3, "logit_scale": 3.0, "logit_softcap": 2.0}
        logits, columns = _both(cores)(x, gamma, W, **options)
        error = 1e-5 if dtype == "float32" else 0.03
        np.testing.assert_allclose(np.take_along_axis(exact, columns, 1), logits, atol=error)
        np.testing.assert_allclose(-np.sort(-exact, axis=1)[:, :3], logits, atol=error)

    @parameterized.parameters(0, 1, 2)
    def test_nan_counts_as_the_lowest_number(self, cores: int) -> None:
        x = np.ones((2, 128), np.float32)
        x[1, 5] = np.nan
        W = np.full((128, 9), np.nan, np.float32)
        W[:, 4] = -1 / 128
        logits, columns = _both(cores)(x, np.ones((1, 128), np.float32), W, candidates_per_token=9)
        self.assertEqual(columns.tolist(), [[4, 0, 1, 2, 3, 5, 6, 7, 8], list(range(9))])
        np.testing.assert_allclose(logits[0, 0], -1, rtol=1e-4)
        np.testing.assert_array_equal(logits[0, 1:], np.float32(-3e38))
        np.testing.assert_array_equal(logits[1], np.float32(-3e38))

    @parameterized.parameters(0, 1, 2)
    def test_columns_of_nan_are_padding(self, cores: int) -> None:
        """They come last, where all logits are negative, or the lowest, too."""
        rng = np.random.default_rng(0)
        x = rng.uniform(0.5, 1, (3, 128)).astype(np.float32)
        for V in (10, 300):
            order = rng.permutation(V)
            for sizes, want in ((order + 1.0, np.argsort(order)), (np.full(V, 1e38), range(V))):
                W = np.full((128, V + 3), np.nan, np.float32)
                W[:, :V] = -sizes
                count = min(V, 12)
                with np.errstate(over="ignore"):
                    logits, columns = _both(cores)(
                        x, np.ones((1, 128), np.float32), W, candidates_per_token=count
                    )
                np.testing.assert_array_equal(columns, [list(want)[:count]] * 3)
                self.assertTrue((logits < 0).all())


class SegmentsTest(parameterized.TestCase):
    def test_constants_agree(self) -> None:
        self.assertEqual(limits.LOWEST_LOGIT, reference.LOWEST)
        self.assertLess(np.float32(limits.NO_LOGIT), np.float32(limits.LOWEST_LOGIT))

    @parameterized.parameters(1, 2)
    def test_every_column_once(self, cores: int) -> None:
        for V in (2, 7, 127, 128, 129, 255, 256, 257, 4096, 4100, 9000, 16032, 128256):
            seen: list[int] = []
            for core in range(cores):
                for column, tiles, width, skipped in divisions.head_segments(
                    *divisions.head_columns(V, cores, core)
                ):
                    self.assertLessEqual(tiles, limits.SEGMENT_TILES + 1)
                    seen += range(column + skipped, column + tiles * width)
            self.assertEqual(seen, list(range(V)), V)


if __name__ == "__main__":
    absltest.main()
