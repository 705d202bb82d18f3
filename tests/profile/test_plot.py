"""The picture's bars against a schedule made by hand."""

import itertools
import pathlib
import tempfile

import pytest
from absl.testing import absltest

from jax_tkg.profile import plot
from jax_tkg.profile.layer import layer_figures, record_launches
from jax_tkg.profile.model_shapes import Case
from jax_tkg.simulator.timing.timeline import schedule
from tests.simulator.streams import Stream, access, record


def _weights(stream: Stream, storage: int, name: str) -> None:
    stream.load(storage, 1920)
    stream.instructions[-1].accesses[0].name = name
    stream.add(
        "tensor",
        "nc_matmul",
        access("stationary", "sbuf", storage, (128, 128), dtype="bfloat16", write=False),
        access("moving", "sbuf", 90, (128, 512), dtype="bfloat16", write=False),
        access("dst", "psum", 91, (128, 512)),
    )
    function = "_heads" if "qkv" in name else "_project_out"
    stream.instructions[-1].functions = (("linear", "linear"), ("layer", function))


class BarsTest(absltest.TestCase):
    def _timeline(self):
        stream = Stream()
        for storage, name in ((1, "W_qkvs[0]"), (2, "W_outs[0]"), (3, "W_qkvs[1]")):
            _weights(stream, storage, name)
        stream.vector(50, 51)
        return schedule(record(stream))

    def test_products_are_labeled_by_the_functions_that_they_stand_in(self):
        found = [bar for bar in plot.bars(self._timeline()) if bar[0] == "tensor"]
        self.assertEqual([bar[1] for bar in found], ["QKV", "output", "QKV"])

    def test_loads_are_labeled_by_their_weights_and_touch(self):
        """A DMA engine moves 8 rows of 1920 bytes per transfer, one after the other."""
        found = [bar for bar in plot.bars(self._timeline()) if bar[0] == "dma"]
        self.assertEqual([bar[1] for bar in found], ["QKV", "output", "QKV"])
        for before, after in itertools.pairwise(found):
            self.assertAlmostEqual(before[3], after[2])

    def test_what_stands_in_no_stage(self):
        found = [bar for bar in plot.bars(self._timeline()) if bar[0] == "vector"]
        self.assertEqual(found, [("vector", "other", 0.0, 500.0)])

    def test_layer_span(self):
        timeline = self._timeline()
        products = [e for e in timeline.events if e.resource == "tensor"]
        self.assertEqual(plot.layer_span(timeline), (products[0].start, products[2].start))


class WriteTest(absltest.TestCase):
    def test_png(self):
        pytest.importorskip("matplotlib")
        case = Case(B=1, S=1, H=256, I=128, d=64, q=2, k=1, S_ctx=129)
        figures = layer_figures(record_launches(case))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "layer.png"
            plot.write_plot(figures, "modeled", path)
            self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")


if __name__ == "__main__":
    absltest.main()
