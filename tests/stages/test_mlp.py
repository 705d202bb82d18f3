"""The gated MLP: each weight quantized or not, inputs clamped where the weight is float8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases
from tests.stages import drawing

ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu2": lambda x: np.where(x > 0, x, 0) ** 2,
}

FLOAT8 = (None, "float8_e4m3", "float8_e5m2")


def _weights(
    rng: np.random.Generator,
    H: int,
    I: int,  # noqa: E741
    dtype: str,
    kinds: Sequence[str | None],
    rows: int,
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Gate, up and down, each in a float8 dtype or not, and their scales of so many rows."""
    weights, scales = [], []
    for shape, kind in zip(((H, I), (H, I), (I, H)), kinds, strict=True):
        weight, scale = cases.projection(rng, *shape), None
        if kind is None:
            weight = weight.astype(drawing.kind(dtype))
        else:
            # Scales of columns that differ.
            weight *= 10.0 ** rng.uniform(-1, 1, shape[1]).astype(np.float32)
            weight, scale = cases.quantize(weight, kind, rows)
        weights.append(weight)
        scales.append(scale)
    return weights, scales


def _expected(
    x: np.ndarray,
    weights: list[np.ndarray],
    scales: list[np.ndarray | None],
    clamp_bound: float,
    activation: str = "silu",
) -> np.ndarray:
    def product(rows: np.ndarray, index: int) -> np.ndarray:
        scale = scales[index]
        if scale is None:
            return rows @ drawing.wide(weights[index])
        if clamp_bound > 0:
            rows = rows.clip(-clamp_bound, clamp_bound)
        return (rows @ drawing.wide(weights[index])) * drawing.wide(scale)[0]

    x = drawing.wide(x)
    gate, up = product(x, 0), product(x, 1)
    return product(ACTIVATIONS[activation](gate) * up, 2)


@pytest.mark.thorough
class MlpTest(parameterized.TestCase):
    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), dtype=drawing.DTYPES, clamp=(0.0, 0.5)
    )
    @pytest.mark.extended_except("1", "2", "4", "7", "8", "11", "13", "14")
    def test_drawn(self, implementation: str, dtype: str, clamp: float) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"mlp {dtype} {clamp}", 5)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data, 32)
            H, I = drawing.chunks(data), drawing.chunks(data)  # noqa: E741
            rng = drawing.generator(data)
            x = drawing.uniform(rng, B, S, H, dtype=dtype)
            kinds = [data.draw(st.sampled_from(FLOAT8)) for _ in range(3)]
            held = data.draw(st.sampled_from((1, 128)))
            weights, scales = _weights(rng, H, I, dtype, kinds, held)
            activation = data.draw(st.sampled_from(tuple(ACTIVATIONS)))
            got = stages.mlp(x, weights, scales, clamp, activation)
            drawing.assert_close(got, _expected(x, weights, scales, clamp, activation), dtype)

        del run

    @parameterized.product(
        implementation=drawing.KERNELS, tokens=((8, 8), (16, 8)), quantized=FLOAT8[:2]
    )
    @pytest.mark.extended_except("1", "2", "4", "7")
    def test_more_features_than_psum_sums_at_once(
        self, implementation: str, tokens: tuple[int, int], quantized: str | None
    ) -> None:
        rng = np.random.default_rng(0)
        dtype = "float32" if quantized is None else "bfloat16"
        x = drawing.uniform(rng, *tokens, 128, dtype=dtype)
        weights, scales = _weights(rng, 128, 4224, dtype, [quantized] * 3, 1)
        got = drawing.IMPLEMENTATIONS[implementation].mlp(x, weights, scales, 0.5)
        drawing.assert_close(got, _expected(x, weights, scales, 0.5), dtype)

    @parameterized.product(
        implementation=drawing.KERNELS,
        sizes=((3, 256, 512), (16, 384, 768), (2, 2048, 512), (5, 128, 1536)),
        quantized=FLOAT8[:2],
    )
    def test_two_cores_divide_the_rows_of_w_down(
        self, implementation: str, sizes: tuple[int, int, int], quantized: str | None
    ) -> None:
        """Rows in one and several groups, of one chunk and more; each core scales its features."""
        B, H, I = sizes  # noqa: E741
        rng = np.random.default_rng(1)
        x = drawing.uniform(rng, B, 1, H, dtype="bfloat16")
        weights, scales = _weights(rng, H, I, "bfloat16", [quantized] * 3, 1)
        got = drawing.IMPLEMENTATIONS[implementation].mlp(x, weights, scales, 0.0)
        drawing.assert_close(got, _expected(x, weights, scales, 0.0), "bfloat16")


if __name__ == "__main__":
    absltest.main()
