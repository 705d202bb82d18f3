"""A layer's figures against what is known of small shapes without running them."""

import dataclasses

import pytest
from absl.testing import absltest, parameterized

from jax_tkg.profile import report
from jax_tkg.profile.layer import bound, layer_figures, record_launches, required_bytes
from jax_tkg.profile.model_shapes import MODELS, Case, LayerKind, rank_sizes
from jax_tkg.simulator.timing.costs import TRN2
from jax_tkg.simulator.timing.placement import Placement, place

SMALL = Case(B=2, S=2, H=512, I=256, d=64, q=4, k=2, S_ctx=258, tensor_parallel=4)


@pytest.mark.thorough
class LayerFiguresTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.launches = record_launches(SMALL)
        cls.figures = layer_figures(cls.launches)

    def test_latency_and_start_add_up(self):
        longer = self.figures.timeline.latency
        self.assertAlmostEqual(
            longer, self.figures.start_up + self.launches.layers * self.figures.latency
        )

    def test_critical_path_adds_up_to_the_latency(self):
        total = sum(time for _, time in self.figures.critical)
        self.assertAlmostEqual(total, self.figures.latency, places=3)

    def test_every_weight_is_read_once(self):
        self.assertEqual(self.figures.hbm_bytes["weights"], SMALL.weight_bytes())

    def test_cache_is_read_once_and_new_tokens_are_written(self):
        written = 2 * SMALL.B * SMALL.S * SMALL.k * SMALL.d * 2
        self.assertEqual(self.figures.hbm_bytes["cache"], SMALL.cache_bytes() + written)

    @parameterized.parameters({"lengths": True}, {"block_len": 64})
    @pytest.mark.extended_except("0")
    def test_lengths_and_blocks_read_the_slots_once(self, **changes):
        case = dataclasses.replace(SMALL, S_ctx=256, **changes)
        found = layer_figures(record_launches(case)).hbm_bytes
        # S_ctx cached slots beside the new ones, of which a mask would count S among the S_ctx.
        slots = case.cache_bytes() // (case.S_ctx - case.S) * case.S_ctx
        written = 2 * case.B * case.S * case.k * case.d * 2
        self.assertEqual(found["cache"], slots + written)
        self.assertEqual(found["other"], 0)

    @parameterized.parameters(
        {}, {"residual_on_chip": True, "looped": True, "lengths": True, "lnc": 1}
    )
    def test_a_shared_out_context_is_read_in_parts(self, **changes):
        case = dataclasses.replace(
            SMALL, k=1, S=1, S_ctx=256, tensor_parallel=8, context_parallel=4, **changes
        )
        launches = record_launches(case)
        found = layer_figures(launches)
        read = 2 * case.B * case.d * 256 // 4 * 2
        # One rank of the four writes the new token; its size alone is less than a slot of each.
        self.assertBetween(found.hbm_bytes["cache"] - read, 0, 2 * case.B * case.d * 2)
        self.assertEqual(found.hbm_bytes["weights"], case.weight_bytes())
        # Two all-reduces, the queries, and the softmaxes.
        free = layer_figures(launches, collectives=False)
        self.assertBetween(found.latency - free.latency, 4 * 17_500 - 9_000, 4 * 17_500 + 9_000)

    @parameterized.parameters({"context_parallel": 3}, {"context_parallel": 4, "S_ctx": 258})
    def test_ranks_divide_the_context(self, **changes):
        with self.assertRaisesRegex(ValueError, r"context_parallel=\d: expected a divisor of the"):
            dataclasses.replace(SMALL, k=1, **changes)

    @parameterized.parameters(1, 6)
    @pytest.mark.extended_except("0")
    def test_chosen_experts_are_read_once(self, tokens):
        case = dataclasses.replace(
            SMALL,
            **{"B": tokens, "S": 1, "H": 256, "I": 96, "experts": 16, "tensor_parallel": 1},
            operands=("W_routers",),
            options=(("experts_per_token", 3),),
        )
        found = layer_figures(record_launches(case)).hbm_bytes
        read = len({expert for chosen in case.chosen_experts() for expert in chosen})
        self.assertBetween(read, 3, 3 * tokens)
        self.assertEqual(found["experts"], 2 * read * 3 * 256 * 96)
        self.assertEqual(found["router"], 2 * 256 * 16)
        weights = found["weights"] + found["router"] + found["experts"]
        self.assertEqual(weights, case.weight_bytes())

    def test_blocks_divide_the_context(self):
        with self.assertRaisesRegex(ValueError, "block_len=60: expected a divisor of the context"):
            dataclasses.replace(SMALL, block_len=60)

    def test_all_reduces_are_counted_apart(self):
        """Two of them, each of H * T float32 numbers of which a rank sends 3/4 twice."""
        without = layer_figures(self.launches, collectives=False)
        self.assertEqual(without.busy["collective"], 0)
        transfer = 2 * 0.75 * 4 * SMALL.H * SMALL.B * SMALL.S / TRN2.collective_bandwidth
        self.assertAlmostEqual(
            self.figures.busy["collective"], 2 * (TRN2.all_reduce_latency + transfer), places=3
        )
        self.assertLess(without.latency, self.figures.latency)

    @parameterized.parameters(5, 25)
    @pytest.mark.extended_except("1")
    def test_all_reduce_latency_is_swept(self, microseconds):
        costs = dataclasses.replace(TRN2, all_reduce_latency=1e3 * microseconds)
        moved = layer_figures(self.launches, costs).latency - self.figures.latency
        # Nothing in so small a layer hides an all-reduce.
        self.assertAlmostEqual(moved / 2e3, microseconds - 17.5, delta=1)

    def test_deeper_launches_have_the_same_layer(self):
        deeper = layer_figures(record_launches(SMALL, layers=4))
        self.assertAlmostEqual(deeper.latency / self.figures.latency, 1, delta=0.05)
        self.assertEqual(deeper.instructions, self.figures.instructions)
        of_first_core = [entry for entry in deeper.timeline.events if entry.instruction.core == 0]
        self.assertLess(deeper.instructions, len({e.instruction.index for e in of_first_core}) / 2)

    def test_the_places_that_a_compiler_chooses_hardly_matter(self):
        """Vectors, keys and values have places of their own; without these it was 1.30."""
        sizes = rank_sizes(MODELS["llama3_70b"], 32)
        case = Case(
            B=4,
            S=1,
            S_ctx=1024,
            quantized_mlp="float8_e4m3",
            tensor_parallel=32,
            residual_on_chip=True,
            **sizes,
        )
        launches = record_launches(case)
        apart, oldest, lowest = (
            layer_figures(launches, collectives=False, placement=placement).latency
            for placement in (Placement.APART, Placement.OLDEST, Placement.LOWEST)
        )
        self.assertAlmostEqual(oldest / apart, 1)
        # Waiting may let another load go first, which may be faster.
        self.assertBetween(lowest / apart, 0.97, 1.05)
        stream = launches.records[1].streams[0, 0]
        for space in ("sbuf", "psum"):
            accesses = [access for each in stream for access in each.accesses]
            tensors = {access.storage for access in accesses if access.space == space}
            for placement in (Placement.OLDEST, Placement.LOWEST):
                self.assertCountEqual(place(stream, space, "trn2", placement), tensors)

    def test_what_is_stored_lies_apart_from_that_of_the_layer_before(self):
        """Else new keys and values would wait for stores that wait behind a layer's weights."""
        stored = [
            access
            for instruction in self.launches.records[1].streams[0, 0]
            if instruction.opcode == "dma_copy" and self._writes_a_cache(instruction)
            for access in instruction.reads
            if access.space == "sbuf" and access.dtype == "bfloat16"
        ]
        layers = self.launches.layers
        self.assertLen({access.storage for access in stored}, 1)
        each = len(stored) // layers
        self.assertLen(stored, each * layers)
        for before, after in zip(stored[:-each], stored[each:], strict=True):
            ranges = sorted([before.byte_range, after.byte_range])
            self.assertLessEqual(ranges[0][1], ranges[1][0])

    @staticmethod
    def _writes_a_cache(instruction):
        return any("cache" in access.name for access in instruction.writes)

    def test_layers_in_a_loop(self):
        """The same work; no layer begins before the one before it has ended."""
        launches = record_launches(dataclasses.replace(SMALL, looped=True))
        looped = layer_figures(launches)
        self.assertEqual(looped.hbm_bytes["weights"], SMALL.weight_bytes())
        self.assertGreater(looped.latency, self.figures.latency)
        events = looped.timeline.events
        turns = [e for e in events if e.instruction.opcode == "loop_turn"]
        self.assertLen(turns, launches.layers * SMALL.lnc)
        for turn in turns:
            same = [e for e in events if e.instruction.core == turn.instruction.core]
            before = [e.end for e in same if e.instruction.index < turn.instruction.index]
            behind = [e.start for e in same if e.instruction.index > turn.instruction.index]
            self.assertLessEqual(max(before), turn.start)
            self.assertGreaterEqual(min(behind), turn.start + TRN2.loop_turn)
        longer = layer_figures(launches, dataclasses.replace(TRN2, loop_turn=12_000.0))
        self.assertAlmostEqual(longer.latency - looped.latency, 3000, places=3)

    def test_report_says_modeled(self):
        text = report.describe(SMALL, self.figures, "kernel")
        for part in (
            "modeled latency of a layer",
            f"{self.figures.latency / 1e3:.2f} us",
            f"{self.figures.start_up / 1e3:.2f} us",
            f"{SMALL.weight_bytes()} bytes",
            "kernels/linear.py:",
        ):
            self.assertIn(part, text)
        for line in text.splitlines():
            if not line.startswith("    "):
                self.assertIn("modeled", line)

    def test_token_of_two_kinds_of_layers(self):
        few = dataclasses.replace(SMALL, S_ctx=100, attended=90)
        kinds = [
            (LayerKind(2), SMALL, self.figures),
            (LayerKind(5, 90), few, dataclasses.replace(self.figures, latency=1000.0)),
        ]
        text = report.describe_token(kinds)
        token = self.figures.start_up + 2 * self.figures.latency + 5000
        least = 2 * bound(SMALL) + 5 * bound(few)
        for part in (
            f"head: {token / 1e3:.2f} us, {token / least:.2f} times the HBM bound",
            f"{2 * self.figures.latency / 1e3:.2f} us  2 layers, ",
            "5.00 us  5 layers with a window of 90 slots, ",
        ):
            self.assertIn(part, text)

    def test_one_layer_is_too_few(self):
        with self.assertRaisesRegex(ValueError, "layers=1: expected 2 or more"):
            record_launches(SMALL, layers=1)

    def test_kernel_limits_hold(self):
        with self.assertRaisesRegex(ValueError, "at most 256 tokens"):
            record_launches(dataclasses.replace(SMALL, B=129))

    def test_required_bytes(self):
        total = sum(self.figures.hbm_bytes.values())
        self.assertGreater(total, required_bytes(SMALL))


if __name__ == "__main__":
    absltest.main()
