"""The kernel's streamed softmax: blocks of keys merged one after the other, or as cores do."""

from __future__ import annotations

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.kernels.softmax import MASKED
from tests.stages import drawing
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
    @parameterized.parameters(False, True)
    def test_drawn(self, packed: bool) -> None:
        @drawing.examples(f"softmax {packed}", 25)
        def run(data: st.DataObject) -> None:
            columns = data.draw(st.integers(1, 200))
            d = drawing.head_size(data)
            scale = data.draw(st.sampled_from((1.0, 0.125)))
            rng = drawing.generator(data)
            scores, values, attended = [], [], []
            for _ in range(data.draw(st.integers(1, 4))):
                shape = (data.draw(st.integers(1, 128)), data.draw(st.integers(1, 3)))
                # Blocks whose peaks lie far from each other, up and down.
                block = rng.normal(rng.uniform(-20, 20), 4.0, (*shape, columns))
                given = rng.random((*shape, columns)) < rng.choice([0.0, 0.05, 1.0])
                scores.append(np.where(given, block, MASKED).astype(np.float32))
                values.append(drawing.uniform(rng, *shape, d))
                attended.append(given)
            got = KernelStages(1).softmax(scores, values, scale, packed)
            want = _expected(scores, values, attended, scale)
            drawing.assert_close(got, want, "float32")

        del run


if __name__ == "__main__":
    absltest.main()
