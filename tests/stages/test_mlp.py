"""The SwiGLU MLP: each weight quantized or not, inputs clamped where the weight is float8."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases
from tests.stages import drawing

FLOAT8 = (None, "float8_e4m3", "float8_e5m2")


def _expected(
    x: np.ndarray,
    weights: list[np.ndarray],
    scales: list[np.ndarray | None],
    clamp_bound: float,
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
    return product(gate / (1 + np.exp(-gate)) * up, 2)


class MlpTest(parameterized.TestCase):
    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), dtype=drawing.DTYPES, clamp=(0.0, 0.5)
    )
    def test_drawn(self, implementation: str, dtype: str, clamp: float) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"mlp {dtype} {clamp}", 5)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data, 32)
            H, I = drawing.chunks(data), drawing.chunks(data)  # noqa: E741
            rng = drawing.generator(data)
            x = drawing.uniform(rng, B, S, H, dtype=dtype)
            weights, scales = [], []
            for rows, columns in ((H, I), (H, I), (I, H)):
                weight, scale = cases.projection(rng, rows, columns), None
                kind = data.draw(st.sampled_from(FLOAT8))
                if kind is None:
                    weight = weight.astype(drawing.kind(dtype))
                else:
                    held = data.draw(st.sampled_from((1, 128)))
                    weight, scale = cases.quantize(weight, kind, held)
                weights.append(weight)
                scales.append(scale)
            got = stages.mlp(x, weights, scales, clamp)
            drawing.assert_close(got, _expected(x, weights, scales, clamp), dtype)

        del run

    @parameterized.product(implementation=drawing.KERNELS, tokens=((8, 8), (16, 8)))
    def test_more_features_than_psum_sums_at_once(
        self, implementation: str, tokens: tuple[int, int]
    ) -> None:
        rng = np.random.default_rng(0)
        x = drawing.uniform(rng, *tokens, 128)
        weights = [cases.projection(rng, *shape) for shape in ((128, 4224),) * 2 + ((4224, 128),)]
        got = drawing.IMPLEMENTATIONS[implementation].mlp(x, weights, [None] * 3, 0.0)
        drawing.assert_close(got, _expected(x, weights, [None] * 3, 0.0), "float32")


if __name__ == "__main__":
    absltest.main()
