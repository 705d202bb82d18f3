"""DMA transfers, collectives and meetings of cores against schedules worked out by hand."""

import dataclasses
import itertools

from absl.testing import absltest, parameterized

from jax_tkg.simulator.timing.costs import TRN2
from jax_tkg.simulator.timing.timeline import memory_dependencies, schedule
from tests.simulator.streams import Stream, access, record
from tests.simulator.timing.easy_times import (
    DMA_START,
    GENERATOR,
    SIGNAL,
    SOFTWARE,
    TRIGGER,
    VECTOR,
    moving,
)


def _transfers(timeline):
    return [event for event in timeline.events if event.resource == "dma"]


class DmaTest(parameterized.TestCase):
    def test_one_transfer(self):
        """8 rows on each of 16 engines."""
        stream = Stream()
        stream.load(1, 2048)
        timeline = schedule(record(stream))
        trigger, event = timeline.events
        self.assertEqual((trigger.resource, trigger.start, trigger.end), ("gpsimd", 0, SOFTWARE))
        self.assertAlmostEqual(event.start, DMA_START)
        self.assertAlmostEqual(event.end, DMA_START + moving(2048))
        self.assertEqual((event.why, event.waited_for), ("trigger", trigger.number))
        self.assertLen(event.engines, 16)
        self.assertAlmostEqual(timeline.busy()["dma"], moving(2048))

    def test_transfers_share_the_engines(self):
        stream = Stream()
        stream.load(1, 16384)
        stream.load(2, 16384)
        timeline = schedule(record(stream))
        first, second = _transfers(timeline)
        self.assertAlmostEqual(first.end, DMA_START + moving(16384))
        self.assertAlmostEqual(second.start, first.end)
        self.assertAlmostEqual(second.end, DMA_START + 2 * moving(16384))
        self.assertEqual((second.why, second.waited_for), ("dma engine", first.number))
        bytes_moved = 2 * 128 * 16384
        self.assertEqual(timeline.hbm_bytes(), {"W": bytes_moved})
        self.assertAlmostEqual(timeline.hbm_bound(bytes_moved), 2 * (moving(16384) - 20))

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
            self.assertAlmostEqual(event.end, DMA_START + moving(64))
        self.assertAlmostEqual(first.engines[1][2], DMA_START + moving(64, rows=4))

    def test_load_compute_store(self):
        stream = Stream()
        stream.load(1, 1920)
        stream.vector(2, 1)
        self._store(stream)
        _, load, copy, trigger, store = schedule(record(stream)).events
        loaded = DMA_START + moving(1920)
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

    @parameterized.parameters(*itertools.permutations(("sync", "scalar", "gpsimd")))
    def test_transfers_that_start_at_one_time_go_in_program_order(self, *triggers):
        """All wait for one producer, and take as long to reach the DMA engines."""
        stream = Stream()
        stream.vector(2, 3)
        for number, trigger in enumerate(triggers):
            stream.add(
                "dma",
                "dma_copy",
                access("src", "sbuf", 2, (128, 480)),
                access("dst", "hbm", 7 + number, (128, 480), core=None),
                dge_mode="none" if trigger == "gpsimd" else "hwdge",
                trigger=trigger,
            )
        first, second, third = _transfers(schedule(record(stream)))
        self.assertAlmostEqual(first.start, 500 + VECTOR + DMA_START)
        self.assertEqual((second.start, third.start), (first.end, second.end))

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
            self.assertAlmostEqual(event.end, start + moving(1920, rate=23))

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


if __name__ == "__main__":
    absltest.main()
