"""The kernel's streamed softmax: blocks of keys merged one after the other, or as cores do."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.kernels.sizes import Context
from jax_tkg.kernels.softmax import MASKED, column_sums
from tests.stages import drawing, small_kernels
from tests.stages.kernel_stages import KernelStages


def _expected(
    scores: list[np.ndarray], values: list[np.ndarray], attended: list[np.ndarray], scale: float
) -> np.ndarray:
    """[n, d] over all keys; zeros for a column without any."""
    columns = scores[0].shape[-1]
    rows = np.concatenate([drawing.wide(block).reshape(-1, columns) for block in scores])
    given = np.concatenate([block.reshape(-1, columns) for block in attended])
    keys = np.concatenate([drawing.wide(value).reshape(-1, value.shape[-1]) for value in values])
    rows = np.where(given, scale * rows, -np.inf)
    peaks = np.where(given.any(axis=0), rows.max(axis=0), 0.0)
    weights = np.exp(rows - peaks)
    return (weights / np.maximum(weights.sum(axis=0), 1e-300)).T @ keys


class SoftmaxTest(parameterized.TestCase):
    @parameterized.parameters("merged", "packed", "whole")
    def test_drawn(self, way: str) -> None:
        @drawing.examples(f"softmax {way}", 25)
        def run(data: st.DataObject) -> None:
            columns = data.draw(st.integers(1, 200))
            d = drawing.head_size(data)
            scale = data.draw(st.sampled_from((1.0, 0.125)))
            rng = drawing.generator(data)
            scores, values, attended = [], [], []
            for _ in range(1 if way == "whole" else data.draw(st.integers(1, 4))):
                shape = (data.draw(st.integers(1, 128)), data.draw(st.integers(1, 3)))
                # Blocks whose peaks lie far from each other, up and down.
                block = rng.normal(rng.uniform(-20, 20), 4.0, (*shape, columns))
                given = rng.random((*shape, columns)) < rng.choice([0.0, 0.05, 1.0])
                scores.append(np.where(given, block, MASKED).astype(np.float32))
                values.append(drawing.uniform(rng, *shape, d))
                attended.append(given)
            got = KernelStages(1).softmax(
                scores, values, scale, packed=way == "packed", whole=way == "whole"
            )
            want = _expected(scores, values, attended, scale)
            drawing.assert_close(got, want, "float32")

        del run

    @parameterized.product(
        dtype=("float32", "bfloat16", "float16"),
        # Partitions, chunks, columns; the last products are of fewer chunks, or there is one.
        shape=((128, 58, 32), (128, 17, 7), (40, 3, 1), (5, 2, 65), (128, 1, 512)),
    )
    def test_sums_are_of_float32(self, dtype: str, shape: tuple[int, int, int]) -> None:
        """The sums are not rounded to the dtype of the weights."""
        weights = np.random.default_rng(0).uniform(0, 1, shape)
        weights[0] *= 2.0**-10
        weights = weights.astype(drawing.kind(dtype))

        def body(context: Context, weights: Any) -> Any:
            sums = column_sums(small_kernels.load(weights), context.constants)
            tile = small_kernels.nl.ndarray(sums.shape, dtype=sums.dtype, buffer="sbuf")
            small_kernels.nisa.tensor_copy(dst=tile, src=sums)
            return small_kernels.store(tile, context)

        (sums,) = KernelStages(1).run(body, [{"weights": weights}], dtype=dtype)
        wanted = drawing.wide(weights).sum(axis=(0, 1))
        got = drawing.wide(sums[0]).sum(axis=1)
        np.testing.assert_allclose(got, np.broadcast_to(wanted, got.shape), rtol=2e-6)


if __name__ == "__main__":
    absltest.main()
