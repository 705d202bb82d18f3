"""What is read off a timeline: critical path, busy times, bound, summary and trace."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jax_tkg.simulator.timing import timeline_report
from jax_tkg.simulator.timing.timeline import schedule
from tests.simulator.streams import Stream, access, record
from tests.simulator.timing.easy_times import DMA_START, SOFTWARE, moving


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
        self.assertAlmostEqual(shares[0].time, DMA_START + moving(1920) - SOFTWARE)

    def test_a_transfer_waits_for_a_part_of_another(self):
        """The first fills one DMA engine for long. The third waits for the second on another."""
        stream = Stream()
        sizes = ((65536, 120, 8), (8192, 0, 128), (4096, 0, 8))
        for storage, (row, first, partitions) in enumerate(sizes):
            shape = (partitions, row)
            source = access("src", "hbm", 1, shape, dtype="uint8", core=None)
            dst = access("dst", "sbuf", 2 + storage, shape, dtype="uint8", partition=first)
            stream.add("dma", "dma_copy", source, dst)
        for _ in range(20):
            source, dst = access("src", "sbuf", 4, (8, 1024)), access("dst", "sbuf", 9, (8, 4096))
            stream.add("vector", "tensor_copy", source, dst)
        timeline = schedule(record(stream))
        long, second, third = (e for e in timeline.events if e.resource == "dma")
        self.assertEqual((second.waited_for, second.why), (long.number, "dma engine"))
        self.assertLess(third.end, second.end)
        path = timeline.critical_waits()
        self.assertEqual([wait.event for wait in path[:5]], [0, 2, 3, 5, 6])
        self.assertEqual([wait.why for wait in path[1:4]], ["engine", "trigger", "dma engine"])
        self.assertAlmostEqual(path[2].end, third.start)
        self.assertInOrder(timeline)

    def test_a_product_waits_for_the_load_of_another(self):
        """The third's tile loads after the second's, which loads while the first runs; the second
        itself waits for the first, whose tile it takes."""
        stream = Stream()
        for number, tile in enumerate(((0, 0, 128, 32), (0, 0, 128, 32), (0, 32, 128, 32))):
            operands = [
                access("stationary", "sbuf", 1, (128, 32), dtype="bfloat16", write=False),
                access("moving", "sbuf", 2, (128, 512), dtype="bfloat16", write=False),
                access("dst", "psum", 3 + number, (32, 512)),
            ]
            stream.add("tensor", "nc_matmul", *operands, tile=tile)
        source, dst = access("src", "psum", 5, (32, 512)), access("dst", "sbuf", 9, (32, 4096))
        stream.add("vector", "tensor_copy", source, dst)
        timeline = schedule(record(stream))
        _, second, third, _ = timeline.events
        self.assertLess(third.start, second.start)
        path = timeline.critical_waits()
        self.assertEqual([wait.event for wait in path], [0, 1, 2, 3])
        self.assertAlmostEqual(path[1].end, third.start)
        self.assertInOrder(timeline)

    def assertInOrder(self, timeline):
        """No part of the critical path takes negative time, and they add up to the latency."""
        ends = [wait.end for wait in timeline.critical_waits()]
        self.assertEqual(ends, sorted(ends))
        shares = timeline_report.critical_shares(timeline)
        self.assertGreaterEqual(min(share.time for share in shares), 0)
        self.assertAlmostEqual(sum(share.time for share in shares), timeline.latency)

    def test_busy(self):
        busy = self._timeline().busy()
        self.assertAlmostEqual(busy["vector"], 1000)
        self.assertAlmostEqual(busy["scalar"], 500)
        self.assertEqual(busy["tensor"], 0)

    def test_summary(self):
        text = timeline_report.summary(self._timeline(), lambda name: "weights")
        for part in ("modeled on trn2", "latency 3.", "weights: 245760", "kernel.py:1"):
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
            self.assertAlmostEqual(row["dur"], moving(1920) / 1e3)
        vector = [r for r in spans if names[r["pid"], r["tid"]] == "vector"]
        self.assertEqual([r["args"]["where"] for r in vector], ["kernel.py:2", "kernel.py:3"])


class BoundTest(parameterized.TestCase):
    @parameterized.parameters((1, "362"), (2, "725"))
    def test_hbm_of_all_cores(self, lnc, shown):
        """The chip's documented 2.9 TB/s belong to eight cores in equal parts."""
        timeline = schedule(record(*(Stream(core) for core in range(lnc))))
        self.assertAlmostEqual(timeline.hbm_bound(2_900_000), 1000 * 8 / lnc)
        self.assertIn(f" GB/s of {shown}\n", timeline_report.summary(timeline))


if __name__ == "__main__":
    absltest.main()
