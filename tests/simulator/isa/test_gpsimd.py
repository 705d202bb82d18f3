"""GpSimd Engine: values by hand or by explicit loops, and the documented limits."""

import itertools

import ml_dtypes
import numpy as np
from absl.testing import parameterized

from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import on_chip, psum, tile

_G = np.random.default_rng(0)


def _affine(partitions, pattern, offset, multiplier):
    """The documented pseudo code, literally."""
    rows = []
    for channel in range(partitions):
        row = []
        for index in itertools.product(*(range(n) for _, n in pattern)):
            steps = sum(i * step for i, (step, _) in zip(index, pattern, strict=True))
            row.append(offset + channel * multiplier + steps)
        rows.append(row)
    return np.array(rows)


class IotaTest(parameterized.TestCase):
    @parameterized.parameters(
        ([[1, 8]], 0, 0), ([[1, 8]], 5, 3), ([[10, 2], [1, 4]], -7, 100), ([[0, 2], [3, 4]], 0, 1)
    )
    def test_pseudo_code(self, pattern, offset, multiplier):
        expected = _affine(16, pattern, offset, multiplier)
        result = on_chip(
            lambda dst: nisa.iota(dst, pattern, offset, multiplier), [], (16, 8), "int32"
        )
        np.testing.assert_array_equal(result, expected)

    def test_converts_to_float(self):
        result = on_chip(lambda dst: nisa.iota(dst, [[2, 3]]), [], (1, 3), "bfloat16")
        np.testing.assert_array_equal(result.astype(np.float32), [[0, 2, 4]])


class AffineSelectTest(parameterized.TestCase):
    def test_causal_mask(self):
        x = _G.normal(size=(8, 8)).astype(np.float32)
        # row - column >= 0
        result = on_chip(
            lambda dst, t: nisa.affine_select(
                dst, [[-1, 8]], 1, t, -9999.0, cmp_op=nl.greater_equal
            ),
            [x],
            (8, 8),
        )
        np.testing.assert_array_equal(result, np.where(np.tri(8, dtype=bool), x, -9999))

    def test_converts(self):
        x = np.array([[1.0, 2.0]], np.float32)
        result = on_chip(
            lambda dst, t: nisa.affine_select(dst, [[1, 2]], 0, t, 5.0), [x], (1, 2), "bfloat16"
        )
        np.testing.assert_array_equal(result.astype(np.float32), [[1.0, 5.0]])


class GatherTest(parameterized.TestCase):
    def test_n_gather(self):
        x = _G.normal(size=(32, 4, 5)).astype(np.float32)
        index = _G.integers(0, 20, (32, 7)).astype(np.uint32)
        result = on_chip(nisa.nc_n_gather, [x, index], (32, 7))
        expected = np.array([[x[p].reshape(-1)[i] for i in index[p]] for p in range(32)])
        np.testing.assert_array_equal(result, expected)

    def test_local_gather(self):
        x = _G.normal(size=(32, 40)).astype(np.float32)
        index = _G.integers(0, 40, (32, 2)).astype(np.uint16)
        result = on_chip(nisa.local_gather, [x, index], (32, 32))
        for core in range(2):
            rows = slice(core * 16, core * 16 + 16)
            flat = [index[rows][p, c] for c in range(2) for p in range(16)]
            np.testing.assert_array_equal(result[rows], x[rows][:, flat])

    def test_local_gather_of_several_elements(self):
        x = _G.normal(size=(16, 8)).astype(np.float32)
        index = np.arange(16, dtype=np.uint16)[:, None] % 4
        result = on_chip(
            lambda dst, t, i: nisa.local_gather(dst, t, i, num_elem_per_idx=2, num_valid_indices=3),
            [x, index],
            (16, 6),
        )
        np.testing.assert_array_equal(result, x[:, [0, 1, 2, 3, 4, 5]])


class OtherTest(parameterized.TestCase):
    def test_nonzero_with_count_of_the_documentation(self):
        x = np.zeros((16, 8), np.int32)
        x[0] = [0, 1, 1, 0, 0, 1, 0, 0]
        result = on_chip(
            lambda dst, t: nisa.nonzero_with_count(dst, t, index_offset=16),
            [x],
            (16, 9),
            "int32",
            fill=0,
        )
        np.testing.assert_array_equal(result[0], [17, 18, 21, -1, -1, -1, -1, -1, 3])
        np.testing.assert_array_equal(result[1:], 0)

    def test_partition_reduce(self):
        x = _G.normal(size=(64, 5)).astype(np.float32)
        result = on_chip(lambda dst, t: nisa.tensor_partition_reduce(dst, nl.add, t), [x], (1, 5))
        np.testing.assert_allclose(
            result[0], x.astype(np.float64).sum(axis=0), rtol=1e-5, atol=1e-5
        )

    @parameterized.parameters("int32", "uint32")
    def test_bitwise_partition_reduce_keeps_its_bits(self, dtype):
        x = np.array([[-(2**31)], [1]], np.int32)
        result = on_chip(
            lambda dst, t: nisa.tensor_partition_reduce(dst, nl.bitwise_or, t), [x], (1, 1), dtype
        )
        np.testing.assert_array_equal(result.view(np.uint32), [[0x80000001]])

    def test_sequence_bounds(self):
        ids = np.array([[1, 1, 2, 2, 2, 0, 0]], np.int32)
        result = on_chip(nisa.sequence_bounds, [ids], (1, 2, 7), "int32")
        np.testing.assert_array_equal(result[0, 0], [0, 0, 2, 2, 2, 7, 7])
        np.testing.assert_array_equal(result[0, 1], [2, 2, 5, 5, 5, -1, -1])

    def test_topk(self):
        n, k = 42, 8
        snake = _G.permutation(48).astype(np.float32)
        src = np.zeros((16, 3), np.float32)
        for i, value in enumerate(snake):
            src[i % 16, i // 16] = value

        def kernel(x):
            t = nl.load(x, dtype=nl.bfloat16)
            values = nl.ndarray((16, k), dtype=nl.bfloat16)
            indices = nl.ndarray((16, k), dtype=nl.uint32)
            nisa.topk(values, indices, t, n)
            out = nl.ndarray((16, k), dtype=nl.bfloat16, buffer=nl.shared_hbm)
            places = nl.ndarray((16, k), dtype=nl.uint32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, values)
            nisa.dma_copy(places, indices)
            return out, places

        values, places = harness.run(kernel, src).outputs[0]
        order = np.argsort(snake[:n])[-k:]
        np.testing.assert_array_equal(places, np.repeat(order[None], 16, axis=0))
        np.testing.assert_array_equal(
            values, np.repeat(snake[order][None], 16, axis=0).astype(ml_dtypes.bfloat16)
        )


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "iota_in_sbuf",
            lambda: nisa.iota(psum(4, 4), [[1, 4]]),
            "dst must be in SBUF",
        ),
        (
            "iota_dimensions",
            lambda: nisa.iota(tile(4, 1), [[1, 1]] * 5),
            "pattern must have at most 4 dimensions, got 5",
        ),
        (
            "iota_elements",
            lambda: nisa.iota(tile(4, 4), [[1, 5]]),
            r"as many elements as a partition of dst \(4\), got 5",
        ),
        (
            "affine_select_in_sbuf",
            lambda: nisa.affine_select(tile(4, 4), [[1, 4]], 0, psum(4, 4), 0.0),
            "on_true_tile must be in SBUF",
        ),
        (
            "affine_select_comparison",
            lambda: nisa.affine_select(tile(4, 4), [[1, 4]], 0, tile(4, 4), 0.0, cmp_op=nl.add),
            "cmp_op must be one of .*, got add",
        ),
        (
            "gather_indices_uint32",
            lambda: nisa.nc_n_gather(tile(4, 4), tile(4, 4), tile(4, 4, dtype="int32")),
            "indices must be of uint32",
        ),
        (
            "gather_range",
            lambda: nisa.nc_n_gather(tile(4, 4), tile(4, 4), tile(4, 4, dtype="uint32", value=4)),
            "indices must be in 0..3, got 4",
        ),
        (
            "gather_not_psum",
            lambda: nisa.nc_n_gather(tile(4, 4), psum(4, 4), tile(4, 4, dtype="uint32")),
            "data must be in SBUF",
        ),
        (
            "local_gather_partitions",
            lambda: nisa.local_gather(tile(8, 8), tile(8, 8), tile(8, 1, dtype="uint16")),
            "a multiple of 16",
        ),
        (
            "local_gather_length",
            lambda: nisa.local_gather(
                tile(16, 48), tile(16, 8), tile(16, 1, dtype="uint16"), num_elem_per_idx=3
            ),
            "num_elem_per_idx must be one of",
        ),
        (
            "local_gather_index_dtype",
            lambda: nisa.local_gather(tile(16, 16), tile(16, 8), tile(16, 1, dtype="uint32")),
            "index must be of uint16",
        ),
        (
            "nonzero_output_length",
            lambda: nisa.nonzero_with_count(tile(16, 8, dtype="int32"), tile(16, 8)),
            "one element more than src",
        ),
        (
            "nonzero_needs_v3",
            lambda: nisa.nonzero_with_count(tile(16, 9, dtype="int32"), tile(16, 8)),
            "nonzero_with_count needs NeuronCore-v3",
            "trn1",
        ),
        (
            "topk_n",
            lambda: nisa.topk(
                tile(16, 8, dtype="bfloat16"),
                tile(16, 8, dtype="uint32"),
                tile(16, 2, dtype="bfloat16"),
                33,
            ),
            r"n must be in 8..65535 and at most 32",
        ),
        (
            "partition_reduce_operator",
            lambda: nisa.tensor_partition_reduce(tile(1, 4), nl.multiply, tile(4, 4)),
            "op must be one of",
        ),
        (
            "partition_reduce_bitvec_needs_integers",
            lambda: nisa.tensor_partition_reduce(tile(1, 4), nl.bitwise_or, tile(4, 4)),
            "bitwise_or needs integers, but dst is float32",
        ),
        (
            "partition_reduce_output",
            lambda: nisa.tensor_partition_reduce(tile(2, 4), nl.add, tile(4, 4)),
            "dst must have 1 partition of 4 elements",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)
