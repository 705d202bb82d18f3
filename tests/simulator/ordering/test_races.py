"""The race detector: what is unordered is reported on every run, what is ordered never."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import collectives as nccl
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import tile


def _shared(*shape, name="shared"):
    return nl.ndarray(shape, dtype=nl.float32, buffer=nl.shared_hbm, name=name)


def _found(body, *arrays, **options):
    result = harness.run(body, *arrays, lnc=2, races="report", **options)
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

    @parameterized.parameters(0, 1, 2)
    def test_of_every_rank(self, racing):
        def body(x):
            mine = int(nccl.rank_id()) == racing and nl.program_id(0) == 0
            if mine:
                nisa.dma_copy(x, tile(4, 4))
            else:
                nl.load(x)

        zeros = np.zeros((4, 4), np.float32)
        with self.assertRaisesRegex(simulator.RaceError, "core 0 writes dst of dma_copy"):
            simulator.run(body, [(zeros,)] * 3, lnc=2)

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


class OrderingTest(parameterized.TestCase):
    """``ordering="dependencies"``: a meeting orders what depends on it, and no more."""

    def _check(self, body, races, *arrays):
        self.assertEqual(_found(body, *arrays), [])
        self.assertLen(_found(body, *arrays, ordering="dependencies"), races)

    @parameterized.parameters((True, 0), (False, 1))
    def test_a_barrier_on_this_or_on_another_tensor(self, same, races):
        def body():
            shared, other = _shared(4, 4), _shared(4, 4, name="other")
            if nl.program_id(0) == 0:
                nisa.dma_copy(shared, tile(4, 4))
            nisa.core_barrier(shared if same else other, (0, 1))
            if nl.program_id(0) == 1:
                nl.load(shared)

        self._check(body, races)

    @parameterized.parameters((True, 0), (False, 1))
    def test_an_exchange_of_what_was_read(self, depends, races):
        # Core 1 may overwrite the cache only when core 0 has read it. It knows that once it has
        # what core 0 computed from it, if its write waits for that.
        def body(cache):
            me = nl.program_id(0)
            old = nl.load(cache) if me == 0 else tile(4, 4)
            received = nl.ndarray((4, 4), dtype=nl.float32)
            nisa.sendrecv(old, received, 1 - me, 1 - me, 0)
            if me == 1:
                nisa.dma_copy(cache, received if depends else tile(4, 4, value=7))

        self._check(body, races, np.zeros((4, 4), np.float32))

    def test_a_chain_over_several_instructions(self):
        def body():
            me = nl.program_id(0)
            first, second = _shared(4, 4, name="first"), _shared(4, 4, name="second")
            if me == 0:
                nisa.dma_copy(first, tile(4, 4))
                copied = nl.load(first)
                nisa.dma_copy(second, copied)
            nisa.core_barrier(second, (0, 1))
            if me == 1:
                seen = nl.load(second)
                # This write comes after core 0 has read `first`, for it stores what came of it.
                nisa.dma_copy(first, seen)

        self._check(body, 0)

    @parameterized.parameters((True, 0), (False, 1))
    def test_a_chain_through_a_register(self, loaded, races):
        """Core 1 writes to the row that it read from the tensor that the barrier is about."""

        def body(cache):
            me = nl.program_id(0)
            number = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.shared_hbm, name="number")
            if me == 0:
                old = nl.load(cache[0:1])
                nisa.dma_copy(number, old[:, 0:1])
            nisa.core_barrier(number, (0, 1))
            if me == 1:
                register = nisa.register_alloc(0)
                if loaded:
                    nisa.register_load(register, nl.load(number))
                nisa.dma_copy(cache.select(0, register), tile(1, 4))

        self._check(body, races, np.zeros((4, 4), np.float32))

    def test_a_chain_through_a_reader_that_holds_a_writer_back(self):
        def body(a):
            second = _shared(4, 4, name="second")
            if nl.program_id(0) == 0:
                nl.load(a)
                # This waits for the load, for it overwrites what that reads.
                nisa.dma_copy(a, tile(4, 4))
                nisa.dma_copy(second, nl.load(a))
            nisa.core_barrier(second, (0, 1))
            if nl.program_id(0) == 1:
                nisa.dma_copy(a, nl.load(second))

        self._check(body, 0, np.zeros((4, 4), np.float32))

    @parameterized.parameters(0, 1)
    def test_a_collective_orders_its_tensors(self, writer):
        # The first core accesses them for both; the second core's write waits for it all the same.
        def body(x):
            me = nl.program_id(0)
            out = _shared(4, 4, name="out")
            if me == writer:
                nisa.dma_copy(x, tile(4, 4))
            nccl.all_reduce([x], [out], nccl.ReplicaGroup([[0]]), nl.add)
            nl.load(out)

        self._check(body, 0, np.zeros((4, 4), np.float32))

    def test_unknown_orderings(self):
        with self.assertRaisesRegex(ValueError, "ordering='time'"):
            simulator.Options(ordering="time")
