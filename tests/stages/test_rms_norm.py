"""RMSNorm: the whole norm, and tokens' factors left to the products."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests.stages import drawing


def _expected(x: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
    x = drawing.wide(x)
    return x * drawing.wide(gamma)[0] / np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1] + eps)


@pytest.mark.thorough
class RmsNormTest(parameterized.TestCase):
    @parameterized.product(
        implementation=drawing.ONE_FORMULATION, dtype=(*drawing.DTYPES, "float16")
    )
    @pytest.mark.extended_except("0", "4", "5", "7")
    def test_drawn(self, implementation: str, dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"rms_norm {dtype}", 8)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data)
            rng = drawing.generator(data)
            # Activations far from 1, where a wrong epsilon or a missing root shows.
            x = drawing.uniform(rng, B, S, drawing.chunks(data))
            x = (x * 10.0 ** rng.uniform(-2, 1, (B, S, 1))).astype(drawing.kind(dtype))
            gamma = drawing.uniform(rng, 1, x.shape[-1], dtype=dtype)
            eps = data.draw(st.sampled_from((1e-6, 1e-5, 1e-3)))
            got = stages.rms_norm(x, gamma, eps)
            drawing.assert_close(got, _expected(x, gamma, eps), dtype)

        del run

    @parameterized.parameters(*drawing.KERNELS)
    def test_clamped(self, implementation: str) -> None:
        rng = np.random.default_rng(0)
        x, gamma = drawing.uniform(rng, 2, 3, 384), drawing.uniform(rng, 1, 384)
        got = drawing.IMPLEMENTATIONS[implementation].rms_norm(x, gamma, 1e-6, clamp_bound=0.5)
        want = np.clip(_expected(x, gamma, 1e-6), -0.5, 0.5)
        drawing.assert_close(got, want, "float32")

    @parameterized.parameters(*drawing.ONE_FORMULATION)
    def test_zeros(self, implementation: str) -> None:
        zeros = np.zeros((1, 2, 256), np.float32)
        got = drawing.IMPLEMENTATIONS[implementation].rms_norm(zeros, zeros[:, 0] + 1, 1e-6)
        np.testing.assert_array_equal(got, 0.0)


class HeadNormsTest(parameterized.TestCase):
    @parameterized.product(implementation=drawing.ONE_FORMULATION, dtype=drawing.DTYPES)
    @pytest.mark.extended_except("1", "2", "5")
    def test_drawn(self, implementation: str, dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"head_norms {dtype}", 8 if implementation in drawing.KERNELS else 3)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data, 128)
            q, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
            d = data.draw(st.sampled_from((2, 64, 96, 128, 192, 256)))
            rng = drawing.generator(data)
            heads = 10.0 ** rng.uniform(-2, 1, (B, S, q + k, 1)) * drawing.uniform(
                rng, B, S, q + k, d
            )
            heads = heads.astype(drawing.kind(dtype))
            given = data.draw(st.sampled_from(((True, True), (True, False), (False, True))))
            gains = [drawing.uniform(rng, 1, d, dtype=dtype) if one else None for one in given]
            got = stages.head_norms(heads, *gains, q, 1e-5)
            parts = (heads[:, :, :q], gains[0]), (heads[:, :, q:], gains[1])
            want = [
                drawing.wide(part) if gain is None else _expected(part, gain, 1e-5)
                for part, gain in parts
            ]
            drawing.assert_close(got, np.concatenate(want, axis=2), dtype)

        del run


if __name__ == "__main__":
    absltest.main()
