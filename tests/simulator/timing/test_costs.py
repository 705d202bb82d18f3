"""The cost constants against the chip's totals in other documents, and their sources."""

import dataclasses

from absl.testing import absltest, parameterized

from jax_tkg.simulator.timing import costs
from jax_tkg.simulator.timing.costs import TRN2, TRN3, Figure
from jax_tkg.simulator.timing.instruction_costs import collective_time

_POLICIES = (
    *("target", "vector_and_gpsimd_share_sbuf", "tiles_in_parallel", "runs_end_with_rows"),
    *("default_trigger", "only_trigger"),
)


class FiguresTest(parameterized.TestCase):
    @parameterized.parameters(TRN2, TRN3)
    def test_every_number_has_a_source(self, target):
        for field in dataclasses.fields(target):
            value = getattr(target, field.name)
            if field.name in _POLICIES:
                continue
            self.assertIsInstance(value, Figure, field.name)
            self.assertGreater(len(value.source), 10, field.name)
            self.assertGreater(value, 0, field.name)

    @parameterized.parameters(TRN2, TRN3)
    def test_table_has_a_row_for_each_number(self, target):
        rows = list(costs.figures(target))
        self.assertLen(rows, len(dataclasses.fields(target)) - len(_POLICIES))
        by_name = {name: (value, unit, source) for name, value, unit, source in rows}
        value, unit, source = by_name["dma_bandwidth"]
        self.assertEqual((value, unit), (float(target.dma_bandwidth), "bytes/ns"))
        self.assertIn("bandwidth", source)
        self.assertStartsWith(by_name["barrier"][2], "assumed: ")

    def test_a_changed_number_is_marked(self):
        changed = dataclasses.replace(TRN2, all_reduce_latency=5000.0)
        rows = {name: source for name, _, _, source in costs.figures(changed)}
        self.assertEqual(rows["all_reduce_latency"], "set by the caller")
        self.assertEqual(TRN2.all_reduce_latency, 17_500)

    def test_tensor_engine_reaches_the_published_flops(self):
        """79 TFLOPS of bfloat16 (both generations) is 128 x 128 multiply-adds a cycle."""
        for target in (TRN2, TRN3):
            self.assertAlmostEqual(128 * 128 * 2 * target.tensor_clock * 1e9 / 1e12, 79, delta=0.5)

    @parameterized.parameters((TRN2, 368, 2.9e3), (TRN3, 528, 4.7e3))
    def test_bandwidths_of_core_and_chip(self, target, dma, hbm):
        self.assertEqual(target.dma_engines * target.dma_bandwidth, dma)
        self.assertAlmostEqual(8 * target.hbm_bandwidth, hbm)

    def test_unknown_trigger(self):
        with self.assertRaisesRegex(ValueError, "default_trigger='tensor': expected one of"):
            dataclasses.replace(TRN2, default_trigger="tensor")
        with self.assertRaisesRegex(ValueError, "only_trigger='dma': expected one of"):
            dataclasses.replace(TRN2, only_trigger="dma")

    def test_all_reduce_is_the_published_fit(self):
        """A third party's fit: 17.5 us + bytes / (100 GB/s), here of 64 KiB over 64 ranks."""
        modeled = collective_time(TRN2, "all_reduce", 65536, 64)
        self.assertAlmostEqual(modeled, 17_500 + 655.36, delta=0.01 * modeled)

    def test_clocks(self):
        self.assertEqual(TRN2.clock("vector"), 0.96)
        self.assertEqual(TRN3.clock("vector"), 1.2)
        with self.assertRaisesRegex(ValueError, "engine 'dma' is unknown; expected one of"):
            TRN2.clock("dma")


if __name__ == "__main__":
    absltest.main()
