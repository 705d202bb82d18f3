"""The grid of modeled speed: its cells, its kept figures and its goals."""

from __future__ import annotations

import pathlib
import tempfile

from absl.testing import absltest

from benchmarks import trainium_model as grid


def _row(name: str, ours: grid.Figures, aws: grid.Figures = grid.NOT_RUN) -> grid.Row:
    return grid.Row(name, 100.0, ours, aws)


def _figures(compute: float, traffic: float = 0.001) -> grid.Modeled:
    return grid.Modeled(compute, {"5": compute + 5}, traffic)


class CellsTest(absltest.TestCase):
    def test_each_once(self) -> None:
        names = [name for name, _ in grid.cells()]
        self.assertLen(names, 216)
        self.assertLen(set(names), 216)


class FinishedTest(absltest.TestCase):
    def test_kernels_and_rates_have_files_of_their_own(self) -> None:
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        folder = pathlib.Path(made.name) / "results"
        first = grid.Finished(str(folder), "half")
        first.add("ours", "cell", _figures(120.0))
        grid.Finished(str(folder), "half").add("nkilib", "cell", "too many tokens")
        grid.Finished(str(folder), "full").add("ours", "cell", _figures(110.0))
        first.add("ours", "other", "too large")
        again = grid.Finished(str(folder), "half")
        self.assertEqual(again.get("ours", "cell"), _figures(120.0))
        self.assertEqual(again.get("ours", "other"), "too large")
        self.assertEqual(again.get("nkilib", "cell"), "too many tokens")
        self.assertIsNone(again.get("nkilib", "other"))
        self.assertEqual(grid.Finished(str(folder), "full").get("ours", "cell"), _figures(110.0))

    def test_without_a_folder(self) -> None:
        finished = grid.Finished(None, "half")
        finished.add("ours", "cell", "why")
        self.assertEqual(finished.get("ours", "cell"), "why")


class GoalsTest(absltest.TestCase):
    def test_lines(self) -> None:
        rows = [
            _row("near", _figures(110.0), _figures(220.0)),
            _row("far", _figures(170.0, 0.03), "one KV head"),
            _row("refused", "too many tokens"),
        ]
        mean, worst, traffic, against = grid.goals(rows)
        self.assertIn("1.367; goal 1.06: NOT met", mean)
        self.assertIn("(far): 1.700; goal 1.25: NOT met", worst)
        self.assertIn("(far): 0.030; goal 0.02: NOT met", traffic)
        self.assertIn("of 1 cells: 0.500; goal 0.65: met", against)

    def test_summary(self) -> None:
        rows = [
            _row("70b.tp8.B1.S1.ctx1024.fp8", _figures(110.0), _figures(220.0)),
            _row("70b.tp8.B2.S1.ctx1024.fp8", _figures(121.0), "too many tokens"),
            _row("8b.tp1.B1.S4.ctx1024.bf16", "too large"),
        ]
        self.assertEqual(
            grid.summary(rows)[2:],
            [
                "| 70b tp8 S1 fp8 | 2 | 1.15 | 1.21 | 2.20 | 0.50 |",
                "| 8b tp1 S4 bf16 | 0 | - | - | - | - |",
            ],
        )

    def test_no_figures(self) -> None:
        self.assertEqual(grid.goals([_row("one", "too large")]), ["no cell could be modeled"])


if __name__ == "__main__":
    absltest.main()
