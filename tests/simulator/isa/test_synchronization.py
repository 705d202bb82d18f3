"""The two cores of a logical core: exchange, barriers, registers."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import tile

_X = np.arange(256, dtype=np.float32).reshape(128, 2)


def _swap(pipe_id=0, **options):
    me = nl.program_id(0)
    mine, theirs = tile(4, 2, value=me + 1), nl.ndarray((4, 2), dtype=nl.float32)
    nisa.sendrecv(
        src=mine, dst=theirs, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=pipe_id, **options
    )
    return theirs


def _collect(value):
    """Each core's column of a shared tensor."""
    me = nl.program_id(0)
    out = nl.ndarray((value.shape[0], 2), dtype=value.dtype, buffer=nl.shared_hbm, name="out")
    nisa.dma_copy(out[:, me : me + 1], value[:, 0:1])
    nisa.core_barrier(out, (0, 1))
    return out


class ExchangeTest(parameterized.TestCase):
    def test_sendrecv_swaps(self):
        result = harness.run(lambda: _collect(_swap()), lnc=2)
        np.testing.assert_array_equal(result.outputs[0], [[2, 1]] * 4)

    def test_pipes_are_independent_in_order(self):
        def kernel():
            first, second = _swap(0), _swap(3)
            nisa.tensor_tensor(first, first, second, nl.add)
            return _collect(first)

        result = harness.run(kernel, lnc=2)
        np.testing.assert_array_equal(result.outputs[0], [[4, 2]] * 4)

    def test_barrier_publishes_shared_memory(self):
        def kernel(x):
            me = nl.program_id(0)
            shared = nl.ndarray((128, 2), dtype=x.dtype, buffer=nl.shared_hbm, name="shared")
            nisa.dma_copy(shared[:, me : me + 1], x[:, me : me + 1])
            nisa.core_barrier(shared, (0, 1))
            out = nl.ndarray((2, 128), dtype=x.dtype, buffer=nl.shared_hbm, name="out")
            other = nl.load(shared[:, 1 - me : 2 - me])
            nisa.dma_copy(out[1 - me : 2 - me, :], other)
            return out

        for _ in range(5):
            np.testing.assert_array_equal(harness.run(kernel, _X, lnc=2).outputs[0], _X.T)

    def test_never_written_bytes_may_be_sent_but_not_used(self):
        def exchange():
            me = nl.program_id(0)
            mine, theirs = nl.ndarray((8, 1), nl.float32), nl.ndarray((8, 1), nl.float32)
            nisa.memset(mine[0:4], 1.0)
            nisa.sendrecv(mine, theirs, 1 - me, 1 - me, 0)
            return theirs

        result = harness.run(lambda: _collect(exchange()[0:4]), lnc=2)
        np.testing.assert_array_equal(result.outputs[0], 1)
        with self.assertRaisesRegex(simulator.UninitializedReadError, "4 of 8 elements"):
            harness.run(lambda: _collect(exchange()), lnc=2)


class RegisterTest(parameterized.TestCase):
    def test_load_move_store(self):
        def kernel(x):
            loaded, copied = nisa.register_alloc(), nisa.register_alloc(0)
            nisa.register_load(loaded, x)
            nisa.register_move(copied, loaded)
            out = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.shared_hbm)
            nisa.register_store(out, copied)
            return out

        result = harness.run(kernel, np.array([[-42]], np.int32))
        np.testing.assert_array_equal(result.outputs[0], [[-42]])

    def test_readers_know_what_loaded_a_register(self):
        """Directly or through copies; a constant that is put in later was loaded by nothing."""

        def kernel(x, numbers):
            loaded = nisa.register_alloc(numbers)
            copied = nisa.register_alloc(loaded)
            nisa.register_move(copied, loaded)
            for register in (loaded, copied):
                nisa.dma_copy(tile(1, 4), x.select(0, register))
                nisa.tensor_scalar(tile(1, 4), tile(1, 4), nl.add, register)
                nisa.register_store(tile(1, 1, dtype="int32"), register)
            nisa.register_move(copied, 1)
            nisa.register_store(tile(1, 1, dtype="int32"), copied)

        x, numbers = np.ones((4, 4), np.float32), np.array([[2]], np.int32)
        stream = harness.run(kernel, x, numbers).record.streams[(0, 0)]
        (load,) = [i for i in stream if i.opcode == "register_load"]
        readers = [i for i in stream if i.opcode not in ("register_load", "memset")]
        writers = [i.attributes.get("register_writers") for i in readers]
        self.assertEqual(writers, 6 * [[load.index]] + [None])

    def test_a_copy_in_a_loop_knows_what_loaded_the_condition(self):
        def kernel(numbers):
            def body(register):
                nisa.register_store(tile(1, 1, dtype="int32"), register)
                return nisa.register_alloc(0)

            nl.while_loop(nisa.register_alloc(numbers), body)

        stream = harness.run(kernel, np.array([[2]], np.int32)).record.streams[(0, 0)]
        (load,) = [i for i in stream if i.opcode == "register_load"]
        (store,) = [i for i in stream if i.opcode == "register_store"]
        self.assertEqual(store.attributes["register_writers"], [load.index])

    def test_an_empty_register_is_an_error(self):
        with self.assertRaisesRegex(simulator.UninitializedReadError, "register is read before"):
            harness.run(lambda: nisa.register_alloc().read())

    @parameterized.parameters(("trn1", 2), ("trn2", 3), ("trn3", 4))
    def test_version_is_ordered(self, target, generation):
        def kernel():
            version = nisa.get_nc_version()
            self.assertEqual(version, nisa.nc_version(generation))
            self.assertEqual(version >= nisa.nc_version.gen3, generation >= 3)

        harness.run(kernel, target=target)


class FaultTest(parameterized.TestCase):
    def test_a_core_that_never_comes(self):
        def kernel():
            if nl.program_id(0) == 0:
                _swap()

        with self.assertRaisesRegex(
            simulator.MissingPeerError,
            r"sendrecv pipe 0 at .*test_synchronization.py:\d+: rank 0 core 0 waits for "
            "rank 0 core 1, which has ended",
        ):
            harness.must_end(harness.run, kernel, lnc=2)

    def test_cores_at_different_meetings(self):
        def kernel():
            if nl.program_id(0) == 0:
                _swap(pipe_id=1)
            else:
                _swap(pipe_id=2)

        with self.assertRaisesRegex(
            simulator.MissingPeerError, "which waits at sendrecv pipe 2 at .*py:"
        ):
            harness.must_end(harness.run, kernel, lnc=2)

    def test_barriers_on_different_tensors(self):
        def kernel():
            a = nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm, name="a")
            b = nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm, name="b")
            nisa.core_barrier(a if nl.program_id(0) else b, (0, 1))

        with self.assertRaisesRegex(simulator.PeerMismatchError, "different tensors"):
            harness.must_end(harness.run, kernel, lnc=2)

    def test_exchange_of_different_shapes(self):
        def kernel():
            me = nl.program_id(0)
            a = tile(4, 2 + me)
            nisa.sendrecv(a, a, 1 - me, 1 - me, 0)

        with self.assertRaisesRegex(simulator.PeerMismatchError, "core 0 receives"):
            harness.must_end(harness.run, kernel, lnc=2)

    def test_one_core_failing_stops_the_other(self):
        def kernel():
            if nl.program_id(0) == 1:
                raise KeyError("the kernel's own error")
            _swap()

        with self.assertRaisesRegex(KeyError, "own error"):
            harness.must_end(harness.run, kernel, lnc=2)

    def test_shared_tensors_that_differ(self):
        def kernel():
            nl.ndarray((1, 1 + nl.program_id(0)), nl.float32, buffer=nl.shared_hbm, name="a")

        with self.assertRaisesRegex(simulator.NkiValidationError, "must specialize identically"):
            harness.must_end(harness.run, kernel, lnc=2)


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "barrier_needs_two_cores",
            lambda: nisa.core_barrier(nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm), (0, 1)),
            "core_barrier: needs a launch with LNC 2",
        ),
        (
            "barrier_needs_v3",
            lambda: nisa.core_barrier(nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm), (0, 1)),
            "core_barrier needs NeuronCore-v3",
            "trn1",
        ),
        (
            "exchange_needs_two_cores",
            lambda: nisa.sendrecv(tile(4, 4), tile(4, 4), 0, 0, 0),
            "sendrecv: needs a launch with LNC 2",
        ),
        (
            "register_load_of_one_element",
            lambda: nisa.register_load(nisa.register_alloc(), tile(1, 2, dtype="int32")),
            "exactly one element",
        ),
        (
            "register_store_to_one_element",
            lambda: nisa.register_store(tile(1, 2, dtype="int32"), nisa.register_alloc(1)),
            "exactly one element",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)

    @parameterized.named_parameters(
        (
            "barrier_cores",
            lambda: nisa.core_barrier(
                nl.ndarray((1, 1), nl.float32, buffer=nl.shared_hbm, name="a"), (0,)
            ),
            r"cores must be \(0, 1\)",
        ),
        (
            "barrier_in_shared_hbm",
            lambda: nisa.core_barrier(tile(4, 4), (0, 1)),
            "data must be a tensor in shared HBM",
        ),
        (
            "exchange_in_sbuf",
            lambda: nisa.sendrecv(harness.psum(4, 4), tile(4, 4), 1, 1, 0),
            "src must be in SBUF",
        ),
        (
            "exchange_shapes",
            lambda: nisa.sendrecv(tile(4, 4), tile(4, 5), 1, 1, 0),
            "same shape and dtype",
        ),
        (
            "exchange_ranks",
            lambda: nisa.sendrecv(tile(4, 4), tile(4, 4), 2, 1, 0),
            "send_to_rank must be 0 or 1, got 2",
        ),
        (
            "gpsimd_dma_size",
            lambda: nisa.sendrecv(
                tile(4, 257), tile(4, 257), 1, 1, 0, dma_engine=nisa.dma_engine.gpsimd_dma
            ),
            "at most 1024 bytes per partition of float32, got 1028",
        ),
    )
    def test_limit_of_two_cores(self, body, message):
        with self.assertRaisesRegex(simulator.NkiValidationError, message):
            harness.run(lambda: body() and None, lnc=2)
