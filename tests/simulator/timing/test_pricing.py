"""From recorded instructions to times and transfers."""

import dataclasses

import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.timing import pricing
from jax_tkg.simulator.timing.costs import TRN1, TRN2
from jax_tkg.simulator.timing.instruction_costs import dma_engine_times
from jax_tkg.simulator.timing.timeline import schedule
from tests.simulator import harness
from tests.simulator.harness import psum, tile
from tests.simulator.streams import Stream, access, record


class EngineTimeTest(parameterized.TestCase):
    def _last(self, body):
        return harness.run(body).record.streams[(0, 0)][-1]

    def test_strided_free_dimension(self):
        """bfloat16 in SBUF: four elements a cycle where they are adjacent, else two."""

        def packed():
            nisa.tensor_copy(tile(128, 1024, dtype=nl.bfloat16), tile(128, 1024, dtype=nl.bfloat16))

        def strided():
            source = tile(128, 2048, dtype=nl.bfloat16)
            nisa.tensor_copy(tile(128, 1024, dtype=nl.bfloat16), source[:, ::2])

        self.assertAlmostEqual(pricing.engine_time(TRN2, self._last(packed)), 256 / 0.96)
        self.assertAlmostEqual(pricing.engine_time(TRN2, self._last(strided)), 512 / 0.96)

    def test_operators_and_values_that_are_fast_in_bfloat16(self):
        """Half of the cycles; what decides is recorded with the instruction."""
        short = {"dtype": nl.bfloat16}

        def reduce(op, **dtype):
            nisa.tensor_reduce(tile(128, 1, **dtype), op, tile(128, 512, **dtype), axis=1)

        def combine(op0, op1):
            data, other = tile(128, 512, **short), tile(128, 512, **short)
            nisa.scalar_tensor_tensor(
                tile(128, 512, **short), data, op0=op0, operand0=1.0, op1=op1, operand1=other
            )

        cases = (
            (lambda: reduce(nl.add, **short), 256),
            (lambda: reduce(nl.maximum, **short), 256),
            (lambda: reduce(nl.minimum, **short), 512),
            (lambda: reduce(nl.maximum), 512),
            (lambda: combine(nl.subtract, nl.multiply), 512),
            (lambda: combine(nl.multiply, nl.subtract), 1024),
            (lambda: nisa.memset(tile(128, 512, **short), 0.0), 256),
            (lambda: nisa.memset(tile(128, 512, **short), 1.0), 512),
        )
        for number, (body, cycles) in enumerate(cases):
            with self.subTest(number):
                time = pricing.engine_time(TRN2, self._last(body))
                self.assertAlmostEqual(time, cycles / 0.96)

    def test_wide_stride(self):
        """A stride of 16 bytes is still fast on Trainium1, one of 20 is not."""
        for step, cycles in ((4, 100), (5, 200)):

            def body(step=step):
                source = tile(128, 512)[:, 0 : 100 * step : step]
                nisa.activation(tile(128, 100), nl.exp, source)

            time = pricing.engine_time(TRN1, self._last(body))
            self.assertAlmostEqual(time, cycles / TRN1.scalar_clock)

    def test_scalar_operand_column(self):
        def body():
            nisa.tensor_scalar(
                tile(128, 512), tile(128, 512), op0=nl.multiply, operand0=tile(128, 1)
            )

        self.assertAlmostEqual(pricing.engine_time(TRN2, self._last(body)), 512 / 0.96)

    def test_matmul(self):
        def body():
            nisa.nc_matmul(
                psum(128, 256),
                tile(128, 128, dtype=nl.bfloat16),
                tile(128, 256, dtype=nl.bfloat16),
                accumulate=False,
            )

        self.assertAlmostEqual(pricing.engine_time(TRN2, self._last(body)), 256 / 2.4)

    def test_reduction_is_read_out(self):
        def body():
            nisa.activation_reduce(
                tile(128, 512), nl.exp, tile(128, 512), reduce_op=nl.add, reduce_res=tile(128, 1)
            )

        self.assertAlmostEqual(pricing.engine_time(TRN2, self._last(body)), 576 / 1.2)


class ArgumentsTest(parameterized.TestCase):
    """Arguments that are no tensors reach the formulas."""

    def _time(self, body, target="trn2"):
        (*_, last) = simulator.run(body, [()], target=target).record.streams[(0, 0)]
        return pricing.engine_time(TRN2, last)

    @parameterized.parameters(16, 64000)
    def test_topk(self, searched):
        def body():
            values, places = tile(128, 8, dtype="bfloat16"), tile(128, 8, dtype="uint32")
            nisa.topk(values, places, tile(128, 4000, dtype="bfloat16"), searched)

        self.assertAlmostEqual(self._time(body), (4 * searched + 8) / 1.2)

    @parameterized.parameters((1, 8.0), (2, 36 / 8 / 1), (32, (28 + 128) / 128))
    def test_local_gather(self, each, rate):
        def body():
            data, index = tile(16, 64), tile(16, 4, dtype="uint16", value=0)
            nisa.local_gather(tile(16, 64 * each), data, index, num_elem_per_idx=each)

        self.assertAlmostEqual(self._time(body), (150 + 64 * each / rate) / 1.2)

    @parameterized.parameters((nl.gelu, "gelu"), (nl.prelu, "prelu"))
    def test_functions_of_activate2_are_told_apart(self, function, name):
        def body():
            nisa.activate2(tile(4, 4), function, tile(4, 4), 1.0, 0.0, nl.multiply, nl.add)

        (*_, last) = simulator.run(body, [()], target="trn3").record.streams[(0, 0)]
        self.assertEqual(last.attributes["op"], name)


class TransferTest(parameterized.TestCase):
    def _transfer(self, body, *arrays):
        result = simulator.run(body, [arrays])
        (found,) = [i for i in result.record.streams[(0, 0)] if i.opcode.startswith("dma")]
        return found, pricing.transfer_of(TRN2, found)

    def test_columns_of_a_matrix(self):
        """Rows of 64 float32 in HBM rows of 256; 40 partitions from 32 on."""

        def body(x):
            dst = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst[64:104, :], x[0:40, 64:128])

        _, (first, transfer) = self._transfer(body, np.ones((40, 256), np.float32))
        self.assertEqual(first, 8)
        self.assertEqual(transfer.rows_by_engine, (8, 8, 8, 8, 8))
        self.assertEqual((transfer.row_bytes, transfer.run_bytes), (256, 256))
        self.assertEqual(transfer.hbm_sides, 1)

    def test_tiles_of_a_weight(self):
        """Each partition gets 4 runs of 32 columns."""

        def body(w):
            dst = nl.ndarray((128, 4, 32), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst, w.reshape((4, 128, 64)).permute((1, 0, 2))[:, :, 0:32])

        found, (_, transfer) = self._transfer(body, np.ones((512, 64), np.float32))
        self.assertEqual((transfer.row_bytes, transfer.run_bytes), (512, 128))
        sources, destinations = pricing.moved(found)
        self.assertEqual([a.nbytes for a in (*sources, *destinations)], [65536, 65536])

    def test_rows_that_are_neighbors_in_hbm_are_one_run(self):
        def body(w):
            dst = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst, w)

        found, (_, transfer) = self._transfer(body, np.ones((128, 64), np.float32))
        self.assertEqual((transfer.row_bytes, transfer.run_bytes), (256, 128 * 256))
        apart = dataclasses.replace(TRN2, runs_end_with_rows=True)
        _, transfer = pricing.transfer_of(apart, found)
        self.assertEqual((transfer.row_bytes, transfer.run_bytes), (256, 256))

    def test_every_source_of_a_sum_is_moved(self):
        def body(x, y):
            dst = nl.ndarray((16, 64), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_compute(dst, [x, y], nl.add)

        data = np.ones((16, 64), np.float32)
        _, (_, transfer) = self._transfer(body, data, data)
        self.assertEqual((transfer.row_bytes, transfer.rows_by_engine), (512, (8, 8)))

    def test_within_hbm(self):
        stream = Stream()
        shape = (600,)
        small = stream.add(
            "dma",
            "dma_copy",
            access("src", "hbm", 1, shape, core=None, write=False),
            access("dst", "hbm", 2, shape, core=None),
        )
        _, transfer = pricing.transfer_of(TRN2, small)
        self.assertEqual(transfer.rows_by_engine, (1, 1, 1, 1))
        self.assertEqual((transfer.row_bytes, transfer.hbm_sides), (600, 2))

    def test_index_tensors_are_not_moved(self):
        def body(x, rows):
            index = nl.load(rows)
            dst = nl.ndarray((8, 16), dtype=nl.float32, buffer=nl.sbuf)
            source = x.ap([[16, 8], [1, 16]], vector_offset=index, indirect_dim=0)
            nisa.dma_copy(dst, source)

        result = simulator.run(
            body,
            [(np.ones((32, 16), np.float32), np.arange(8, dtype=np.int32)[:, None])],
        )
        found = result.record.streams[(0, 0)][-1]
        self.assertEqual(pricing.descriptors_of(TRN2, found), "software")
        sources, _ = pricing.moved(found)
        self.assertEqual([a.operand for a in sources], ["src"])
        _, transfer = pricing.transfer_of(TRN2, found)
        self.assertEqual((transfer.row_bytes, transfer.rows_by_engine), (64, (8,)))

    def test_rows_that_are_all_skipped_are_not_moved(self):
        def body(x, rows):
            index = nl.load(rows)
            tile = nl.load(x)
            target = x.ap([[16, 8], [1, 16]], vector_offset=index, indirect_dim=0)
            nisa.dma_copy(target, tile, oob_mode=nisa.oob_mode.skip)

        for indices, moved in (([8] * 8, 0), ([8] * 7 + [3], 1)):
            index = np.array(indices, np.int32)[:, None]
            result = simulator.run(body, [(np.ones((8, 16), np.float32), index)])
            found = result.record.streams[(0, 0)][-1]
            sources, destinations = pricing.moved(found)
            self.assertEqual((len(sources), len(destinations)), (moved, moved))
            _, transfer = pricing.transfer_of(TRN2, found)
            self.assertEqual(sum(transfer.rows_by_engine), moved)

    def _rows_moved(self, kind: str, is_valid: np.ndarray) -> tuple[Instruction, float]:
        """A transfer of 128 rows that skips some, and how long the DMA engines take for it."""

        def body(data, out, numbers):
            index, skip = nl.load(numbers), {"oob_mode": nisa.oob_mode.skip}
            source, target = (
                tensor.ap([[128, 128], [1, 128]], vector_offset=index, indirect_dim=0)
                for tensor in (data, out)
            )
            tile = nl.load(data)
            if kind == "gather":
                nisa.dma_copy(tile, source, **skip)
            elif kind == "gather within HBM":
                nisa.dma_copy(out, source, **skip)
            elif kind == "transposed gather":
                nisa.dma_transpose(tile, source, axes=(1, 0), **skip)
            elif kind == "sum":
                nisa.dma_compute(tile, [source, tile], nl.add, **skip)
            elif kind == "scatter":
                nisa.dma_copy(target, tile, **skip)
            else:
                nisa.dma_copy(target, nl.load(data.reshape((64, 256))), **skip)

        numbers = np.where(is_valid, np.arange(128), 1 << 20).astype(np.uint32)[:, None]
        data = np.ones((128, 128), ml_dtypes.bfloat16)
        found = simulator.run(body, [(data, data.copy(), numbers)]).record.streams[(0, 0)][-1]
        _, transfer = pricing.transfer_of(TRN2, found)
        return found, max(dma_engine_times(TRN2, transfer))

    @parameterized.parameters(
        *("gather", "gather within HBM", "transposed gather", "sum"),
        *("scatter", "scatter of half rows"),
    )
    def test_skipped_rows_take_no_time(self, kind):
        whole, longest = self._rows_moved(kind, np.ones(128, bool))
        order = np.random.default_rng(0).permutation(128)
        for count in (127, 65, 64, 9, 1):
            is_valid = np.zeros(128, bool)
            is_valid[order[:count]] = True
            found, time = self._rows_moved(kind, is_valid)
            self.assertLessEqual(time, longest if count > 1 else longest / 2)
            operand = "dst" if kind.startswith("scatter") else whole.accesses[1].operand
            of_all, of_some = (
                next(a for a in each.accesses if a.operand == operand) for each in (whole, found)
            )
            self.assertEqual((of_some.space, of_some.nbytes), ("hbm", of_all.nbytes * count // 128))
            self.assertLessEqual(len(found.accesses), len(whole.accesses) + 1)

    def test_engines_between_those_of_the_moved_rows_are_idle(self):
        is_valid = np.zeros(128, bool)
        is_valid[[9, 10, 40]] = True
        found, _ = self._rows_moved("gather", is_valid)
        first, transfer = pricing.transfer_of(TRN2, found)
        self.assertEqual((first, transfer.rows_by_engine), (1, (2, 0, 0, 0, 1)))
        self.assertEqual(dma_engine_times(TRN2, transfer)[1:4], [0, 0, 0])
        stream = Stream()
        stream.instructions.append(found)
        (_, event) = schedule(record(stream)).events
        self.assertEqual([engine for engine, _, _ in event.engines], [1, 5])


class TriggerTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("left_to_the_compiler", {}, "gpsimd", "software"),
        ("named", {"dge_mode": "hwdge", "trigger": "scalar"}, "scalar", "hardware"),
        ("hardware", {"dge_mode": "hwdge"}, "sync", "hardware"),
        ("made_beforehand", {"dge_mode": "none"}, "sync", "none"),
        ("software", {"dge_mode": "swdge"}, "gpsimd", "software"),
        ("gather", {"indirect": True}, "gpsimd", "software"),
    )
    def test_trigger_and_descriptors(self, attributes, trigger, descriptors):
        load = Stream().load(1, 64, **attributes)
        self.assertEqual(pricing.trigger_of(TRN2, load), trigger)
        self.assertEqual(pricing.descriptors_of(TRN2, load), descriptors)

    def test_trigger_can_be_chosen_for_all(self):
        stream = Stream()
        named = stream.load(1, 64, dge_mode="hwdge", trigger="sync")
        gather = stream.load(1, 64, indirect=True)
        scalar = dataclasses.replace(TRN2, only_trigger="scalar")
        self.assertEqual(pricing.trigger_of(scalar, named), "scalar")
        self.assertEqual(pricing.trigger_of(scalar, gather), "gpsimd")
        gpsimd = dataclasses.replace(TRN2, only_trigger="gpsimd")
        self.assertEqual(pricing.descriptors_of(gpsimd, named), "software")

    def test_first_generation_makes_descriptors_beforehand(self):
        load = Stream().load(1, 64)
        self.assertEqual(pricing.trigger_of(TRN1, load), "sync")
        self.assertEqual(pricing.descriptors_of(TRN1, load), "none")

    def test_stores_are_triggered_apart_from_loads(self):
        """As the profile of example 1 shows: so a store that waits does not keep loads waiting."""
        stream = Stream()
        tile, out = access("src", "sbuf", 1, (128, 8)), access("dst", "hbm", 2, (128, 8), core=None)
        for costs, attributes in ((TRN1, {}), (TRN2, {"dge_mode": "none"})):
            store = stream.add("dma", "dma_copy", tile, out, **attributes)
            self.assertEqual(pricing.trigger_of(costs, store), "gpsimd")
            self.assertEqual(pricing.descriptors_of(costs, store), "none")


if __name__ == "__main__":
    absltest.main()
