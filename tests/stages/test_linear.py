"""Products of activations with weights: plain, dequantized, of shares of the residual stream."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases
from tests.stages import drawing

FLOAT8 = (None, "float8_e4m3", "float8_e4m3fn", "float8_e5m2")


def _weight(
    rng: np.random.Generator, inner: int, columns: int, dtype: str, quantized: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """A weight N(0, 1/inner), and the scale of a quantized one, whose columns differ."""
    weight = cases.projection(rng, inner, columns)
    if quantized is None:
        return weight.astype(drawing.kind(dtype)), None
    weight *= 10.0 ** rng.uniform(-1, 1, columns).astype(np.float32)
    return cases.quantize(weight, quantized, 1)


def _expected(x: np.ndarray, weight: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    product = np.einsum("bsn,nm->bsm", drawing.wide(x), drawing.wide(weight))
    return product if scale is None else product * drawing.wide(scale)[0]


@pytest.mark.thorough
class LinearTest(parameterized.TestCase):
    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), dtype=drawing.DTYPES, quantized=FLOAT8[:3]
    )
    @pytest.mark.extended_except("1", "2", "5", "6", "9", "10", "13", "14", "17", "18", "21", "23")
    def test_drawn(self, implementation: str, dtype: str, quantized: str | None) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"linear {dtype} {quantized}", 5)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data)
            inner, columns = drawing.chunks(data), drawing.chunks(data)
            rng = drawing.generator(data)
            x = drawing.uniform(rng, B, S, inner, dtype=dtype)
            weight, scale = _weight(rng, inner, columns, dtype, quantized)
            got = stages.linear(x, weight, scale)
            drawing.assert_close(got, _expected(x, weight, scale), dtype)

        del run

    @parameterized.product(implementation=drawing.KERNELS, rows=(2, 80, 64, 128))
    def test_rows_of_a_head(self, implementation: str, rows: int) -> None:
        """What attention gives has d or d/2 rows on the partitions."""
        rng = np.random.default_rng(rows)
        x = drawing.uniform(rng, 2, 3, 5 * rows)
        weight, _ = _weight(rng, 5 * rows, 384, "float32", None)
        got = drawing.IMPLEMENTATIONS[implementation].linear(x, weight, rows=rows)
        drawing.assert_close(got, _expected(x, weight, None), "float32")

    @parameterized.product(
        implementation=drawing.KERNELS,
        # Weights of more columns than PSUM accumulates at once, of more rows than a buffer holds.
        sizes=((8, 8, 128, 4608), (16, 8, 128, 4224), (1, 1, 4096, 512)),
        form=(("float32", None), ("bfloat16", None), ("bfloat16", "float8_e4m3")),
    )
    def test_several_pieces(
        self,
        implementation: str,
        sizes: tuple[int, int, int, int],
        form: tuple[str, str | None],
    ) -> None:
        B, S, inner, columns = sizes
        dtype, quantized = form
        rng = np.random.default_rng(0)
        x = drawing.uniform(rng, B, S, inner, dtype=dtype)
        weight, scale = _weight(rng, inner, columns, dtype, quantized)
        got = drawing.IMPLEMENTATIONS[implementation].linear(x, weight, scale)
        drawing.assert_close(got, _expected(x, weight, scale), dtype)


class LinearOfSharesTest(parameterized.TestCase):
    """The kernel's product of a residual stream of which each core holds a share."""

    @parameterized.product(implementation=drawing.KERNELS, dtype=drawing.DTYPES)
    @pytest.mark.extended_except("0", "3")
    def test_drawn(self, implementation: str, dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"linear_of_shares {dtype}", 12)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data)
            inner = drawing.chunks(data)
            width = data.draw(st.sampled_from((2, 64, 96, 128)))
            columns = width * data.draw(st.integers(1, 9))
            rng = drawing.generator(data)
            x = drawing.uniform(rng, B, S, inner, dtype=dtype)
            weight, scale = _weight(rng, inner, columns, dtype, data.draw(st.sampled_from(FLOAT8)))
            times = drawing.uniform(rng, B, S, columns) if data.draw(st.booleans()) else None
            squares = data.draw(st.booleans())
            # In X's dtype or another one, as gains and biases may be.
            kind = data.draw(st.sampled_from((None, "float32", dtype)))
            bias = None if kind is None else drawing.uniform(rng, 1, columns, dtype=kind)
            got = stages.linear_of_shares(x, weight, width, scale, times, squares, bias)
            want = _expected(x, weight, scale)
            if squares:
                want /= np.sqrt(np.square(drawing.wide(x)).mean(axis=-1, keepdims=True))
            if bias is not None:
                want += drawing.wide(bias)
            if times is not None:
                want *= drawing.wide(times)
            drawing.assert_close(got, want, dtype)

        del run


if __name__ == "__main__":
    absltest.main()
