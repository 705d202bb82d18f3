"""Passes without an expert among those of a list, in the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.kernels.gaps import Gaps
from jax_tkg.kernels.limits import LISTED_AT_ONCE
from tests.stages import drawing
from tests.stages.small_kernels import SmallKernels, load, store


def _between(order: np.ndarray, passes: int) -> np.ndarray:
    def kernel(context: Any, order: Any) -> Any:
        return store(Gaps().between(load(order), passes, context.constants), context)

    (out,) = SmallKernels(1).run(kernel, [{"order": order[None].astype(np.float32)}])
    return out[0, 0]


def _expected(order: np.ndarray, passes: int) -> np.ndarray:
    """Experts two by two, and two passes without one after them while there are any."""
    experts = [number for number in order if number]
    absent = passes - len(experts)
    found: list[float] = []
    while experts:
        found += experts[:2]
        # No pair of experts before: what is left stays at the end.
        used = min(2, absent) if len(experts) > 1 else 0
        found += [0.0] * used
        experts, absent = experts[2:], absent - used
    return np.array(found + [0.0] * (len(order) - len(found)))


class GapsTest(parameterized.TestCase):
    def test_drawn(self) -> None:
        @drawing.examples("gaps", 40)
        def run(data: st.DataObject) -> None:
            size = data.draw(st.sampled_from((8, 16, 24, LISTED_AT_ONCE)))
            passes = data.draw(st.integers(size - 7, size))
            count = data.draw(st.integers(0, passes))
            numbers = drawing.generator(data).choice(np.arange(1, 513), count, replace=False)
            order = np.zeros(size)
            order[:count] = -np.sort(-numbers)
            np.testing.assert_array_equal(_between(order, passes), _expected(order, passes))

        del run

    @parameterized.parameters(
        ([5, 4, 3, 2, 1, 0, 0, 0], [5, 4, 0, 0, 3, 2, 0, 1]),
        ([3, 2, 1, 0, 0, 0, 0, 0], [3, 2, 0, 0, 1, 0, 0, 0]),
        ([8, 7, 6, 5, 4, 3, 2, 1], [8, 7, 6, 5, 4, 3, 2, 1]),
        ([0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]),
    )
    def test_by_hand(self, order: list[int], expected: list[int]) -> None:
        np.testing.assert_array_equal(_between(np.array(order), 8), expected)


if __name__ == "__main__":
    absltest.main()
