"""Packing and stacking of weights."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg import weights
from jax_tkg.call.operand_table import BY_NAME


class PackQkvTest(parameterized.TestCase):
    @parameterized.parameters(
        (1, 4, 2), (2, 4, 2), (3, 9, 3), (1, 6, 1), (4, 4, 2), (4, 8, 1), (6, 12, 2)
    )
    def test_column_by_column(self, ranks: int, heads: int, kv_heads: int) -> None:
        d, hidden = 4, 3
        q, k = heads // ranks, max(1, kv_heads // ranks)
        split = weights.split_heads(heads, kv_heads, ranks)
        self.assertEqual((split.q, split.k, split.kv_heads), (q, k, max(kv_heads, ranks)))

        def named(kind: int, count: int) -> np.ndarray:
            # Every column says what it is: kind, head, position in the head.
            columns = [kind * 1000 + head * 10 + i for head in range(count) for i in range(d)]
            return np.tile(np.array(columns, np.float32), (hidden, 1))

        packed = weights.pack_qkv(named(1, heads), named(2, kv_heads), named(3, kv_heads), d, ranks)
        expected = []
        for rank in range(ranks):
            for kind, count in ((1, q), (2, k), (3, k)):
                for index in range(count):
                    head = rank * count + index
                    if kind > 1:
                        # The KV head that the rank's first query head attends, and those after it.
                        head = rank * q // (heads // kv_heads) + index
                    expected += [kind * 1000 + head * 10 + i for i in range(d)]
        np.testing.assert_array_equal(packed, np.tile(expected, (hidden, 1)))

    @parameterized.named_parameters(
        ("heads", (8, 12), (8, 8), (8, 8), 1, "W_query"),
        ("ranks", (8, 48), (8, 24), (8, 24), 2, "ranks"),
        ("query_heads", (8, 24), (8, 8), (8, 8), 2, "ranks"),
        ("no_rank", (8, 24), (8, 8), (8, 8), 0, "ranks"),
        ("rank_of_array", (8, 16), (8,), (8, 8), 1, "W_key"),
        ("values", (8, 16), (8, 8), (8, 16), 1, "W_value"),
    )
    def test_bad_shapes(self, query: Any, key: Any, value: Any, ranks: int, name: str) -> None:
        with self.assertRaisesRegex(ValueError, f"^{name}: expected .* got"):
            weights.pack_qkv(np.ones(query), np.ones(key), np.ones(value), 8, ranks)


def _weights(**changes: Any) -> weights.TransformerWeights:
    rng = np.random.default_rng(0)
    fields = {
        name: [rng.standard_normal((2, 3)).astype(np.float32) for _ in range(4)]
        for name in weights.TransformerWeights(*[None] * 7).arguments()
        if not BY_NAME[name].optional
    }
    return weights.TransformerWeights(**{**fields, **changes})


class StackLayersTest(absltest.TestCase):
    def test_stacks(self) -> None:
        given = _weights(W_up_scales=[np.ones((1, 3), np.float32)] * 4, W_gate_scales=[None] * 4)
        stacked = weights.stack_layers(given)
        for name, layers in given.arguments().items():
            got = getattr(stacked, name)
            if layers is None or name == "W_gate_scales":
                self.assertIsNone(got)
            else:
                np.testing.assert_array_equal(got, np.array(layers))

    def test_stacked_stays(self) -> None:
        once = weights.stack_layers(_weights())
        self.assertIs(weights.stack_layers(once).W_outs, once.W_outs)

    def test_unstacks(self) -> None:
        given = _weights(W_up_scales=[np.ones((1, 3), np.float32)] * 4)
        lists = weights.unstack_layers(weights.stack_layers(given))
        for name, layers in given.arguments().items():
            got = getattr(lists, name)
            if layers is None:
                self.assertIsNone(got)
            else:
                self.assertLen(got, 4)
                np.testing.assert_array_equal(np.array(got), np.array(layers))
        self.assertIs(weights.unstack_layers(given).W_outs, given.W_outs)

    def test_unstacked_numpy_arrays_are_views(self) -> None:
        stack = np.ones((4, 2, 3), np.float32)
        lists = weights.unstack_layers(_weights(W_outs=stack))
        self.assertTrue(all(np.shares_memory(stack, layer) for layer in lists.W_outs))

    def test_layers_that_differ(self) -> None:
        layers = [np.ones((2, 3), np.float32), np.ones((2, 3), np.float16)]
        with self.assertRaisesRegex(ValueError, "W_ups: .*float16.*float32"):
            weights.stack_layers(_weights(W_ups=layers))
        with self.assertRaisesRegex(ValueError, "W_up_scales: expected layers of one shape"):
            weights.stack_layers(_weights(W_up_scales=[None, np.ones((1, 3))]))

    def test_is_a_pytree(self) -> None:
        given = _weights()
        doubled = jax.tree.map(lambda leaf: leaf * 2, given)
        np.testing.assert_array_equal(doubled.W_outs[1], given.W_outs[1] * 2)
        self.assertLen(jax.tree.leaves(given), 7 * 4)


if __name__ == "__main__":
    absltest.main()
