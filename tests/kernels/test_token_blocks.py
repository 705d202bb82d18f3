"""More new tokens than a tile has rows: blocks of sequences, in each stage that has such tiles."""

from __future__ import annotations

import types
from typing import Any

from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg.kernels.divisions import divides_sequences
from jax_tkg.kernels.limits import MAX_TOKENS, PARTITIONS
from jax_tkg.kernels.sizes import Sizes
from jax_tkg.kernels.token_blocks import attended_blocks, sequence_share, token_blocks
from tests import cases
from tests.kernels import launch


def _sizes(B: int, S: int) -> Sizes:
    return Sizes(B, S, 128, 128, 64, 1, 1, 0, 8, "float32")


def _shape(**fields: Any) -> cases.Shape:
    return cases.Shape(**{"S": 1, "q": 2, "k": 1, "H": 256, "I": 256, "L": 1, **fields})


class BlocksTest(parameterized.TestCase):
    @settings(max_examples=200, derandomize=True, deadline=None)
    @given(S=st.integers(1, PARTITIONS), cores=st.sampled_from((1, 2)), data=st.data())
    def test_every_token_once(self, S: int, cores: int, data: st.DataObject) -> None:
        """In order, on the partitions; each core has those of its sequences, and else nothing."""
        B = data.draw(st.integers(1, MAX_TOKENS // S))
        sizes = _sizes(B, S)
        core = types.SimpleNamespace(count=cores, index=data.draw(st.integers(0, cores - 1)))
        blocks = token_blocks(sizes, core)
        counted = [range(b.first_token, b.first_token + b.tokens) for b in blocks]
        self.assertEqual([t for tokens in counted for t in tokens], list(range(B * S)))
        self.assertLessEqual(max(block.tokens for block in blocks), PARTITIONS)
        self.assertLessEqual(len(blocks), 1 if B * S <= PARTITIONS else 4)
        first, count = sequence_share(sizes, core)
        own = attended_blocks(sizes, core)
        sequences = {b for block in own for b in range(block.first, block.first + block.count)}
        self.assertContainsSubset(range(first, first + count), sequences)
        if B * S > PARTITIONS and divides_sequences(B, cores):
            self.assertEqual(sequences, set(range(first, first + count)))


class KernelTest(parameterized.TestCase):
    @parameterized.named_parameters(
        # A block for each core, which attends its sequences and writes their keys.
        ("of_each_core", {"B": 64, "S": 4, "S_ctx": 200, "S_max": 210}, 2, 1, False),
        ("of_one_core", {"B": 64, "S": 4, "L": 2}, 1, 1, False),
        # Cores that divide the slots: the first attends all new keys, and both write some.
        ("odd", {"B": 131, "q": 4, "k": 2, "H": 384, "S_ctx": 300, "S_max": 310}, 2, 2, False),
        (
            "odd_unified",
            {"B": 27, "S": 8, "I": 128, "S_ctx": 300, "S_max": 400, "unified": True},
            2,
            1,
            False,
        ),
        ("looped", {"B": 200, "q": 4, "H": 512, "L": 2, "dtype": "bfloat16"}, 2, 1, True),
        ("large_heads", {"B": 256, "d": 256, "I": 128}, 2, 1, False),
        (
            "lengths",
            {"B": 64, "S": 4, "context": "lengths", "S_ctx": 200, "S_max": 210},
            2,
            1,
            False,
        ),
        (
            "cache_blocks",
            {"B": 150, "context": "lengths", "S_ctx": 256, "S_max": 256, "block_len": 64},
            2,
            1,
            False,
        ),
        (
            "float8_caches",
            {"B": 34, "S": 4, "q": 4, "k": 4, "cache_dtype": "float8_e4m3"},
            2,
            1,
            False,
        ),
        (
            "float8",
            {"B": 50, "S": 4, "quantized": (("float8_e4m3",) * 3,), "dtype": "bfloat16"},
            2,
            1,
            False,
        ),
        (
            "options",
            {"B": 40, "S": 4, "q": 6, "k": 2, "dtype": "bfloat16", **cases.EVERY_OPTION},
            2,
            2,
            False,
        ),
    )
    def test_against_the_oracle(
        self, fields: dict[str, Any], cores: int, ranks: int, stacked: bool
    ) -> None:
        launch.check(_shape(**fields), cores=cores, ranks=ranks, stacked=stacked)

    @parameterized.named_parameters(
        ("of_two_blocks", {"B": 64, "S": 4, "experts_per_token": 2}, 2, 1, False),
        (
            "of_one_core",
            {"B": 200, "E": 16, "E_held": 16, "I_expert": 128, "experts_per_token": 3},
            1,
            1,
            False,
        ),
        ("by_expert", {"B": 131, "E_held": 4, "I_expert": 128}, 2, 2, False),
        (
            # Fewer tokens than experts: passes are fewer than experts too.
            "more_experts_than_tokens",
            {"B": 140, "E": 300, "E_held": 300, "I_expert": 32, "experts_per_token": 1},
            2,
            1,
            False,
        ),
        (
            "sigmoids",
            {
                "B": 140,
                "experts_per_token": 4,
                "routing": "sigmoid_topk",
                "options": ("bias_selections", "bias_routers"),
            },
            2,
            1,
            False,
        ),
        (
            "looped_with_biases",
            {
                "B": 66,
                "S": 3,
                "L": 2,
                "activation": "swiglu_oai",
                "routing": "topk_softmax",
                "options": ("bias_gates", "bias_ups", "bias_downs", "bias_routers"),
            },
            2,
            1,
            True,
        ),
    )
    def test_experts(self, fields: dict[str, Any], cores: int, ranks: int, stacked: bool) -> None:
        """The router's choice of each block, and each expert once for the tokens of all blocks."""
        given = {"E": 8, "E_held": 8, "I_expert": 64, "experts_per_token": 2, **fields}
        launch.check(_shape(**given), cores=cores, ranks=ranks, stacked=stacked)


if __name__ == "__main__":
    absltest.main()
