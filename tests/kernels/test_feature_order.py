"""Which features are where on chip, against the features themselves."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.kernels.feature_order import FeatureOrder, even_blocks
from jax_tkg.kernels.layer_tensor import LayerTensor
from jax_tkg.kernels.layout import load_ordered
from jax_tkg.kernels.sizes import Context, Share, hidden_order
from tests.stages import small_kernels
from tests.stages.kernel_stages import KernelStages

GROUPS = (((0, 5),), ((0, 2), (2, 2), (4, 2)), ((0, 3), (3, 1), (4, 3)), ((0, 1), (1, 1)), None)


def _feature(order: FeatureOrder, partition: int, chunk: int) -> int:
    """By the words of `FeatureOrder`."""
    if order.groups is None:
        return chunk * order.width + partition
    ((first, count),) = (g for g in order.groups if g[0] <= chunk < g[0] + g[1])
    return first * order.width + partition * count + chunk - first


class FeatureOrderTest(parameterized.TestCase):
    @parameterized.product(groups=GROUPS, width=(2, 96))
    def test_rows_and_columns(self, groups: tuple[tuple[int, int], ...] | None, width: int) -> None:
        order = FeatureOrder(width, groups)
        chunks = 4 if groups is None else sum(count for _, count in groups)
        blocks = [block for most in (2, 5) for block in order.blocks(0, chunks, most)]
        numbers = np.arange(chunks * width, dtype=np.float32)

        def body(context: Context, numbers: Any) -> Any:
            tile = small_kernels.nl.ndarray(
                (width, chunks, 1), dtype=numbers.dtype, buffer=small_kernels.nl.sbuf
            )
            matrix = numbers.reshape((chunks * width, 1))
            for start, size in blocks:
                rows = order.rows(matrix, start, size)
                place = tile[:, start : start + size, :].reshape_dim(1, rows.shape[1:3])
                small_kernels.nisa.dma_copy(dst=place, src=rows)
            row = small_kernels.load(numbers.reshape((1, chunks * width)))
            columns = [order.columns(row, 0, chunk) for chunk in range(chunks)]
            return tuple(small_kernels.store(each, context) for each in (tile, *columns))

        ((tile, *columns),) = KernelStages(1).run(body, [{"numbers": numbers}])
        expected = [[_feature(order, p, c) for c in range(chunks)] for p in range(width)]
        np.testing.assert_array_equal(tile[0, :, :, 0], expected)
        np.testing.assert_array_equal(np.stack([c[0, 0] for c in columns], axis=1), expected)

    @parameterized.parameters(1, 2)
    def test_a_vector_of_more_groups_than_partitions(self, size: int) -> None:
        chunks = 131 * size + 3
        order = FeatureOrder(3, [(0, 3), *even_blocks(3, chunks - 3, size)])
        numbers = np.arange(chunks * 3, dtype=np.float32)

        def body(context: Context, numbers: Any) -> Any:
            vector = LayerTensor(numbers.reshape((1, chunks * 3)))
            tile = load_ordered(vector, order, 3, chunks - 3, context)
            return small_kernels.store(tile.reshape_dim(1, (chunks - 3, 1)), context)

        (tile,) = KernelStages(1).run(body, [{"numbers": numbers}])
        expected = [[_feature(order, p, c) for c in range(3, chunks)] for p in range(3)]
        np.testing.assert_array_equal(tile[0, :, :, 0], expected)

    def test_blocks(self) -> None:
        order = FeatureOrder(128, [(0, 5), (5, 1), (6, 5), (11, 2), (13, 2), (15, 2)])
        self.assertEqual(order.blocks(0, 6, 4), [(0, 2), (2, 3), (5, 1)])
        self.assertEqual(order.blocks(6, 5, 16), [(0, 5)])
        self.assertEqual(order.blocks(6, 11, 5), [(0, 5), (5, 2), (7, 4)])
        self.assertEqual(order.blocks(11, 6, 1), [(i, 1) for i in range(6)])
        self.assertEqual(FeatureOrder(128).blocks(3, 5, 4), [(0, 2), (2, 3)])
        self.assertEqual(even_blocks(7, 0, 4), [])

    def test_whole_groups(self) -> None:
        order = FeatureOrder(128, [(0, 5), (5, 1), (6, 5)])
        self.assertEqual([order.whole_groups(0, most) for most in (5, 6, 10, 11)], [5, 6, 6, 11])
        self.assertEqual(order.whole_groups(5, 3), 1)

    @parameterized.product(
        total=(1, 2, 7, 16, 23, 64, 128),
        T=(1, 16, 100, 128),
        cores=(1, 2),
        item=(2, 4),
        most=(0, 1, 3),
    )
    def test_residual_stream(self, total: int, T: int, cores: int, item: int, most: int) -> None:
        """Shares are whole groups, alike on both cores, each of which a product makes at once."""
        dtype = {2: small_kernels.nl.bfloat16, 4: small_kernels.nl.float32}[item]
        sizes: Any = types.SimpleNamespace(
            T=T, dtype=dtype, hidden_chunks=lambda: total, hidden_group=most
        )
        orders = []
        for index in range(cores):
            core: Any = types.SimpleNamespace(count=cores, index=index)
            orders.append(hidden_order(sizes, core).groups)
            share = Share(total, core)
            own = [first for first, _ in orders[-1]] + [total]
            first = share.first + share.skipped
            self.assertContainsSubset({share.first, first, share.first + share.count}, own)
        self.assertEqual(orders, orders[:1] * cores)
        ends = np.cumsum([0] + [count for _, count in orders[0]])
        self.assertEqual([first for first, _ in orders[0]], ends[:-1].tolist())
        self.assertEqual(ends[-1], total)
        # What an element's neighbors of a tile are apart, and what PSUM accumulates at once.
        for _, count in orders[0]:
            self.assertLessEqual(count * item, 16)
            self.assertLessEqual(count, 4 * (512 // T))
        largest = min(16 // item, total // cores, most or total)
        self.assertGreaterEqual(max(count for _, count in orders[0]), largest / 2)


if __name__ == "__main__":
    absltest.main()
