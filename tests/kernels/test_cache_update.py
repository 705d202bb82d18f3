"""Where the megakernel writes new keys and values: windows of neighbors, and what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from tests import cases
from tests.kernels import launch

SKIPPED = 2**32 - 1
S_MAX = 12


def _shape(**changes: Any) -> cases.Shape:
    return cases.Shape(**{"H": 128, "I": 128, "L": 1, "S_ctx": 8, "S_max": S_MAX, **changes})


def _arguments(shape: cases.Shape, positions: Any, dtype: Any = np.int32) -> dict[str, Any]:
    (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
    return {**row[0], "position_ids": np.asarray(positions).astype(dtype)}


def _check(shape: cases.Shape, positions: Any, dtype: Any = np.int32, **how: Any) -> Any:
    """Runs the kernel with these position_ids and compares all results with the oracle's."""
    arguments = _arguments(shape, positions, dtype)
    (output,), result = launch.run(shape, [arguments], **how)
    hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
    cases.check(output, shape, arguments, hidden, K[0], V[0], written)
    return result


def _cache_writes(result: Any, name: str, core: int) -> list[Any]:
    """The writes into the caches `name` by a core, without those that were skipped."""
    return [
        access
        for instruction in result.record.streams[(0, core)]
        for access in instruction.writes
        if instruction.opcode == "dma_copy"
        and access.name.startswith(name)
        and (access.rows is None or len(access.rows))
    ]


@pytest.mark.thorough
class WritesTest(parameterized.TestCase):
    @parameterized.product(S=(1, 2, 3, 4, 8), cores=(1, 2), stacked=(False, True))
    @pytest.mark.extended_except("1", "2", "6", "9", "11", "13", "15", "17", "18")
    def test_windows_across_the_end(self, S: int, cores: int, stacked: bool) -> None:
        """Each number of tokens within the cache, from all to none."""
        first = range(S_MAX - S - 1, S_MAX + 2)
        shape = _shape(B=len(first), S=S, L=2 if stacked else 1)
        _check(shape, [[p] for p in first], cores=cores, stacked=stacked)

    @parameterized.product(cores=(1, 2), dtype=(np.int32, np.uint32), k=(1, 2, 4))
    @pytest.mark.extended_except("1", "4", "6", "9", "11")
    def test_skipped_sequences(self, cores: int, dtype: Any, k: int) -> None:
        positions = [[0], [SKIPPED], [S_MAX - 2], [SKIPPED], [5]]
        _check(_shape(B=5, S=4, q=4, k=k), positions, dtype, cores=cores)

    @parameterized.product(cores=(1, 2), stacked=(False, True))
    @pytest.mark.extended_except("1", "2")
    def test_slot_of_each_token(self, cores: int, stacked: bool) -> None:
        """In any order, past the end, skipped, and two tokens for one slot: the later stays."""
        positions = [[7, 3, 9], [4, 4, 4], [S_MAX, -1, 0], [2, 5, 2], [-1, -1, -1]]
        shape = _shape(B=5, S=3, L=2 if stacked else 1)
        _check(shape, positions, cores=cores, stacked=stacked)

    @parameterized.parameters(1, 2)
    def test_all_are_skipped(self, cores: int) -> None:
        result = _check(_shape(B=3, S=2), [[-1], [-1], [S_MAX]], cores=cores, record=True)
        for name in ("K_caches", "V_caches"):
            for core in range(cores):
                self.assertEmpty(_cache_writes(result, name, core))

    def test_one_transfer_per_window(self) -> None:
        shape = _shape(B=4, S=4, k=2, q=2)
        result = _check(shape, [[0], [3], [8], [5]], cores=2, record=True)
        for core in (0, 1):
            keys = _cache_writes(result, "K_caches", core)
            self.assertEqual([access.shape for access in keys], [(64, 2, 1, 4)] * 2)
            values = _cache_writes(result, "V_caches", core)
            self.assertEqual([access.shape for access in values], [(8, 2, 64)])


if __name__ == "__main__":
    absltest.main()
