"""Searches for eight values, and batch-norm statistics."""

import numpy as np
from absl.testing import parameterized

from jax_tkg.simulator import isa as nisa
from tests.simulator import harness
from tests.simulator.harness import on_chip, tile

_G = np.random.default_rng(0)
_X = _G.permutation(128 * 20).reshape(128, 20).astype(np.float32)


class SearchTest(parameterized.TestCase):
    def test_max8(self):
        result = on_chip(nisa.max8, [_X], (128, 8))
        np.testing.assert_array_equal(result, np.sort(_X, axis=1)[:, ::-1][:, :8])

    def test_find_index8(self):
        order = np.argsort(-_X, axis=1)[:, :8]
        values = np.take_along_axis(_X, order, axis=1)
        result = on_chip(nisa.nc_find_index8, [_X, values], (128, 8), "uint32")
        np.testing.assert_array_equal(result, order)

    def test_find_index8_gives_all_ones_for_an_absent_value(self):
        x = np.arange(8, dtype=np.float32)[None]
        values = np.array([[0, 1, 2, 3, 4, 5, 6, 99]], np.float32)
        result = on_chip(nisa.nc_find_index8, [x, values], (1, 8), "uint16")
        np.testing.assert_array_equal(result, [[0, 1, 2, 3, 4, 5, 6, 0xFFFF]])

    def test_match_replace8_of_the_documentation(self):
        # Equal values are taken from the last slot to the first.
        x = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], np.float32)
        values = np.array([[3, 8, 8, 8, 8, 8, 8, 8]], np.float32)
        index = on_chip(
            lambda dst, data, vals: nisa.nc_match_replace8(
                tile(1, 11), data, vals, -1.0, dst_idx=dst
            ),
            [x, values],
            (1, 8),
            "uint32",
        )
        np.testing.assert_array_equal(index, [[2, 10, 9, 8, 7, 6, 5, 4]])
        replaced = on_chip(
            lambda dst, data, vals: nisa.nc_match_replace8(dst, data, vals, -1.0),
            [x, values],
            (1, 11),
        )
        np.testing.assert_array_equal(replaced, [[1, 2, -1, 4, *[-1] * 7]])


class StatisticsTest(parameterized.TestCase):
    def test_mean_and_variance_over_two_tiles(self):
        x = _G.normal(3, 2, (64, 100)).astype(np.float32)

        def instruction(dst, t):
            statistics = tile(64, 12)
            nisa.bn_stats(statistics[:, 0:6], t[:, 0:60])
            nisa.bn_stats(statistics[:, 6:12], t[:, 60:100])
            nisa.bn_aggr(dst, statistics)

        result = on_chip(instruction, [x], (64, 2))
        wide = x.astype(np.float64)
        np.testing.assert_allclose(result[:, 0], wide.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(result[:, 1], wide.var(axis=1), rtol=1e-4)

    def test_layout_of_bn_stats(self):
        x = np.array([[1.0, 10.0, 3.0, 20.0]], np.float32)
        result = on_chip(nisa.bn_stats, [x], (1, 6))
        np.testing.assert_array_equal(result, [[2, 2, 2, 2, 15, 50]])


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        ("max8_elements", lambda: nisa.max8(tile(4, 8), tile(4, 7)), "8..16384 .*got 7"),
        ("max8_output", lambda: nisa.max8(tile(4, 9), tile(4, 16)), "dst must have 8 elements"),
        (
            "find_index_dtype",
            lambda: nisa.nc_find_index8(tile(4, 8), tile(4, 16), tile(4, 8)),
            "dst must be of uint16 or uint32",
        ),
        (
            "find_index_values",
            lambda: nisa.nc_find_index8(tile(4, 8, dtype="uint32"), tile(4, 16), tile(4, 9)),
            "vals must have 8 elements",
        ),
        ("bn_stats_elements", lambda: nisa.bn_stats(tile(4, 6), tile(4, 513)), "at most 512"),
        ("bn_stats_output", lambda: nisa.bn_stats(tile(4, 5), tile(4, 16)), "6 elements"),
        ("bn_aggr_triples", lambda: nisa.bn_aggr(tile(4, 2), tile(4, 7)), "multiple of 3"),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)
