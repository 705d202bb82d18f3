"""The scheduler against schedules worked out by hand."""

import dataclasses
import json
import pathlib
import tempfile

import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.timing import timeline_report
from jax_tkg.simulator.timing.costs import TRN1, TRN2, TRN3
from jax_tkg.simulator.timing.high_water import high_water
from jax_tkg.simulator.timing.timeline import memory_dependencies, schedule
from tests.simulator.streams import Stream, access, record

# Easy numbers: a Vector or Scalar Engine copy of `streams` takes 500 ns, its result is seen after
# 100 cycles (104.17 or 83.33 ns), another engine hears of it 50 ns later.
VECTOR, SCALAR, SIGNAL = 100 / 0.96, 100 / 1.2, 50.0

# A DMA's data moves 1300 ns after its trigger, which takes 80 ns of the Sync or Scalar Engine and,
# with the descriptors, 600 ns of the GpSimd Engine.
DMA_START, TRIGGER, SOFTWARE, GENERATOR = 1300.0, 80.0, 600.0, 600.0


def _moving(row: int, rows: int = 8, rate: float = 362.5 / 16) -> float:
    """Time of a DMA engine for rows that are one run in HBM."""
    return rows * row / rate + 20


def _transfers(timeline):
    return [event for event in timeline.events if event.resource == "dma"]


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
        stream.add(
            "tensor",
            "nc_matmul",
            access("stationary", "sbuf", 1, (128, 128), dtype="bfloat16", write=False),
            access("moving", "sbuf", 2, (128, 512), dtype="bfloat16", write=False),
            access("dst", "psum", 3, (128, 512)),
        )
    return stream


class DmaTest(parameterized.TestCase):
    def test_one_transfer(self):
        """8 rows on each of 16 engines."""
        stream = Stream()
        stream.load(1, 2048)
        timeline = schedule(record(stream))
        trigger, event = timeline.events
        self.assertEqual((trigger.resource, trigger.start, trigger.end), ("gpsimd", 0, SOFTWARE))
        self.assertAlmostEqual(event.start, DMA_START)
        self.assertAlmostEqual(event.end, DMA_START + _moving(2048))
        self.assertEqual((event.why, event.waited_for), ("trigger", trigger.number))
        self.assertLen(event.engines, 16)
        self.assertAlmostEqual(timeline.busy()["dma"], _moving(2048))

    def test_transfers_share_the_engines(self):
        stream = Stream()
        stream.load(1, 16384)
        stream.load(2, 16384)
        timeline = schedule(record(stream))
        first, second = _transfers(timeline)
        self.assertAlmostEqual(first.end, DMA_START + _moving(16384))
        self.assertAlmostEqual(second.start, first.end)
        self.assertAlmostEqual(second.end, DMA_START + 2 * _moving(16384))
        self.assertEqual((second.why, second.waited_for), ("dma engine", first.number))
        bytes_moved = 2 * 128 * 16384
        self.assertEqual(timeline.hbm_bytes(), {"W": bytes_moved})
        self.assertAlmostEqual(timeline.hbm_bound(bytes_moved), 2 * (_moving(16384) - 20))

    def test_few_partitions_use_few_engines(self):
        """12 partitions: 8 rows on one engine, 4 on the next; other partitions run beside."""
        stream = Stream()
        stream.load(1, 64, partitions=12, dge_mode="hwdge")
        shape = (8, 64)
        stream.add(
            "dma",
            "dma_copy",
            access("src", "hbm", 1, shape, dtype="uint8", core=None, write=False),
            access("dst", "sbuf", 2, shape, dtype="uint8", partition=64),
        )
        first, second = _transfers(schedule(record(stream)))
        self.assertEqual([engine for engine, _, _ in first.engines], [0, 1])
        self.assertEqual([engine for engine, _, _ in second.engines], [8])
        for event in (first, second):
            self.assertAlmostEqual(event.end, DMA_START + _moving(64))
        self.assertAlmostEqual(first.engines[1][2], DMA_START + _moving(64, rows=4))

    def test_load_compute_store(self):
        stream = Stream()
        stream.load(1, 1920)
        stream.vector(2, 1)
        self._store(stream)
        _, load, copy, trigger, store = schedule(record(stream)).events
        loaded = DMA_START + _moving(1920)
        self.assertAlmostEqual(load.end, loaded)
        self.assertAlmostEqual(copy.start, loaded + SIGNAL)
        self.assertAlmostEqual(store.start, loaded + SIGNAL + 500 + VECTOR + DMA_START)
        self.assertEqual((trigger.why, trigger.waited_for), ("data", copy.number))
        self.assertEqual((store.why, store.waited_for), ("trigger", trigger.number))

    def _store(self, stream: Stream, **attributes):
        stream.add(
            "dma",
            "dma_copy",
            access("src", "sbuf", 2, (128, 480)),
            access("dst", "hbm", 7, (128, 480), core=None, name="out"),
            **attributes,
        )

    @parameterized.parameters(("gpsimd", True), ("sync", False))
    def test_what_waits_keeps_later_work_of_its_trigger_waiting(self, trigger, waits):
        """A store waits for its data; the load behind it does too if the same engine triggers it,
        and so does that engine's other work."""
        stream = Stream()
        stream.vector(2, 3)
        self._store(stream)
        named = {} if trigger == "gpsimd" else {"dge_mode": "hwdge", "trigger": trigger}
        stream.load(4, 64, **named)
        stream.add("gpsimd", "iota", access("dst", "sbuf", 5, (128, 450)))
        events = schedule(record(stream)).events
        _, _, store, _, load, iota = events
        ready = 500 + VECTOR
        self.assertAlmostEqual(store.start, ready + DMA_START)
        self.assertAlmostEqual(iota.start, ready + (2 if waits else 1) * SOFTWARE)
        if waits:
            # The load is triggered behind the store, and reaches the engines behind it.
            self.assertAlmostEqual(load.start, max(store.end, ready + SOFTWARE + DMA_START))
        else:
            self.assertAlmostEqual(load.start, DMA_START)

    def test_hardware_descriptors(self):
        """The Sync and the Scalar Engine have a generator each, of 600 ns for a transfer."""
        stream = Stream()
        for storage, trigger in enumerate(("sync", "sync", "scalar")):
            stream.load(10 + storage, 64, partitions=8, dge_mode="hwdge", trigger=trigger)
        stream.scalar(2, 3)
        stream.load(13, 64, partitions=8, dge_mode="none")
        events = schedule(record(stream)).events
        triggers = [e for e in events if e.instruction.engine == "dma" and e.resource != "dma"]
        self.assertEqual([e.start for e in triggers], [0, GENERATOR, 0, GENERATOR + TRIGGER])
        self.assertEqual([e.why for e in triggers], ["start", "descriptor", "start", "engine"])
        (compute,) = [e for e in events if e.instruction.opcode == "tensor_copy"]
        self.assertEqual((compute.resource, compute.start), ("scalar", TRIGGER))

    def test_software_descriptors_take_the_gpsimd_engine(self):
        stream = Stream()
        stream.load(1, 64, indirect=True)
        stream.add("gpsimd", "iota", access("dst", "sbuf", 5, (128, 450)))
        _, load, iota = schedule(record(stream)).events
        self.assertAlmostEqual(iota.start, SOFTWARE)
        self.assertAlmostEqual(load.start, DMA_START)

    def test_within_hbm(self):
        """Both sides draw on HBM; the bytes are spread over all engines."""
        stream = Stream()
        shape = (16 * 65536,)
        stream.add(
            "dma",
            "dma_copy",
            access("src", "hbm", 1, shape, dtype="uint8", core=None, write=False, name="a"),
            access("dst", "hbm", 2, shape, dtype="uint8", core=None, name="b"),
        )
        timeline = schedule(record(stream))
        self.assertAlmostEqual(timeline.latency, DMA_START + 2 * shape[0] / 362.5 + 20)
        self.assertEqual(timeline.hbm_bytes(), {"a": shape[0], "b": shape[0]})
        self.assertEqual(timeline.hbm_bytes(lambda name: "all"), {"all": 2 * shape[0]})


class CollectivesTest(parameterized.TestCase):
    def _reduced(self, latency: float, target="trn2"):
        stream = Stream()
        stream.vector(1, 2)
        shape = (128, 480)
        stream.add(
            "dma",
            "all_reduce",
            access("srcs[0]", "sbuf", 1, shape, write=False),
            access("dsts[0]", "sbuf", 3, shape, write=True),
            ranks=(0, 1, 2, 3),
            bytes=128 * 480 * 4,
        )
        stream.vector(4, 3)
        costs = dataclasses.replace(TRN2, all_reduce_latency=latency)
        return schedule(record(stream), costs)

    @parameterized.parameters(5_000, 10_000, 25_000)
    def test_latency_is_swept(self, latency):
        timeline = self._reduced(latency)
        start = 500 + VECTOR + SIGNAL
        end = start + latency + 1.5 * 128 * 480 * 4 / 160
        _, reduction, copy = timeline.events
        self.assertEqual(reduction.resource, "collective")
        self.assertAlmostEqual(reduction.start, start)
        self.assertAlmostEqual(reduction.end, end)
        self.assertAlmostEqual(copy.start, end + SIGNAL)
        self.assertAlmostEqual(timeline.busy()["collective"], end - start)

    def test_size_of_the_group_can_be_given(self):
        """One rank of a group stands for all of them; a group of one has nothing to send."""
        stream = Stream()
        shape = (128, 480)
        stream.add(
            "dma",
            "all_reduce",
            access("srcs[0]", "sbuf", 1, shape, write=False),
            access("dsts[0]", "sbuf", 3, shape, write=True),
            ranks=(0,),
            bytes=128 * 480 * 4,
        )
        self.assertEqual(schedule(record(stream)).latency, 0)
        expected = 17_500 + 1.75 * 128 * 480 * 4 / 160
        self.assertAlmostEqual(schedule(record(stream), group_size=8).latency, expected)

    def test_dependencies_can_be_found_once(self):
        stream = Stream()
        stream.vector(1, 2)
        stream.scalar(3, 1)
        made = record(stream)
        found = memory_dependencies(made)
        self.assertEqual(found, [[{}, {0: "data"}]])
        again = schedule(made, dependencies=found)
        self.assertEqual(again.latency, schedule(made).latency)
        with self.assertRaisesRegex(ValueError, "rank=1: the record has ranks 0..0"):
            memory_dependencies(made, rank=1)


class TwoCoresTest(parameterized.TestCase):
    def _barrier(self, stream: Stream):
        return stream.add("gpsimd", "core_barrier", meeting=(9,))

    def test_barrier_waits_for_the_later_core(self):
        first, second = Stream(0), Stream(1)
        self._barrier(first)
        stored = access("dst", "hbm", 9, (128, 480), core=None)
        second.add("vector", "tensor_copy", access("src", "sbuf", 1, (128, 480)), stored)
        self._barrier(second)
        timeline = schedule(record(first, second))
        one, copy, two = timeline.events
        self.assertEqual(copy.instruction.core, 1)
        start = copy.end + VECTOR + SIGNAL
        for barrier in (one, two):
            self.assertAlmostEqual(barrier.start, start)
            self.assertAlmostEqual(barrier.end, start + 1000)
            self.assertEqual(barrier.waited_for, copy.number)

    def test_sendrecv_starts_when_both_can(self):
        streams = Stream(0), Stream(1)
        streams[1].vector(1, 5)
        for stream in streams:
            shape = (128, 480)
            stream.add(
                "dma",
                "sendrecv",
                access("src", "sbuf", 1, shape, core=stream.core),
                access("dst", "sbuf", 2, shape, core=stream.core),
                meeting=(),
            )
        streams[1].instructions[0].accesses[1].core = 1
        start = 500 + VECTOR + DMA_START
        for event in _transfers(schedule(record(*streams))):
            self.assertAlmostEqual(event.start, start)
            self.assertAlmostEqual(event.end, start + _moving(1920, rate=23))

    def test_swap_by_gpsimd_does_not_queue_behind_transfers(self):
        """Large loads fill the DMA engines; the GpSimd Engine's own DMA starts at once."""
        streams = Stream(0), Stream(1)
        for stream in streams:
            stream.load(7, 65536, dge_mode="hwdge", trigger="sync")
            shape = (128, 16)
            stream.add(
                "dma",
                "sendrecv",
                access("src", "sbuf", 1, shape, core=stream.core),
                access("dst", "sbuf", 2, shape, core=stream.core),
                meeting=(),
                dma_engine="gpsimd_dma",
            )
        events = schedule(record(*streams)).events
        swaps = [e for e in events if e.instruction.opcode == "sendrecv"]
        for event in swaps:
            self.assertEqual((event.resource, event.start), ("gpsimd", 0))
            self.assertAlmostEqual(event.end, DMA_START + 128 * 64 / 153)

    def test_cores_that_do_not_meet_equally_often(self):
        first, second = Stream(0), Stream(1)
        self._barrier(first)
        with self.assertRaisesRegex(ValueError, r"the cores of the rank meet \[1, 0\] times"):
            schedule(record(first, second))


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


class ReportTest(absltest.TestCase):
    def _timeline(self):
        stream = Stream()
        stream.load(1, 1920)
        stream.vector(2, 1)
        stream.vector(3, 2)
        stream.scalar(9, 8)
        return schedule(record(stream))

    def test_critical_path(self):
        timeline = self._timeline()
        path = timeline.critical_path()
        self.assertEqual([e.instruction.line for e in path], [1, 1, 2, 3])
        self.assertEqual([e.why for e in path], ["start", "trigger", "data", "data"])
        shares = timeline_report.critical_shares(timeline)
        self.assertAlmostEqual(sum(s.time for s in shares), timeline.latency)
        self.assertEqual(shares[0].where, "kernel.py:1")
        self.assertAlmostEqual(shares[0].time, DMA_START + _moving(1920) - SOFTWARE)

    def test_busy(self):
        busy = self._timeline().busy()
        self.assertAlmostEqual(busy["vector"], 1000)
        self.assertAlmostEqual(busy["scalar"], 500)
        self.assertEqual(busy["tensor"], 0)

    def test_summary(self):
        text = timeline_report.summary(self._timeline(), lambda name: "weights")
        for part in ("modelled on trn2", "latency 3.", "weights: 245760", "kernel.py:1"):
            self.assertIn(part, text)

    def test_trace(self):
        timeline = self._timeline()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "trace.json"
            timeline_report.write_trace(timeline, path)
            rows = json.loads(path.read_text())["traceEvents"]
        names = {
            (r["pid"], r["tid"]): r["args"]["name"] for r in rows if r["name"] == "thread_name"
        }
        spans = [r for r in rows if r["ph"] == "X"]
        self.assertLen(spans, 16 + 1 + 3)
        loads = [r for r in spans if names[r["pid"], r["tid"]].startswith("dma ")]
        self.assertLen(loads, 16)
        for row in loads:
            self.assertAlmostEqual(row["ts"], DMA_START / 1e3)
            self.assertAlmostEqual(row["dur"], _moving(1920) / 1e3)
        vector = [r for r in spans if names[r["pid"], r["tid"]] == "vector"]
        self.assertEqual([r["args"]["where"] for r in vector], ["kernel.py:2", "kernel.py:3"])


class BoundTest(parameterized.TestCase):
    @parameterized.parameters((1, "362"), (2, "725"))
    def test_hbm_of_all_cores(self, lnc, shown):
        """The chip's documented 2.9 TB/s belong to eight cores in equal parts."""
        timeline = schedule(record(*(Stream(core) for core in range(lnc))))
        self.assertAlmostEqual(timeline.hbm_bound(2_900_000), 1000 * 8 / lnc)
        self.assertIn(f" GB/s of {shown}\n", timeline_report.summary(timeline))


class HighWaterTest(absltest.TestCase):
    def test_lives(self):
        stream = Stream()
        stream.vector(2, 1)  # 1 and 2: 3840 bytes
        stream.vector(3, 2)  # 1 is dead; 2 and 3
        stream.vector(4, 2, 100)
        found = high_water(stream.instructions, "sbuf")
        self.assertEqual(found.partition_bytes, 3840)
        self.assertIs(found.instruction, stream.instructions[0])
        self.assertEqual(high_water(stream.instructions, "psum").partition_bytes, 0)

    def test_addresses_may_overlap(self):
        stream = Stream()
        for storage, address in ((1, 0), (2, 8), (3, 100)):
            stream.add(
                "vector", "memset", access("dst", "sbuf", storage, (128, 4), address=address)
            )
        stream.add(
            "vector",
            "memset",
            *(
                access("dst", "sbuf", storage, (128, 4), address=address)
                for storage, address in ((1, 0), (2, 8), (3, 100))
            ),
        )
        # [0, 16), [8, 24) and [100, 116)
        self.assertEqual(high_water(stream.instructions, "sbuf").partition_bytes, 40)


def _kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    squares = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(squares, tile, tile, op=nl.multiply)
    nisa.dma_copy(out, squares)
    return out


class RecordedRunTest(absltest.TestCase):
    def test_recorded_kernel(self):
        """1024 cycles of tensor_tensor between two transfers of 2 KiB rows."""
        result = simulator.run(_kernel, [(np.ones((128, 512), np.float32),)])
        timeline = schedule(result.record)
        dma = DMA_START + _moving(2048)
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
        first_load = DMA_START + _moving(1920) + SIGNAL
        self.assertAlmostEqual(timeline.latency, first_load + 5000 * each, places=3)
        for event in timeline.events:
            if event.waited_for is not None:
                self.assertLessEqual(timeline.events[event.waited_for].start, event.start)


if __name__ == "__main__":
    absltest.main()
