"""Which keys the kernel attends at once: all of them, once, in few long blocks that fit on chip."""

from __future__ import annotations

import dataclasses
import types

import nki.language as nl
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg.kernels.attention_blocks import Task, attention_tasks
from jax_tkg.kernels.divisions import divides_sequences, head_chunks, mask_groups
from jax_tkg.kernels.limits import PARTITIONS, PSUM_BANK, PSUM_GROUP_BANKS, RING_SLOT_BYTES
from jax_tkg.kernels.sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Drawn:
    B: int
    S: int
    q: int
    d: int
    S_prior: int
    S_max: int
    block_len: int
    dtype: str
    experts: int = 0

    def sizes(self) -> Sizes:
        return Sizes(
            self.B,
            self.S,
            256,
            256,
            self.d,
            self.q,
            1,
            self.S_prior,
            self.S_max,
            getattr(nl, self.dtype),
            experts=self.experts,
            cache_rows=self.B * 8,
            block_len=self.block_len,
            n=8 if self.block_len else 0,
        )

    def tasks(self, cores: int, core: int) -> list[Task]:
        return attention_tasks(self.sizes(), types.SimpleNamespace(count=cores, index=core))


@st.composite
def _drawn(draw: st.DrawFn) -> Drawn:
    S, q = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from((1, 3, 8, 32, 64)))
    B = draw(st.sampled_from((1, draw(st.integers(1, 128 // S)))))
    d = draw(st.sampled_from((64, 80, 128, 256)))
    dtype = draw(st.sampled_from(("bfloat16", "float32")))
    block_len = draw(st.sampled_from((0, 0, 16, 48, 128, 1024)))
    S_prior = draw(st.integers(0, draw(st.sampled_from((300, 4000, 20_000)))))
    S_max = S_prior + draw(st.integers(0, 300))
    return Drawn(B, S, q, d, S_prior, S_max, block_len, dtype, draw(st.sampled_from((0, 8))))


class AttentionBlocksTest(parameterized.TestCase):
    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(drawn=_drawn(), cores=st.sampled_from((1, 2)))
    def test_every_key_once_and_within_the_buffers(self, drawn: Drawn, cores: int) -> None:
        """Once in all, or once on each core that attends all slots of all sequences."""
        attended = np.zeros((drawn.B, drawn.S_prior), int)
        new = np.zeros(drawn.B, int)
        item = 2 if drawn.dtype == "bfloat16" else 4
        for core in range(cores):
            for task in drawn.tasks(cores, core):
                group, block = task.group, task.block
                own = slice(group.first, group.first + group.count)
                self.assertLessEqual(block.chunks, group.per_bank * PSUM_GROUP_BANKS)
                new[own] += block.active_rows > 0
                keys = block.key_slots * head_chunks(drawn.d) * item
                self.assertLessEqual(keys, RING_SLOT_BYTES)
                places: set[tuple[int, int]] = set()
                for segment in block.segments:
                    taken = {(segment.half, segment.place + i) for i in range(segment.slots)}
                    self.assertTrue(places.isdisjoint(taken))
                    places |= taken
                    self.assertLessEqual(segment.place + segment.slots, block.key_slots)
                    self.assertLessEqual(segment.half, int(drawn.d == 64))
                    end = segment.start + segment.attended
                    self.assertGreater(segment.attended, 0)
                    self.assertLessEqual(segment.start + segment.slots, drawn.S_max)
                    attended[own, segment.start : end] += 1
                    # Chunks of keys, and of values, of one KV head are in one buffer.
                    keys = segment.slots * head_chunks(drawn.d) * item
                    self.assertLessEqual(
                        max(keys, segment.chunks * drawn.d * item), RING_SLOT_BYTES
                    )
        divided = drawn.sizes().divides_slots(cores) or divides_sequences(drawn.B, cores)
        times = 1 if divided else cores
        np.testing.assert_array_equal(attended, times)
        np.testing.assert_array_equal(new, times)

    @parameterized.parameters(
        # B, slots, experts, cores -> whether cores divide slots; a slot has 256 bytes of bfloat16
        # keys and as many of values.
        (1, 128, 0, 2, False),
        (1, 129, 0, 2, True),
        (3, 129, 0, 2, True),
        (2, 36864, 0, 2, False),
        (1, 36864, 0, 1, False),
        (1, 2048, 8, 2, False),
        (1, 2049, 8, 2, True),
        (3, 2048, 8, 2, True),
    )
    def test_short_contexts_are_attended_twice(
        self, B: int, slots: int, experts: int, cores: int, divides: bool
    ) -> None:
        """With experts those that both cores read while HBM waits for the router."""
        drawn = Drawn(B, 1, 8, 128, slots, slots + 1, 0, "bfloat16", experts)
        self.assertEqual(drawn.sizes().divides_slots(cores), divides)
        slots_of_both = sum(
            segment.attended
            for core in range(cores)
            for task in drawn.tasks(cores, core)
            for segment in task.block.segments
            if task.group.first == 0
        )
        alone = divides or cores == 1 or B % 2 == 0
        self.assertEqual(slots_of_both, slots if alone else 2 * slots)

    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(drawn=_drawn())
    def test_masks_lie_as_two_cores_attend(self, drawn: Drawn) -> None:
        """So that the mask of a group of sequences is in one piece for each partition."""
        found = mask_groups(
            drawn.B,
            drawn.q * drawn.S,
            drawn.S_prior,
            drawn.d,
            2 if drawn.dtype == "bfloat16" else 4,
            drawn.block_len,
            1,
        )
        tasks = [task for core in (0, 1) for task in drawn.tasks(2, core)]
        groups = {(task.group.first, task.group.count) for task in tasks}
        self.assertEqual(groups, set(found))
        counted = [b for first, count in found for b in range(first, first + count)]
        self.assertEqual(counted, list(range(drawn.B)))

    @parameterized.parameters(
        # B, S, slots, cores -> bytes of a run of bfloat16 values at least
        (1, 1, 36864, 2, 11000),
        (2, 1, 36864, 2, 14000),
        (16, 1, 10240, 2, 9900),
        (16, 4, 10240, 2, 9900),
        (4, 1, 1023, 2, 2048),
        (1, 1, 1023, 1, 2048),
    )
    def test_runs_are_long(self, B: int, S: int, slots: int, cores: int, least: int) -> None:
        drawn = Drawn(B, S, 8, 128, slots, slots + S, 0, "bfloat16")
        runs = [
            segment.chunks * 256
            for task in drawn.tasks(cores, 0)
            for segment in task.block.segments
        ]
        self.assertGreaterEqual(min(runs), least)

    def test_blocks_are_of_similar_length(self) -> None:
        lengths = [
            task.block.chunks
            for task in Drawn(2, 1, 8, 128, 36864, 36864, 0, "bfloat16").tasks(2, 1)
        ]
        self.assertLen(lengths, 5)
        self.assertLessEqual(max(lengths) - min(lengths), 5)
        self.assertLessEqual(max(lengths), PSUM_BANK // 8)
        self.assertEqual(sum(lengths), 36864 // PARTITIONS + 1)


if __name__ == "__main__":
    absltest.main()
