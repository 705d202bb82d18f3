"""Dependencies through memory, against sets of bytes."""

import itertools

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.simulator.machine.record import Access
from jax_tkg.simulator.ordering import hazards
from tests.simulator.streams import Stream, access


def _bytes(found: Access) -> set[tuple[int, int]]:
    """Every (partition, byte) that an access touches."""
    free = list(zip(found.shape, found.strides, strict=True))
    partitions = [0]
    offsets = [0]
    if found.space != "hbm":
        entries = range(found.partitions) if found.entries is None else found.entries
        partitions = [found.partition_start + int(entry) for entry in entries]
        free = free[1:]
    elif found.rows is not None:
        offsets = [int(row) for row in found.rows]
        free = free[1:]
    base = (found.address or 0) + found.byte_start
    touched = set()
    for index in itertools.product(*(range(n) for n, _ in free)):
        at = base + sum(i * s for i, (_, s) in zip(index, free, strict=True))
        for offset in offsets:
            touched.update(at + offset + byte for byte in range(found.itemsize))
    return set(itertools.product(partitions, touched))


@st.composite
def _accesses(draw: st.DrawFn) -> Access:
    dims = draw(st.integers(1, 2))
    shape = [draw(st.integers(1, 3))]
    entries = draw(st.none() | st.sets(st.integers(0, shape[0] - 1), min_size=1).map(sorted))
    strides = [1 << 12]
    for _ in range(dims):
        shape.append(draw(st.integers(1, 4)))
        strides.append(draw(st.sampled_from((4, 8, 12, 16, 20, 32, 48))))
    return access(
        draw(st.sampled_from(("dst", "src"))),
        "sbuf",
        draw(st.integers(1, 2)),
        tuple(shape),
        start=4 * draw(st.integers(0, 12)) + 1000,
        strides=tuple(strides),
        partition=draw(st.integers(0, 3)),
        address=draw(st.sampled_from((None, 16, 32))),
        entries=entries,
    )


class RegionTest(parameterized.TestCase):
    @hypothesis.given(_accesses(), _accesses())
    @hypothesis.settings(max_examples=400, deadline=None)
    def test_never_misses_an_overlap(self, first: Access, second: Access) -> None:
        one, two = hazards.region_of(first), hazards.region_of(second)
        ours, theirs = _bytes(first), _bytes(second)
        if ours & theirs:
            self.assertTrue(one.overlaps(two))
            self.assertTrue(two.overlaps(one))
        if one.covers(two, two.start, two.end):
            self.assertLessEqual(theirs, ours)

    def test_interleaved_columns_are_apart(self):
        even = hazards.region_of(access("dst", "sbuf", 1, (4, 8), strides=(64, 8)))
        odd = hazards.region_of(access("dst", "sbuf", 1, (4, 8), start=4, strides=(64, 8)))
        self.assertFalse(even.overlaps(odd))
        self.assertTrue(even.overlaps(even))
        self.assertFalse(even.dense)

    def test_partitions_are_apart(self):
        low = hazards.region_of(access("dst", "sbuf", 1, (32, 8)))
        high = hazards.region_of(access("dst", "sbuf", 1, (32, 8), partition=32))
        self.assertFalse(low.overlaps(high))

    def test_gathered_rows(self):
        rows = hazards.region_of(
            access("src", "hbm", 1, (2, 4), rows=[64, 192], core=None, strides=(128, 4))
        )
        self.assertEqual((rows.start, rows.end), (64, 208))
        between = hazards.region_of(access("dst", "hbm", 1, (4,), start=128, core=None))
        self.assertFalse(rows.overlaps(between))
        last = hazards.region_of(access("dst", "hbm", 1, (4,), start=192, core=None))
        self.assertTrue(rows.overlaps(last))

    def test_rows_that_are_not_skipped(self):
        rows = hazards.region_of(access("dst", "hbm", 1, (8, 4), core=None, entries=[1, 5]))
        self.assertEqual((rows.start, rows.end), (16, 96))
        between = hazards.region_of(access("dst", "hbm", 1, (4,), start=32, core=None))
        self.assertFalse(rows.overlaps(between))


class HazardsTest(parameterized.TestCase):
    def _all(self, stream: Stream) -> list[dict[int, str]]:
        found = hazards.Hazards(stream.instructions)
        return [found.add(i, i.engine) for i in stream.instructions]

    def test_kinds(self):
        stream = Stream()
        stream.vector(2, 1)  # 0 writes 2
        stream.scalar(3, 2, 480)  # 1 reads 2
        stream.vector(2, 4)  # 2 overwrites what 1 read and 0 wrote
        stream.vector(5, 6)  # 3 has nothing to do with it
        self.assertEqual(self._all(stream), [{}, {0: "data"}, {0: "overwrite", 1: "reuse"}, {}])

    def test_a_covering_write_stands_for_earlier_uses(self):
        stream = Stream()
        for _ in range(3):
            stream.vector(2, 1)
        self.assertEqual(self._all(stream), [{}, {0: "overwrite"}, {1: "overwrite"}])

    def test_a_part_does_not_stand_for_the_whole(self):
        stream = Stream()
        stream.vector(2, 1, 480)
        stream.vector(2, 1, 100)
        stream.scalar(3, 2, 480)
        self.assertEqual(self._all(stream)[2], {0: "data", 1: "data"})

    def test_reads_of_one_engine_run_in_order(self):
        stream = Stream()
        stream.vector(10, 1)
        stream.vector(11, 1)
        stream.scalar(12, 1, 480)
        stream.add("gpsimd", "memset", access("dst", "sbuf", 1, (128, 480)))
        self.assertEqual(self._all(stream)[3], {1: "reuse", 2: "reuse"})

    def test_reads_by_dma_do_not(self):
        stream = Stream()
        for storage in (20, 21):
            stream.add(
                "dma",
                "dma_copy",
                access("src", "sbuf", 1, (128, 4)),
                access("dst", "hbm", storage, (128, 4), core=None),
            )
        stream.add("gpsimd", "memset", access("dst", "sbuf", 1, (128, 4)))
        self.assertEqual(self._all(stream)[2], {0: "reuse", 1: "reuse"})

    def test_tensors_at_addresses_share_memory(self):
        stream = Stream()
        for storage, address in ((1, 0), (2, 12), (3, 16)):
            stream.add(
                "vector", "memset", access("dst", "sbuf", storage, (128, 4), address=address)
            )
        self.assertEqual(self._all(stream), [{}, {0: "overwrite"}, {1: "overwrite"}])

    def test_memory_that_is_only_read(self):
        stream = Stream()
        stream.load(5, 64)
        stream.load(6, 64)
        self.assertEqual(self._all(stream), [{}, {}])

    def test_barrier(self):
        stream = Stream()
        stored = {"space": "hbm", "storage": 9, "shape": (4, 4), "core": None}
        stream.add("dma", "dma_copy", access("dst", **stored))
        stream.add("gpsimd", "core_barrier", meeting=(9,))
        stream.add("dma", "dma_copy", access("src", **stored))
        stream.add("gpsimd", "core_barrier", meeting=(8,))
        found = self._all(stream)
        self.assertEqual(found[1], {0: "overwrite"})
        self.assertEqual(found[2], {1: "data"})
        self.assertEqual(found[3], {})

    def test_registers(self):
        stream = Stream()
        stream.add("sync", "register_load", access("src", "sbuf", 1, (1, 1)))
        stream.load(2, 64, register_writers=[0])
        self.assertEqual(self._all(stream)[1], {0: "data"})

    def test_explicit(self):
        stream = Stream()
        stream.vector(2, 1)
        stream.add("vector", "memset", access("dst", "sbuf", 7, (1, 1)), depends_on=[0])
        self.assertEqual(self._all(stream)[1], {0: "explicit"})

    @hypothesis.given(st.lists(_accesses(), min_size=2, max_size=12))
    @hypothesis.settings(max_examples=200, deadline=None)
    def test_every_conflict_is_ordered(self, accesses: list[Access]) -> None:
        """Directly or through others: for instructions of an engine that runs out of order."""
        stream = Stream()
        for each in accesses:
            stream.add("dma", "dma_copy", each)
        before: list[set[int]] = []
        for found in self._all(stream):
            reached = set(found)
            for index in found:
                reached |= before[index]
            before.append(reached)
        for late, second in enumerate(accesses):
            for early, first in enumerate(accesses[:late]):
                conflict = first.is_write or second.is_write
                if conflict and first.memory == second.memory and _bytes(first) & _bytes(second):
                    self.assertIn(early, before[late])


if __name__ == "__main__":
    absltest.main()
