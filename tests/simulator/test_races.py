"""The race detector: what is unordered is reported on every run, what is ordered never."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import tile


def _shared(*shape, name="shared"):
    return nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm, name=name)


def _found(body, *arrays):
    result = harness.run(body, *arrays, lnc=2, races="report")
    return [f.message for f in result.findings if f.kind == "race"]


class RaceTest(parameterized.TestCase):
    def test_write_and_read(self):
        def body(x):
            if nl.program_id(0) == 0:
                nisa.dma_copy(x, tile(4, 4))
            else:
                nl.load(x)

        for _ in range(5):
            (message,) = _found(body, np.zeros((4, 4), np.float32))
            self.assertRegex(
                message,
                r"race on HBM tensor '\[0\]': core 0 writes dst of dma_copy at .*py:\d+, core 1 "
                r"reads src of dma_copy at .*py:\d+, and nothing orders the two",
            )

    def test_two_different_writes(self):
        def body():
            nisa.dma_copy(_shared(4, 4), tile(4, 4, value=nl.program_id(0)))

        with self.assertRaisesRegex(simulator.RaceError, "'shared'.*writes.*writes"):
            harness.run(body, lnc=2)

    def test_a_barrier_orders(self):
        def body():
            shared = _shared(4, 4)
            if nl.program_id(0) == 0:
                nisa.dma_copy(shared, tile(4, 4))
            nisa.core_barrier(shared, (0, 1))
            nl.load(shared)

        self.assertEqual(_found(body), [])

    def test_a_write_after_the_barrier_races_with_a_read_after_it(self):
        def body(x):
            nisa.core_barrier(x, (0, 1))
            if nl.program_id(0) == 0:
                nisa.dma_copy(x, tile(4, 4))
            else:
                nl.load(x)

        self.assertLen(_found(body, np.zeros((4, 4), np.float32)), 1)

    def test_disjoint_rows_and_interleaved_columns(self):
        def body():
            me = nl.program_id(0)
            nisa.dma_copy(_shared(4, 8, name="rows")[2 * me : 2 * me + 2], tile(2, 8, value=me))
            nisa.dma_copy(_shared(4, 8, name="columns")[:, me::2], tile(4, 4, value=me))

        self.assertEqual(_found(body), [])

    def test_one_common_element(self):
        def body():
            me = nl.program_id(0)
            nisa.dma_copy(_shared(4, 9)[:, 4 * me : 4 * me + 5], tile(4, 5, value=me))

        self.assertLen(_found(body), 1)

    @parameterized.parameters(([0, 2], [1, 3], 0), ([0, 2], [2, 3], 1))
    def test_scattered_rows(self, first, second, races):
        def body(x, rows):
            mine = nl.load(rows[:, nl.ds(nl.program_id(0), 1)])
            nisa.dma_copy(x.vector_select(0, mine), tile(2, 8, value=nl.program_id(0)))

        rows = np.array([first, second], np.uint32).T.copy()
        self.assertLen(_found(body, np.zeros((4, 8), np.float32), rows), races)

    def test_reads_do_not_race(self):
        self.assertEqual(_found(lambda x: nl.load(x) and None, np.ones((4, 4), np.float32)), [])

    def test_private_memory_does_not_race(self):
        def body():
            scratch = nl.ndarray((4, 4), nl.float32, buffer=nl.private_hbm)
            nisa.dma_copy(scratch, tile(4, 4, value=nl.program_id(0)))
            nl.load(scratch)

        self.assertEqual(_found(body), [])

    def test_twin_writes_of_equal_values_do_not_race(self):
        # Each core writes the same and reads on after its own write.
        def body():
            shared = _shared(4, 4)
            nisa.dma_copy(shared, tile(4, 4, value=3))
            nl.load(shared)

        self.assertEqual(_found(body), [])

    def test_reading_before_the_own_twin_write_races(self):
        def body(x):
            if nl.program_id(0) == 0:
                nl.load(x)
            nisa.dma_copy(x, tile(4, 4, value=3))

        self.assertLen(_found(body, np.zeros((4, 4), np.float32)), 1)

    def test_works_without_a_record(self):
        def body():
            nisa.dma_copy(_shared(4, 4), tile(4, 4, value=nl.program_id(0)))

        with self.assertRaises(simulator.RaceError):
            harness.run(body, lnc=2, record=False)

    def test_ignore(self):
        def body():
            nisa.dma_copy(_shared(4, 4), tile(4, 4, value=nl.program_id(0)))

        self.assertEqual(harness.run(body, lnc=2, races="ignore").findings, [])
