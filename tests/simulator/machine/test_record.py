"""The recorded instruction stream."""

import pathlib

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import tile


def _kernel(x):
    a = nl.load(x)
    b = nl.ndarray((64, 8), dtype=nl.bfloat16, buffer=nl.sbuf, name="b", address=(32, 4096))
    nisa.tensor_copy(b[32:64, 2:6], a[0:32, 0:4])
    sums = nl.ndarray((4, 4), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(sums, b[32:64, 2:6], b[32:64, 2:6])
    out = nl.ndarray((4, 4), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(out, nl.copy(sums))
    return out


class RecordTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        result = harness.run(_kernel, np.ones((32, 8), np.float32))
        self.stream = result.record.streams[(0, 0)]

    def test_engines_and_opcodes(self):
        found = [(i.engine, i.opcode) for i in self.stream]
        self.assertEqual(
            found,
            [
                ("dma", "dma_copy"),
                ("vector", "tensor_copy"),
                ("tensor", "nc_matmul"),
                ("vector", "tensor_copy"),
                ("dma", "dma_copy"),
            ],
        )
        self.assertEqual([i.index for i in self.stream], list(range(5)))

    def test_source_lines(self):
        self.assertEqual(pathlib.Path(self.stream[1].file).name, "test_record.py")
        self.assertEqual(self.stream[1].line, self.stream[0].line + 2)

    def test_regions(self):
        (write,) = self.stream[1].writes
        self.assertEqual((write.space, write.name, write.dtype), ("sbuf", "b", "bfloat16"))
        self.assertEqual((write.partition_start, write.partitions), (64, 32))
        self.assertEqual(write.byte_range, (4096 + 4, 4096 + 12))
        self.assertEqual((write.shape, write.nbytes), ((32, 4), 256))
        (read,) = self.stream[1].reads
        self.assertEqual((read.space, read.byte_range, read.address), ("sbuf", (0, 16), None))

    def test_dependencies_can_be_found(self):
        produced = self.stream[1].writes[0]
        consumed = self.stream[2].reads[0]
        self.assertEqual(produced.memory, consumed.memory)
        self.assertEqual(produced.byte_range, consumed.byte_range)
        self.assertNotEqual(produced.memory, self.stream[1].reads[0].memory)

    def test_matmul_sizes(self):
        attributes = self.stream[2].attributes
        self.assertEqual((attributes["contraction"], attributes["columns"]), (32, 4))
        self.assertEqual((attributes["moving"], attributes["accumulate"]), (4, False))

    def test_can_be_switched_off(self):
        result = harness.run(_kernel, np.ones((32, 8), np.float32), record=False)
        self.assertLen(result.record, 0)
        np.testing.assert_array_equal(result.outputs[0], 32)

    def test_engines_that_the_caller_chose(self):
        def body():
            nisa.tensor_copy(tile(4, 4), tile(4, 4), engine=nisa.engine.scalar)

        stream = harness.run(body).record.streams[(0, 0)]
        self.assertEqual((stream[-1].engine, stream[-1].engine_chosen), ("scalar", True))
        self.assertFalse(stream[0].engine_chosen)

    def test_explicit_dependencies(self):
        def body():
            first = nisa.memset(tile(1, 1), 0)
            nisa.memset(tile(1, 1), 0).depends_on(first)

        stream = harness.run(body).record.streams[(0, 0)]
        self.assertEqual(stream[-1].attributes["depends_on"], [1])

    def test_shared_memory_has_one_number(self):
        def body(x):
            nisa.dma_copy(x[nl.ds(nl.program_id(0), 1)], tile(1, 4))

        result = simulator.run(body, [(np.zeros((2, 4), np.float32),)], lnc=2)
        storages = {s[-1].writes[0].storage for s in result.record.streams.values()}
        self.assertLen(storages, 1)
        cores = {s[-1].writes[0].core for s in result.record.streams.values()}
        self.assertEqual(cores, {None})
