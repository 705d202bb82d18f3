"""Where the megakernel writes new keys and values: windows of neighbours, and what is left."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.call.dimensions import Dimensions
from jax_tkg.lowering import kernel_operands
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


class WritesTest(parameterized.TestCase):
    @parameterized.product(S=(1, 2, 3, 4, 8), cores=(1, 2), stacked=(False, True))
    def test_windows_across_the_end(self, S: int, cores: int, stacked: bool) -> None:
        """Each number of tokens within the cache, from all to none."""
        first = range(S_MAX - S - 1, S_MAX + 2)
        shape = _shape(B=len(first), S=S, L=2 if stacked else 1)
        _check(shape, [[p] for p in first], cores=cores, stacked=stacked)

    @parameterized.product(cores=(1, 2), dtype=(np.int32, np.uint32), k=(1, 2, 4))
    def test_skipped_sequences(self, cores: int, dtype: Any, k: int) -> None:
        positions = [[0], [SKIPPED], [S_MAX - 2], [SKIPPED], [5]]
        _check(_shape(B=5, S=4, q=4, k=k), positions, dtype, cores=cores)

    @parameterized.product(cores=(1, 2), stacked=(False, True))
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
            self.assertEqual([access.shape for access in keys], [(64, 2, 4)] * 2)
            values = _cache_writes(result, "V_caches", core)
            self.assertEqual([access.shape for access in values], [(8, 2, 64)])


class PlacesTest(parameterized.TestCase):
    def _places(self, positions: Any, looped: bool = False, **changes: Any) -> dict[str, Any]:
        shape = _shape(**changes)
        arguments = _arguments(shape, positions)
        operands, _ = launch.canonical(
            cases.stack(arguments) if looped else arguments, **cases.options(shape)
        )
        return kernel_operands.cache_places(operands, Dimensions.of(operands), looped)

    def test_windows(self) -> None:
        """Keys [B, k, d, S_max] have their places in numbers, values in rows."""
        places = self._places([[2], [S_MAX - 1]], B=2, S=2, q=2, k=2, d=4)
        second = 2 * 4 * S_MAX
        np.testing.assert_array_equal(places["window_places"], [[2, SKIPPED]])
        np.testing.assert_array_equal(
            places["key_places"], [[SKIPPED, SKIPPED, second + S_MAX - 1, SKIPPED]]
        )
        rows = 2 * S_MAX
        np.testing.assert_array_equal(places["value_places"], [[2, 3, rows + S_MAX - 1, SKIPPED]])

    def test_layers_of_a_loop(self) -> None:
        places = self._places([[2], [-1]], looped=True, B=2, S=2, q=1, k=1, d=4, L=3)
        layer = 2 * 4 * S_MAX
        np.testing.assert_array_equal(
            places["window_places"], [[2 + n * layer, SKIPPED] for n in range(3)]
        )
        np.testing.assert_array_equal(
            places["value_places"][2], [2 * 2 * S_MAX + 2, 2 * 2 * S_MAX + 3, SKIPPED, SKIPPED]
        )

    def test_one_token_has_only_a_window(self) -> None:
        places = self._places([[2], [5]], B=2, S=1)
        self.assertIsNone(places["key_places"])
        self.assertEqual(places["window_places"].dtype, jnp.uint32)

    def test_slot_of_each_token_has_no_window(self) -> None:
        places = self._places([[3, 3]], B=1, S=2, q=1, k=1, d=4)
        self.assertIsNone(places["window_places"])
        np.testing.assert_array_equal(places["key_places"], [[SKIPPED, 3]])
        np.testing.assert_array_equal(places["value_places"], [[SKIPPED, 3]])

    def test_no_update(self) -> None:
        shape = _shape(positions="none")
        (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
        operands, _ = launch.canonical(row[0], **cases.options(shape))
        places = kernel_operands.cache_places(operands, Dimensions.of(operands), False)
        self.assertEqual(set(places.values()), {None})


if __name__ == "__main__":
    absltest.main()
