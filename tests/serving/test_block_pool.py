"""Free and taken blocks, against a set of numbers."""

from __future__ import annotations

import hypothesis
from absl.testing import absltest
from hypothesis import strategies as st

from jax_tkg.serving.block_pool import BlockPool


class BlockPoolTest(absltest.TestCase):
    @hypothesis.given(st.lists(st.integers(-5, 6), max_size=30))
    def test_no_block_is_lost_or_taken_twice(self, steps: list[int]) -> None:
        """Positive numbers take so many; others give back what was taken then."""
        pool, held = BlockPool(10), []
        for step in steps:
            if step > 0:
                before = pool.free
                blocks = pool.take(step)
                if step > before:
                    self.assertIsNone(blocks)
                    self.assertEqual(pool.free, before)
                else:
                    held.append(blocks)
            elif held:
                pool.give_back(held.pop(step % len(held)))
            taken = [block for blocks in held for block in blocks]
            self.assertLen(set(taken), len(taken))
            self.assertContainsSubset(taken, range(10))
            self.assertEqual(pool.free, 10 - len(taken))

    def test_twice(self) -> None:
        pool = BlockPool(2)
        blocks = pool.take(1)
        pool.give_back(blocks)
        with self.assertRaisesRegex(ValueError, f"blocks: expected blocks .*, got {blocks[0]}"):
            pool.give_back(blocks)
        self.assertEqual(pool.free, 2)


if __name__ == "__main__":
    absltest.main()
