"""What is read off a timeline: critical path, busy times, bound, summary and trace."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jax_tkg.simulator.timing import timeline_report
from jax_tkg.simulator.timing.timeline import schedule
from tests.simulator.streams import Stream, record
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
