"""The transfers of a layer, against what its sizes make known."""

import pytest
from absl.testing import absltest

from jax_tkg.profile.layer import record_launches
from jax_tkg.profile.loads import describe_loads, layer_loads
from jax_tkg.profile.model_shapes import Case
from jax_tkg.profile.stress_range import describe, on_machines
from jax_tkg.simulator.timing.costs import TRN2
from jax_tkg.simulator.timing.stress import FAVORABLE, MACHINES, UNFAVORABLE

WIDE = Case(B=2, S=1, H=1024, I=4096, d=64, q=4, k=2, S_ctx=258, tensor_parallel=4)
"""Of which two rows of W_gate fill a buffer, and eight of W_down."""

SMALL = Case(B=2, S=1, H=512, I=256, d=64, q=4, k=2, S_ctx=258, tensor_parallel=4)


@pytest.mark.thorough
class LoadsTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.launches = record_launches(SMALL)

    def test_transfers_of_a_layer(self):
        counts = layer_loads(self.launches)
        read = [count for count in counts if not count.load.written]
        self.assertEqual(
            sum(count.nbytes for count in read), SMALL.weight_bytes() + SMALL.cache_bytes()
        )
        by_tensor = {count.load.tensor: count.load for count in read}
        # All rows of a core's half of H are one run of bfloat16.
        heads = (SMALL.q + 2 * SMALL.k) * SMALL.d
        self.assertEqual(by_tensor["W_qkvs"].run, 2 * heads * SMALL.H // 2)
        for load in by_tensor.values():
            self.assertEqual((load.trigger, load.descriptors), ("sync", "hardware"), load)
        written = {count.load.tensor: count.load for count in counts if count.load.written}
        self.assertEqual(written["K_caches"].run, 2)
        self.assertEqual(written["K_caches"].trigger, "scalar")
        self.assertEqual(written["V_caches"].trigger, "gpsimd")
        text = describe_loads(counts, "jax_tkg")
        self.assertRegex(text, r"W_qkvs +read +262144 .* sync, hardware +kernels/layer_tensor.py")

    def test_whole_rows_are_one_piece_of_hbm(self):
        """Of W_gate and W_up in both halves of H, of W_down in both halves of I."""
        counts = layer_loads(record_launches(WIDE))
        read = [count for count in counts if not count.load.written]
        self.assertEqual(
            sum(count.nbytes for count in read), WIDE.weight_bytes() + WIDE.cache_bytes()
        )
        for tensor, row in (("W_gates", WIDE.I), ("W_ups", WIDE.I), ("W_downs", WIDE.H)):
            (load,) = [count.load for count in read if count.load.tensor == tensor]
            self.assertEqual((load.run, load.row), (128 * 16384, 16384), tensor)
            self.assertEqual(16384 % (2 * row), 0)

    def test_every_copy_names_its_descriptors(self):
        """What is left to the compiler may be triggered by the GpSimd Engine."""
        for record in self.launches.records:
            for stream in record.streams.values():
                for each in stream:
                    if each.opcode == "dma_copy":
                        self.assertNotEqual(each.attributes["dge_mode"], "unknown", each.where)

    def test_range_over_machines(self):
        single = ("GpSimd triggers", "slow signals", "lowest addresses")
        chosen = ("documented", *single, UNFAVORABLE.name, FAVORABLE.name)
        machines = [machine for machine in MACHINES if machine.name in chosen]
        found = on_machines(self.launches, TRN2, machines)
        by_name = {machine.name: latency for machine, latency, _ in found}
        self.assertLen(by_name, len(chosen))
        self.assertEqual(min(by_name, key=by_name.__getitem__), FAVORABLE.name)
        for name in single:
            self.assertBetween(by_name[name], by_name["documented"], by_name[UNFAVORABLE.name])
        self.assertNotAlmostEqual(by_name["lowest addresses"], by_name["documented"])
        low, high = (by_name[m.name] / 1e3 for m in (FAVORABLE, UNFAVORABLE))
        text = describe([each for each in found if each[0] in (FAVORABLE, UNFAVORABLE)])
        self.assertIn(f"{low:.2f} to {high:.2f} us", text)


if __name__ == "__main__":
    absltest.main()
