"""Attention over caches in blocks: that over the flat caches that their tables put together."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests.stages import drawing, test_attention


@pytest.mark.thorough
class BlocksTest(parameterized.TestCase):
    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), dtype=("float32", "bfloat16", "float16")
    )
    @pytest.mark.extended_except("0", "4", "8", "10")
    def test_drawn(self, implementation: str, dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]
        count = 4 if implementation in drawing.KERNELS else 1

        @drawing.examples(f"blocks {dtype}", count)
        def run(data: st.DataObject) -> None:
            block_len = data.draw(st.sampled_from((16, 12, 64, 128, 256)))
            n = data.draw(st.integers(1, max(1, 700 // block_len)))
            q, k = data.draw(st.sampled_from(((1, 1), (4, 2), (6, 3))))
            B, S = drawing.tokens(data, 8)
            d = data.draw(st.sampled_from((32, 128, 160)))
            slots = n * block_len
            rng = drawing.generator(data)
            given = test_attention.arguments(rng, B, S, q, k, d, slots, slots, dtype)
            # Blocks in no order, one without an owner, and a last one that nobody attends.
            tables = rng.permutation(B * n + 1)[: B * n].reshape(B, n).astype(np.int32)
            K = given["K_cache"].reshape(B, k, d, n, block_len).transpose(0, 3, 1, 2, 4)
            V = given["V_cache"].reshape(B, k, n, block_len, d).transpose(0, 2, 1, 3, 4)
            pools = [np.zeros((B * n + 1, *one.shape[2:]), one.dtype) for one in (K, V)]
            for pool, one in zip(pools, (K, V), strict=True):
                pool[tables] = one
            missing = rng.random(B) < 0.5
            tables[missing, -1] = -1
            given["mask_cache"][slots - block_len :, missing] = 0
            want = test_attention.expected(**given)
            given["K_cache"], given["V_cache"] = pools
            got = stages.attention(**given, block_tables=tables)
            drawing.assert_close(got, want, dtype)


if __name__ == "__main__":
    absltest.main()
