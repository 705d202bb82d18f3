"""Rotary position embedding of contiguous halves, for any even d."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests.stages import drawing


def _expected(heads: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Each pair (x[i], x[i + d/2]) as a complex number, turned by its angle."""
    half = heads.shape[-1] // 2
    wide = drawing.wide(heads)
    turn = (drawing.wide(cos) + 1j * drawing.wide(sin)).transpose(1, 2, 0)[:, :, None, :]
    pairs = (wide[..., :half] + 1j * wide[..., half:]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.thorough
class RopeTest(parameterized.TestCase):
    @parameterized.product(implementation=tuple(drawing.IMPLEMENTATIONS), dtype=drawing.DTYPES)
    @pytest.mark.extended_except("1", "2", "5", "6")
    def test_drawn(self, implementation: str, dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"rope {dtype}", 10)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data)
            count = data.draw(st.integers(1, 12))
            d = drawing.head_size(data)
            rng = drawing.generator(data)
            heads = drawing.uniform(rng, B, S, count, d, dtype=dtype)
            angles = rng.uniform(-np.pi, np.pi, (d // 2, B, S)).astype(np.float32)
            # Tables that are no rotation: each entry must meet its own element.
            cos, sin = 1.5 * np.cos(angles), 0.5 * np.sin(angles)
            got = stages.rope(heads, cos, sin)
            drawing.assert_close(got, _expected(heads, cos, sin), dtype)

        del run

    @parameterized.parameters("float32", "bfloat16", "float16")
    def test_of_normalized_heads(self, dtype: str) -> None:
        """The kernel rotates them before it divides by their norm."""

        @drawing.examples(f"rope of normalized heads {dtype}", 10)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data)
            q, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
            d = drawing.head_size(data)
            rng = drawing.generator(data)
            heads = drawing.uniform(rng, B, S, q + k, d, dtype=dtype)
            gains = [drawing.uniform(rng, 1, d, dtype=dtype) for _ in range(2)]
            normalized = np.asarray(data.draw(st.sampled_from(((1, 1), (1, 0), (0, 1)))), bool)
            angles = rng.uniform(-np.pi, np.pi, (d // 2, B, S)).astype(np.float32)
            cos, sin = np.cos(angles), np.sin(angles)
            given = [gain if used else None for gain, used in zip(gains, normalized, strict=True)]
            got = drawing.IMPLEMENTATIONS["kernel"].rope(heads, cos, sin, given, q, 1e-5)
            wide = drawing.wide(heads)
            norms = np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-5)
            of_head = np.repeat(normalized, (q, k))[:, None]
            by_head = np.repeat(drawing.wide(np.concatenate(gains)), (q, k), axis=0)
            wide = np.where(of_head, wide / norms * by_head, wide)
            drawing.assert_close(got, _expected(wide, cos, sin), dtype)

        del run

    def test_large_heads_of_float16(self) -> None:
        """Their product with the gain is beyond the range of float16; the norm is not."""
        rng = np.random.default_rng(0)
        heads = (2.0**14 * drawing.uniform(rng, 2, 1, 3, 64)).astype(np.float16)
        gains = [np.full((1, 64), 16, np.float16)] * 2
        tables = np.ones((32, 2, 1), np.float32), np.zeros((32, 2, 1), np.float32)
        got = drawing.IMPLEMENTATIONS["kernel"].rope(heads, *tables, gains, 2)
        wide = drawing.wide(heads)
        norms = np.sqrt(np.mean(wide**2, axis=-1, keepdims=True))
        drawing.assert_close(got, 16 * wide / norms, "float16")

    @parameterized.parameters(*drawing.IMPLEMENTATIONS)
    def test_no_rotation_keeps_every_bit(self, implementation: str) -> None:
        rng = np.random.default_rng(0)
        heads = drawing.uniform(rng, 2, 3, 4, 64, dtype="bfloat16")
        ones = np.ones((32, 2, 3), np.float32)
        got = drawing.IMPLEMENTATIONS[implementation].rope(heads, ones, 0 * ones)
        np.testing.assert_array_equal(got, heads)


if __name__ == "__main__":
    absltest.main()
