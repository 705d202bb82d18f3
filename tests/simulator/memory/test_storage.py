"""Allocations: never-written bytes, overlapping allocations, the first write to an argument."""

import threading
import time
import types

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.memory.storage import Storage
from tests.simulator import harness
from tests.simulator.harness import tile


def _sb(*shape, dtype="float32", name="", address=None):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf, name=name, address=address)


class UninitializedTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("arithmetic", lambda t: nisa.tensor_scalar(tile(4, 8), t, nl.add, 1.0)),
        # A maximum or a predicate can hide a NaN, and integers have none.
        ("maximum", lambda t: nisa.tensor_scalar(tile(4, 8), t, nl.maximum, 1.0)),
        ("reduction", lambda t: nisa.tensor_reduce(tile(4, 1), nl.maximum, t, 1)),
        (
            "predicate",
            lambda t: nisa.tensor_copy_predicated(tile(4, 8), tile(4, 8), t.view(nl.uint32)),
        ),
        ("matmul", lambda t: nisa.nc_matmul(harness.empty(8, 8), t, tile(4, 8))),
        ("store", lambda t: nisa.dma_copy(harness.hbm(4, 8), t)),
        ("copy", lambda t: nisa.tensor_copy(tile(4, 8), t)),
        ("transpose", lambda t: nisa.nc_transpose(harness.empty(8, 4), t)),
        ("bias", lambda t: nisa.activation(tile(4, 8), nl.exp, tile(4, 8), bias=t[:, 4:5])),
    )
    def test_one_missing_element_is_found(self, use):
        def body():
            t = _sb(4, 8, name="scores")
            nisa.memset(t[:, 0:4], 1.0)
            nisa.memset(t[:, 5:8], 1.0)
            use(t)

        with self.assertRaisesRegex(
            simulator.UninitializedReadError,
            r"sbuf tensor 'scores' allocated at .*test_storage.py:\d+ reads . of .* elements that "
            r"were never written, the first at index \(0, [04]\) \(.*test_storage.py:\d+\)",
        ):
            harness.run(body)

    def test_the_missing_element_matters_only_where_read(self):
        def body():
            t = _sb(4, 8)
            nisa.memset(t[:, ::2], 1.0)
            nisa.tensor_copy(tile(4, 4), t[:, ::2])

        harness.run(body)

    @parameterized.named_parameters(
        # Each writes as many elements as the tensor has, but some of them twice.
        ("overlapping", lambda t: nisa.memset(t.ap([[16, 2], [1, 4], [2, 4]]), 1.0), 12),
        ("repeated", lambda t: nisa.memset(t.ap([[16, 2], [0, 2], [1, 8]]), 1.0), 16),
    )
    def test_elements_written_twice_leave_others_unwritten(self, write, missing):
        def body():
            t = _sb(2, 16)
            write(t)
            nisa.tensor_copy(tile(2, 16), t)

        with self.assertRaisesRegex(
            simulator.UninitializedReadError, f" {missing} of 32 elements that were never written"
        ):
            harness.run(body)

    def test_a_row_of_hbm_written_four_times_leaves_others_unwritten(self):
        def body():
            out = nl.ndarray((4, 16), nl.float32, buffer=nl.shared_hbm, name="out")
            nisa.dma_copy(out.ap([[0, 4], [1, 16]]), tile(4, 16))
            return out

        with self.assertRaisesRegex(
            simulator.UninitializedReadError, "returns .*'out'.* 192 of its 256 bytes"
        ):
            harness.run(body)

    def test_a_permuted_write_of_all_elements_is_whole(self):
        def body():
            out = nl.ndarray((4, 16), nl.float32, buffer=nl.shared_hbm)
            t = _sb(4, 16)
            nisa.memset(t.ap([[16, 4], [1, 4], [4, 4]]), 1.0)
            nisa.dma_copy(out.permute((1, 0)), tile(16, 4))
            self.assertIsNone(t.storage.shadow)
            self.assertIsNone(out.storage.shadow)
            return out

        harness.run(body)

    def test_one_missing_byte(self):
        def body():
            t = _sb(1, 4, dtype="uint8")
            nisa.memset(t[:, 0:3], 1)
            nisa.tensor_copy(tile(1, 1), t.view(nl.float32))

        with self.assertRaises(simulator.UninitializedReadError):
            harness.run(body)

    def test_hbm(self):
        def body():
            scratch = nl.ndarray((4, 8), nl.float32, buffer=nl.hbm, name="scratch")
            nisa.dma_copy(scratch[0:3, :], tile(3, 8))
            nl.load(scratch)

        with self.assertRaisesRegex(
            simulator.UninitializedReadError, "'scratch' .* 8 of 32 elements"
        ):
            harness.run(body)

    def test_a_gathered_row(self):
        def body():
            scratch = nl.ndarray((4, 8), nl.float32, buffer=nl.hbm)
            nisa.dma_copy(scratch[0:3, :], tile(3, 8))
            rows = tile(2, 1, dtype="uint32", value=3)
            nisa.dma_copy(tile(2, 8), scratch.vector_select(0, rows))

        with self.assertRaisesRegex(simulator.UninitializedReadError, "16 of 16 elements"):
            harness.run(body)

    def test_a_returned_tensor(self):
        def body():
            out = nl.ndarray((4, 8), nl.float32, buffer=nl.shared_hbm, name="out")
            nisa.dma_copy(out[0:2, :], tile(2, 8))
            return out

        with self.assertRaisesRegex(
            simulator.UninitializedReadError, "returns .*'out'.* 64 of its 128 bytes"
        ):
            harness.run(body)

    def test_report_collects_and_goes_on(self):
        def body():
            out = nl.ndarray((1, 4), nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, _sb(1, 4, name="nothing"))
            return out

        result = harness.run(body, uninitialized="report")
        self.assertEqual([f.kind for f in result.findings], ["uninitialized"])
        self.assertIn("'nothing'", result.findings[0].message)
        # Poison, not a plausible number.
        self.assertTrue(np.isnan(result.outputs[0]).all())

    def test_ignore_tracks_nothing(self):
        result = harness.run(
            lambda: nisa.tensor_copy(tile(1, 4), _sb(1, 4)), uninitialized="ignore"
        )
        self.assertEqual(result.findings, [])

    def test_kernel_arguments_count_as_written(self):
        result = harness.run(lambda x: nl.load(x) and None, np.zeros((4, 4), np.float32))
        self.assertEqual(result.findings, [])


class OverlapTest(parameterized.TestCase):
    def _overwritten(self, second):
        def body():
            a = _sb(128, 16, name="first", address=(0, 1024))
            nisa.memset(a, 1.0)
            b = second()
            nisa.memset(b, 2.0)
            nisa.tensor_copy(tile(128, 16), a)

        return body

    @parameterized.named_parameters(
        ("same_place", lambda: _sb(128, 16, name="second", address=(0, 1024)), 2048),
        ("last_element", lambda: _sb(128, 4, name="second", address=(0, 1084)), 128),
        ("one_partition", lambda: _sb(1, 4, name="second", address=(32, 1024)), 4),
        (
            "another_dtype",
            lambda: _sb(128, 1, dtype="uint8", name="second", address=(0, 1027)),
            128,
        ),
    )
    def test_a_live_tensor_that_another_overwrote(self, second, count):
        with self.assertRaisesRegex(
            simulator.UninitializedReadError,
            rf"'first' at address \(0, 1024\) .* reads {count} of 2048 elements that were never "
            r"written or were overwritten.*overlapped by the sbuf tensor 'second' at address",
        ):
            harness.run(self._overwritten(second))

    @parameterized.named_parameters(
        ("beside", lambda: _sb(128, 16, address=(0, 1088))),
        ("below", lambda: _sb(128, 16, address=(0, 960))),
        ("without_address", lambda: _sb(128, 16)),
    )
    def test_neighbors_do_not_overlap(self, second):
        harness.run(self._overwritten(second))

    def test_only_the_written_bytes_are_lost(self):
        def body():
            a = _sb(1, 8, address=(0, 0))
            nisa.memset(a, 1.0)
            b = _sb(1, 8, address=(0, 0))
            nisa.memset(b[:, ::2], 2.0)
            nisa.tensor_copy(tile(1, 4), a[:, 1::2])
            nisa.tensor_copy(tile(1, 4), a[:, ::2])

        with self.assertRaisesRegex(simulator.UninitializedReadError, "4 of 4 elements"):
            harness.run(body)

    def test_buffers_that_take_turns(self):
        # Allocated ahead at the same address, each written before it is read.
        def body():
            buffers = [_sb(128, 16, address=(0, 64 * (i % 2))) for i in range(6)]
            for i, buffer in enumerate(buffers):
                nisa.memset(buffer, float(i))
                nisa.tensor_copy(tile(128, 16), buffer)

        harness.run(body)

    def test_two_tensors_at_one_address_share_bytes(self):
        def body():
            a = _sb(1, 1, address=(0, 0))
            b = _sb(1, 1, dtype="uint32", address=(0, 0))
            nisa.memset(a, 1.0)
            self.assertEqual(int(b.numpy()[0, 0]), 0x3F800000)

        harness.run(body)

    def test_psum_accumulation_does_not_survive_an_overlap(self):
        def body():
            ones = tile(2, 4)
            a = nl.ndarray((4, 4), nl.float32, buffer=nl.psum, address=(0, 0))
            nisa.nc_matmul(a, ones, ones)
            b = nl.ndarray((4, 4), nl.float32, buffer=nl.psum, address=(0, 0))
            nisa.nc_matmul(b, ones, ones)
            nisa.nc_matmul(a, ones, ones, accumulate=True)

        with self.assertRaisesRegex(simulator.NkiValidationError, "not wholly started by a matmul"):
            harness.run(body)


class FirstWriteTest(absltest.TestCase):
    def test_both_cores_first_write_copies_once(self):
        """A second copy would lose what was written to the first."""
        copies = []

        class SlowBytes:
            def copy(self):
                copies.append(1)
                time.sleep(0.02)
                return self

        storage = types.SimpleNamespace(is_input=True, copied=False, written=False)
        storage.bytes = SlowBytes()
        threads = [
            threading.Thread(target=Storage.prepare_write, args=(storage,)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertLen(copies, 1)
        self.assertTrue(storage.written)
