"""Masks of ranges of cache slots: as the reference makes them, and as the kernel does on chip."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests.stages import drawing


def _expected(
    lengths: np.ndarray, starts: np.ndarray | None, slots: int, q: int, S: int
) -> np.ndarray:
    """[slots, B, q, S], a slot at a time."""
    B = len(lengths)
    mask = np.zeros((slots, B, q, S), bool)
    for t, b, s in np.ndindex(slots, B, S):
        end = max(0, int(lengths[b] if lengths.ndim == 1 else lengths[b, s]))
        if starts is None:
            mask[t, b, :, s] = t < end
            continue
        start = max(0, int(starts[b] if starts.ndim == 1 else starts[b, s]))
        mask[t, b, :, s] = (start <= t < end) if start <= end else not end <= t < start
    return mask


@pytest.mark.thorough
class MasksTest(parameterized.TestCase):
    @parameterized.product(
        implementation=drawing.ONE_FORMULATION, each=(False, True), starts=(False, True)
    )
    @pytest.mark.extended_except("0", "3", "5", "6", "8", "10")
    def test_drawn(self, implementation: str, each: bool, starts: bool) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]
        count = 4 if implementation in drawing.KERNELS else 2

        @drawing.examples(f"masks {each} {starts}", count)
        def run(data: st.DataObject) -> None:
            q = data.draw(st.sampled_from((1, 3, 8)))
            B, S = drawing.tokens(data, 24)
            slots = data.draw(st.one_of(st.integers(1, 300), st.sampled_from((128, 2048, 2100))))
            rng = drawing.generator(data)
            sizes = (B, S) if each else (B,)
            edges = np.array([-(2**31), -1, 0, 1, slots, slots + 1, 2**31 - 1])

            def draw() -> np.ndarray:
                drawn = rng.integers(0, slots + 1, sizes)
                edge = rng.random(sizes) < 0.3
                return np.where(edge, rng.choice(edges, sizes), drawn).astype(np.int32)

            lengths, first = draw(), draw() if starts else None
            # With 0 for slots that nobody attends, though the last 128 are read whole.
            stored = data.draw(st.sampled_from((slots, -(-slots // 128) * 128)))
            got_cache, got_active = stages.masks(lengths, first, slots, q, B, S, stored)
            np.testing.assert_array_equal(got_cache, _expected(lengths, first, slots, q, S))
            causal = np.tril(np.ones((S, S), bool)).T[:, None, None]
            np.testing.assert_array_equal(got_active, np.broadcast_to(causal, (S, B, q, S)))


if __name__ == "__main__":
    absltest.main()
