"""The scheduler against schedules worked out by hand: engines, loops on the device, whole runs."""

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.timing import timeline_report
from jax_tkg.simulator.timing.costs import TRN1, TRN2, TRN3
from jax_tkg.simulator.timing.timeline import schedule
from tests.simulator.streams import Stream, access, record
from tests.simulator.timing.easy_times import DMA_START, SCALAR, SIGNAL, VECTOR, moving


class EnginesTest(parameterized.TestCase):
    def _times(self, stream: Stream, **options):
        timeline = schedule(record(stream), **options)
        return [(e.start, e.end) for e in timeline.events], timeline

    def assertTimes(self, found, expected):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-9)

    def test_independent_instructions_of_one_engine(self):
        stream = Stream()
        stream.vector(1, 2)
        stream.vector(3, 4)
        times, timeline = self._times(stream)
        self.assertTimes(times, [(0, 500), (500, 1000)])
        self.assertEqual([e.why for e in timeline.events], ["start", "engine"])
        self.assertEqual(timeline.events[1].waited_for, 0)

    def test_engines_run_at_once(self):
        stream = Stream()
        stream.vector(1, 2)
        stream.scalar(3, 4)
        times, timeline = self._times(stream)
        self.assertTimes(times, [(0, 500), (0, 500)])
        self.assertEqual(timeline.latency, 500)

    def test_result_on_the_same_engine(self):
        stream = Stream()
        stream.vector(1, 2)
        stream.vector(3, 1)
        times, timeline = self._times(stream)
        self.assertTimes(times, [(0, 500), (500 + VECTOR, 1000 + VECTOR)])
        self.assertEqual(timeline.events[1].why, "data")

    def test_result_on_another_engine(self):
        stream = Stream()
        stream.vector(1, 2)
        stream.scalar(3, 1)
        times, _ = self._times(stream)
        start = 500 + VECTOR + SIGNAL
        self.assertTimes(times[1], (start, start + 500))

    def test_a_register_is_read_after_it_was_loaded(self):
        """Its Scalar Engine trigger is free from the start, but the row's number comes late."""

        def kernel(x, numbers):
            register = nisa.register_alloc(nl.load(numbers))
            row = nl.ndarray((1, 64), dtype=nl.float32, buffer=nl.sbuf)
            source = x.ap([[64, 1], [1, 64]], scalar_offset=register, indirect_dim=0)
            hardware, scalar = nisa.dge_mode.hwdge, nisa.engine.scalar
            nisa.dma_copy(row, source, dge_mode=hardware, engine=scalar)

        inputs = np.ones((8, 64), np.float32), np.array([[2]], np.int32)
        events = schedule(simulator.run(kernel, [inputs]).record).events
        _, _, load, trigger, _ = events
        self.assertEqual((load.resource, load.instruction.opcode), ("sync", "register_load"))
        # The start of a DMA includes waiting for its semaphore.
        self.assertAlmostEqual(trigger.start, load.end + 100 / 1.2)
        self.assertEqual((trigger.why, trigger.waited_for), ("data", load.number))

    def test_reuse_waits_for_the_reader(self):
        stream = Stream()
        stream.scalar(1, 2)
        stream.vector(2, 3)
        times, timeline = self._times(stream)
        self.assertTimes(times[1], (500 + SIGNAL, 1000 + SIGNAL))
        self.assertEqual(timeline.events[1].why, "reuse")

    def test_overwriting_waits_for_the_writer(self):
        stream = Stream()
        stream.scalar(1, 2)
        stream.vector(1, 3, 600)
        times, timeline = self._times(stream)
        start = 500 + SCALAR + SIGNAL
        self.assertTimes(times[1], (start, start + 625))
        self.assertEqual(timeline.events[1].why, "overwrite")

    def test_program_order_on_an_engine(self):
        """The third could run at once, but stands behind the second, which waits for data."""
        stream = Stream()
        stream.scalar(1, 2)
        stream.vector(3, 1, 600)
        stream.vector(4, 5)
        times, _ = self._times(stream)
        start = 500 + SCALAR + SIGNAL
        self.assertTimes(times[1:], [(start, start + 625), (start + 625, start + 1125)])

    @parameterized.named_parameters(
        ("vector_and_gpsimd_of_v2", TRN1, "gpsimd", "sbuf", True),
        ("vector_and_gpsimd_of_v3", TRN2, "gpsimd", "sbuf", False),
        ("vector_and_scalar_in_psum_of_v2", TRN1, "scalar", "psum", True),
        ("vector_and_scalar_in_psum_of_v3", TRN2, "scalar", "psum", False),
        ("vector_and_scalar_in_sbuf_of_v2", TRN1, "scalar", "sbuf", False),
    )
    def test_engines_that_cannot_access_a_memory_at_once(self, costs, engine, space, serial):
        stream = Stream()
        for number, each in enumerate(("vector", engine)):
            source = access("src", space, 10 + number, (128, 480))
            dst = access("dst", space, 20 + number, (128, 480))
            stream.add(each, "tensor_copy", source, dst)
        first, second = schedule(record(stream), costs).events
        self.assertEqual(second.start, first.end if serial else 0)
        self.assertEqual(second.why, "memory" if serial else "start")

    @parameterized.parameters(("half", 2.0), ("full", 1.0))
    def test_matmuls_are_pipelined(self, rate, slowdown):
        """512 cycles at 2.4 GHz each; accumulating in the same place costs nothing more."""
        stream = _matmuls(3)
        times, _ = self._times(stream, tensor_rate=rate)
        each = 512 / 2.4 * slowdown
        self.assertTimes(times, [(0, each), (each, 2 * each), (2 * each, 3 * each)])

    def test_ramp(self):
        """Half rate until 1500 ns of the last 3000 were busy: 4 matmuls of 426.7 ns."""
        stream = _matmuls(6)
        times, _ = self._times(stream, tensor_rate="ramp")
        slow, fast = 512 / 1.2, 512 / 2.4
        expected = [slow] * 4 + [fast] * 2
        self.assertTimes([end - start for start, end in times], expected)

    @parameterized.parameters(("half", 2.0), ("full", 1.0))
    def test_products_on_different_tiles_run_in_parallel(self, rate, slowdown):
        """32 columns load in 32 cycles, one tile after another, and 512 columns pass each."""
        stream = _tiled_matmuls((0, 32, 64, 96))
        times, timeline = self._times(stream, tensor_rate=rate)
        load, each = 32 / 2.4 * slowdown, 512 / 2.4 * slowdown
        self.assertTimes(times, [(i * load, i * load + each) for i in range(4)])
        self.assertAlmostEqual(timeline.busy()["tensor"], 3 * load + each)

    def test_products_in_turn(self):
        stream = _tiled_matmuls((0, 32))
        costs = dataclasses.replace(TRN2, tiles_in_parallel=False)
        first, second = schedule(record(stream), costs).events
        self.assertEqual((second.start, second.why), (first.end, "engine"))

    def test_a_tile_waits_for_its_own_products_only(self):
        """Two products on one tile, then one on another, which does not wait for the second."""
        times, _ = self._times(_tiled_matmuls((0, 0, 32)), tensor_rate="full")
        load, each = 32 / 2.4, 512 / 2.4
        self.assertTimes(times, [(0, each), (each, 2 * each), (2 * load, 2 * load + each)])

    def test_what_tiles_read_is_overwritten_after_the_last_of_them(self):
        """Two products on one tile, then one on another, which ends first."""
        stream = _tiled_matmuls((0, 0, 32))
        stream.add("vector", "memset", access("dst", "sbuf", 2, (128, 512), dtype="bfloat16"))
        _, last, other, memset = schedule(record(stream)).events
        self.assertLess(other.end, last.end)
        self.assertAlmostEqual(memset.start, last.end + SIGNAL)
        self.assertEqual((memset.why, memset.waited_for), ("reuse", last.number))

    @parameterized.named_parameters(
        ("the_whole_array_waits_for_its_tiles", (32, None)),
        ("tiles_wait_for_the_whole_array", (None, 32)),
        ("tiles_that_overlap", (32, (0, 0, 32, 64))),
    )
    def test_products_that_share_elements(self, columns):
        first, second = schedule(record(_tiled_matmuls(columns))).events
        self.assertEqual((second.start, second.why), (first.end, "engine"))

    def test_ramp_counts_products_that_run_at_once_once(self):
        """Four at half rate are busy for 427 ns and 80 of loads, so that the fifth is throttled."""
        times, _ = self._times(_tiled_matmuls((0, 32, 64, 96, 0)), tensor_rate="ramp")
        start, end = times[-1]
        self.assertAlmostEqual(end - start, 512 / 1.2)

    def test_activation_table_is_loaded_once(self):
        stream = Stream()
        for storage in (1, 2):
            stream.add(
                "scalar",
                "activation",
                access("data", "sbuf", 9, (128, 600)),
                access("dst", "sbuf", storage, (128, 600)),
                op="exp",
            )
        times, _ = self._times(stream)
        self.assertTimes(times, [(0, 1800), (1800, 2300)])

    def test_bad_arguments(self):
        stream = Stream()
        stream.vector(1, 2)
        with self.assertRaisesRegex(ValueError, "tensor_rate='fast': expected one of"):
            schedule(record(stream), tensor_rate="fast")
        with self.assertRaisesRegex(ValueError, "rank=3: the record has ranks 0..0"):
            schedule(record(stream), rank=3)
        with self.assertRaisesRegex(ValueError, "no costs are known for 'trn1'"):
            schedule(record(stream, target="trn1"))

    def test_empty(self):
        timeline = schedule(record(Stream()))
        self.assertEqual((timeline.latency, timeline.critical_path()), (0, []))


def _matmuls(count: int) -> Stream:
    stream = Stream()
    for _ in range(count):
        _matmul(stream, 128, 3)
    return stream


def _tiled_matmuls(tiles: tuple[Any, ...]) -> Stream:
    """A product for each tile: its first column of 32, or rows and columns; None: untiled."""
    stream = Stream()
    for number, tile in enumerate(tiles):
        if tile is None:
            _matmul(stream, 128, 3 + number)
        else:
            whole = (0, tile, 128, 32) if isinstance(tile, int) else tile
            _matmul(stream, 32, 3 + number, tile=whole)
    return stream


def _matmul(stream: Stream, columns: int, storage: int, **attributes: Any) -> None:
    stream.add(
        "tensor",
        "nc_matmul",
        access("stationary", "sbuf", 1, (128, columns), dtype="bfloat16", write=False),
        access("moving", "sbuf", 2, (128, 512), dtype="bfloat16", write=False),
        access("dst", "psum", storage, (columns, 512)),
        **attributes,
    )


class LoopTest(parameterized.TestCase):
    """A turn of a device loop begins when all before it has ended, and takes a time of its own."""

    def _stream(self, marks: bool) -> Stream:
        """Two turns, each of a transfer of 20 KiB per partition and a copy that does not use it."""
        stream = Stream()
        for turn in range(2):
            if marks:
                stream.add("sync", "loop_turn", turn=turn)
            stream.load(10 + turn, 20480)
            stream.vector(20 + turn, 30 + turn)
        if marks:
            stream.add("sync", "loop_end", turn=2)
        stream.vector(40, 41)
        return stream

    def test_turns_do_not_overlap(self):
        timeline = schedule(record(self._stream(marks=True)))
        first, _, load, copy, second, _, next_load, next_copy, end, after = timeline.events
        turn = TRN2.loop_turn
        self.assertEqual((first.start, first.end), (0, turn))
        self.assertEqual(copy.start, turn)
        self.assertEqual(load.start, turn + DMA_START)
        # The copy has long ended; the transfer is what the next turn waits for.
        self.assertEqual(second.start, load.end)
        self.assertEqual((second.why, second.waited_for), ("loop", load.number))
        self.assertEqual(next_copy.start, load.end + turn)
        self.assertEqual((next_copy.why, next_copy.waited_for), ("loop", second.number))
        self.assertEqual(next_load.start, load.end + turn + DMA_START)
        self.assertEqual((end.start, end.end), (next_load.end, next_load.end))
        self.assertEqual((after.start, timeline.latency), (end.end, end.end + 500))

    def test_without_a_loop_they_do(self):
        events = schedule(record(self._stream(marks=False))).events
        self.assertEqual([e.start for e in events if e.resource == "vector"], [0, 500, 1000])
        # The second transfer follows the first at once on the DMA engines.
        first, second = (e for e in events if e.resource == "dma")
        self.assertEqual(second.start, first.end)

    def test_critical_path(self):
        timeline = schedule(record(self._stream(marks=True)))
        shares = timeline_report.critical_shares(timeline)
        self.assertAlmostEqual(sum(share.time for share in shares), timeline.latency)
        words = [share.described() for share in shares if share.opcode == "loop_turn"]
        self.assertLen(words, 2)
        self.assertIn("loop_turn on sync, waited for a turn of its loop: kernel.py:4", words)
        names = {row["name"] for row in timeline_report.chrome_trace(timeline)["traceEvents"]}
        self.assertIn("loop_turn", names)

    def test_time_of_a_turn_is_swept(self):
        found = record(self._stream(marks=True))
        longer = schedule(found, dataclasses.replace(TRN2, loop_turn=12_000.0))
        self.assertAlmostEqual(longer.latency - schedule(found).latency, 2 * 3000)

    @parameterized.parameters(1, 2)
    def test_recorded_loop_against_the_same_instructions_unrolled(self, lnc):
        def kernel(x, looped):
            kept = nl.ndarray((128, 512), nl.float32)

            def body(i):
                loaded = nl.ndarray((128, 512), nl.float32)
                nisa.dma_copy(loaded, x.select(0, i), dge_mode=nisa.dge_mode.hwdge)
                nisa.tensor_copy(kept, loaded)

            if looped:
                nl.fori_loop(0, 3, body)
            else:
                for i in range(3):
                    body(i)

        x = np.ones((3, 128, 512), np.float32)
        options = simulator.Options()
        looped, unrolled = (
            schedule(simulator.run(kernel, [(x, how)], lnc=lnc, options=options).record)
            for how in (True, False)
        )
        self.assertEqual(looped.hbm_bytes(), unrolled.hbm_bytes())
        self.assertGreater(looped.latency, unrolled.latency + 3 * TRN2.loop_turn)


def _kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    squares = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(squares, tile, tile, op=nl.multiply)
    nisa.dma_copy(out, squares)
    return out


class RecordedRunTest(parameterized.TestCase):
    def test_recorded_kernel(self):
        """1024 cycles of tensor_tensor between two transfers of 2 KiB rows."""
        result = simulator.run(_kernel, [(np.ones((128, 512), np.float32),)])
        timeline = schedule(result.record)
        dma = DMA_START + moving(2048)
        expected = 2 * dma + SIGNAL + 1024 / 0.96 + VECTOR
        self.assertAlmostEqual(timeline.latency, expected)
        self.assertEqual(sum(timeline.hbm_bytes().values()), 2 * 128 * 512 * 4)
        newer = schedule(result.record, TRN3)
        self.assertLess(newer.latency, timeline.latency)

    def test_published_profile(self):
        """The second example of AWS's DMA overview, whose profile on Trainium2 shows 4.98 us from
        the first trigger to the store's last byte (read off the picture: 33.30 to 38.28 us)."""

        def exponential(x):
            out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
            tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
            result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(tile, x)
            nisa.activation(result, nl.exp, tile)
            nisa.dma_copy(out, result)
            return out

        run = simulator.run(exponential, [(np.ones((128, 128), ml_dtypes.bfloat16),)])
        self.assertAlmostEqual(schedule(run.record).latency / 4980, 1, delta=0.15)

    @parameterized.parameters(True, False)
    def test_recorded_tiles(self, tiled):
        """Four products of 512 columns, each with 32 columns of the array, or one after another."""

        def products(x):
            loaded = nl.load(x)
            sums = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
            for column in (0, 32, 64, 96):
                nisa.nc_matmul(
                    sums[column : column + 32, :],
                    loaded[:, column : column + 32],
                    loaded,
                    tile_position=(0, column) if tiled else (),
                    tile_size=(128, 32) if tiled else (),
                )

        record = simulator.run(products, [(np.ones((128, 512), ml_dtypes.bfloat16),)]).record
        each, load = 512 / 1.2, 32 / 1.2
        expected = each + 3 * load if tiled else 4 * each
        self.assertAlmostEqual(schedule(record).busy()["tensor"], expected)

    @pytest.mark.extended
    def test_many_instructions(self):
        """Twenty thousand, on buffers that are used again and again."""
        stream = Stream()
        for i in range(5000):
            stream.load(1 + i % 8, 1920)
            stream.vector(20 + i % 4, 1 + i % 8)
            stream.scalar(30 + i % 4, 20 + i % 4)
            stream.vector(40, 30 + i % 4)
        timeline = schedule(record(stream))
        self.assertLen(timeline.events, 25_000)
        # Each round is a chain: Vector, Scalar, Vector, which is then free for the next round.
        each = 500 + VECTOR + SIGNAL + 500 + SCALAR + SIGNAL + 500
        first_load = DMA_START + moving(1920) + SIGNAL
        self.assertAlmostEqual(timeline.latency, first_load + 5000 * each, places=3)
        for event in timeline.events:
            if event.waited_for is not None:
                self.assertLessEqual(timeline.events[event.waited_for].start, event.start)
        for wait in timeline.waits.all:
            if wait.before is not None:
                self.assertLessEqual(timeline.waits.all[wait.before].end, wait.end)


if __name__ == "__main__":
    absltest.main()
