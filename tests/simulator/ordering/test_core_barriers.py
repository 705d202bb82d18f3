"""The check of AWS's compiler for core barriers, beside the race detector, which allows more."""

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
    result = harness.run(body, *arrays, lnc=2, races="report", core_barriers="report", **options)
    kinds = [f.kind for f in result.findings]
    return kinds.count("race"), kinds.count("core_barrier")


class CoreBarrierTest(parameterized.TestCase):
    def test_write_and_read_without_a_barrier(self):
        def body(x):
            if nl.program_id(0) == 0:
                nisa.dma_copy(x, tile(4, 4))
            else:
                nl.load(x)

        with self.assertRaisesRegex(
            simulator.RaceError,
            r"HBM tensor '\[0\]' without a core barrier: core 0 writes dst of dma_copy at "
            r".*py:\d+, core 1 reads src of dma_copy at .*py:\d+, and no core_barrier on the same "
            "engine of both cores stands between the two",
        ):
            harness.run(
                body, np.zeros((4, 4), np.float32), lnc=2, races="ignore", core_barriers="error"
            )

    @parameterized.parameters("program", "dependencies")
    def test_a_barrier_separates(self, ordering):
        def body():
            shared = _shared(4, 4)
            if nl.program_id(0) == 0:
                nisa.dma_copy(shared, tile(4, 4))
            nisa.core_barrier(shared, (0, 1))
            nl.load(shared)

        self.assertEqual(_found(body, ordering=ordering), (0, 0))

    @parameterized.parameters("program", "dependencies")
    def test_both_before_and_both_behind_a_barrier(self, ordering):
        def body(x, y):
            for tensor in (x, y):
                if nl.program_id(0) == 0:
                    nisa.dma_copy(tensor, tile(4, 4))
                else:
                    nl.load(tensor)
                nisa.core_barrier(x, (0, 1))

        zeros = np.zeros((4, 4), np.float32)
        self.assertEqual(_found(body, zeros, zeros, ordering=ordering), (2, 2))

    def test_a_barrier_on_another_tensor_separates_in_program_order_only(self):
        def body():
            shared = _shared(4, 4)
            if nl.program_id(0) == 0:
                nisa.dma_copy(shared, tile(4, 4))
            nisa.core_barrier(_shared(1, 1, name="other"), (0, 1))
            if nl.program_id(0) == 1:
                nl.load(shared)

        self.assertEqual(_found(body), (0, 0))
        self.assertEqual(_found(body, ordering="dependencies"), (1, 1))

    @parameterized.parameters((nisa.engine.gpsimd, 0), (nisa.engine.vector, 1))
    def test_a_barrier_on_different_engines_does_not_count(self, engine, missing):
        def body():
            shared = _shared(4, 4)
            me = nl.program_id(0)
            if me == 0:
                nisa.dma_copy(shared, tile(4, 4))
            nisa.core_barrier(shared, (0, 1), engine=engine if me else nisa.engine.gpsimd)
            if me == 1:
                nl.load(shared)

        self.assertEqual(_found(body), (0, missing))

    def test_an_exchange_does_not_count(self):
        def body(cache):
            me = nl.program_id(0)
            old = nl.load(cache) if me == 0 else tile(4, 4)
            received = nl.ndarray((4, 4), dtype=nl.float32)
            nisa.sendrecv(old, received, 1 - me, 1 - me, 0)
            if me == 1:
                nisa.dma_copy(cache, received)

        zeros = np.zeros((4, 4), np.float32)
        for ordering in ("program", "dependencies"):
            self.assertEqual(_found(body, zeros, ordering=ordering), (0, 1))

    def test_a_collective_does_not_count(self):
        def body(x):
            out = _shared(4, 4, name="out")
            if nl.program_id(0) == 1:
                nisa.dma_copy(x, tile(4, 4))
            nccl.all_reduce([x], [out], nccl.ReplicaGroup([[0]]), nl.add)
            nl.load(out)

        # The first core stands for both: its read of x, and its write of what the other loads.
        self.assertEqual(_found(body, np.zeros((4, 4), np.float32)), (0, 2))

    def test_equal_writes_count(self):
        def body():
            nisa.dma_copy(_shared(4, 4), tile(4, 4, value=3))

        self.assertEqual(_found(body), (0, 1))

    def test_disjoint_bytes_and_reads_do_not(self):
        def body(x):
            me = nl.program_id(0)
            nl.load(x)
            nisa.dma_copy(_shared(4, 8)[:, me::2], tile(4, 4, value=me))

        self.assertEqual(_found(body, np.zeros((4, 4), np.float32)), (0, 0))

    def test_of_every_rank(self):
        def body(x):
            if int(nccl.rank_id()) == 1 and nl.program_id(0) == 0:
                nisa.dma_copy(x, tile(4, 4))
            else:
                nl.load(x)

        options = simulator.Options(races="ignore", core_barriers="report")
        zeros = np.zeros((4, 4), np.float32)
        result = simulator.run(body, [(zeros,), (zeros,)], lnc=2, options=options)
        self.assertLen(result.findings, 1)

    def test_as_a_kernel_asks_for_it(self):
        @simulator.jit
        def kernel():
            shared = _shared(4, 4)
            nisa.dma_copy(shared, tile(4, 4, value=3))
            return shared

        checked = kernel[2].enable_core_barrier_checker()
        with self.assertRaisesRegex(simulator.RaceError, "without a core barrier"):
            checked()
        with self.assertRaisesRegex(simulator.RaceError, "without a core barrier"):
            kernel.enable_core_barrier_checker()[2]()
        self.assertEqual(checked.disable_core_barrier_checker()().tolist(), [[3] * 4] * 4)

    def test_works_without_a_record_and_without_races(self):
        def body():
            nisa.dma_copy(_shared(4, 4), tile(4, 4, value=nl.program_id(0)))

        with self.assertRaises(simulator.RaceError):
            harness.run(body, lnc=2, record=False, races="ignore", core_barriers="error")

    def test_unknown_values(self):
        with self.assertRaisesRegex(ValueError, "core_barriers='yes': expected 'error'"):
            simulator.Options(core_barriers="yes")
