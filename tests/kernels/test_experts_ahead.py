"""What layers with experts do early, so that their chain of steps is short: in what order."""

from __future__ import annotations

import contextlib
import dataclasses
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from jax_tkg.kernels.gaps import Gaps
from jax_tkg.lowering import kernel_limits
from jax_tkg.simulator.machine.record import Instruction
from jax_tkg.simulator.timing.pricing import moved
from jax_tkg.simulator.timing.timeline import schedule
from tests import cases, parallel_cases
from tests.kernels import launch

SHAPE = dataclasses.replace(
    cases.EXPERTS, q=2, k=1, d=64, S_ctx=4, S_max=8, B=1, S=1, H=256, E=8, E_held=8, I_expert=96,
    experts_per_token=2, options=(), L=2, routing="topk_softmax",
)  # fmt: skip
"""Two layers, of which a token chooses two experts: one for each of two cores."""


def _reads(result: simulator.Result, core: int, name: str) -> list[tuple[int, Instruction]]:
    """Places in a core's program of the transfers from a tensor, with these."""
    return [
        (place, instruction)
        for place, instruction in enumerate(result.record.streams[0, core])
        if any(access.name == name for access in moved(instruction)[0])
    ]


class NextLayerTest(parameterized.TestCase):
    @parameterized.parameters(1, 2)
    def test_the_next_projection_loads_before_the_experts(self, cores: int) -> None:
        """HBM would rest while the router chooses; without memory for it, it loads later."""
        for buffers in (3, 0):
            spare = kernel_limits.SpareSbuf(0, buffers)
            with mock.patch.object(kernel_limits, "spare_beside", return_value=spare):
                result = launch.check(SHAPE, cores=cores, record=True)
            for core in range(cores):
                (place, _), *_ = _reads(result, core, "W_qkvs[1]")
                first, *_ = _reads(result, core, "W_gates[0]")
                self.assertEqual(place < first[0], buffers > 0)

    @parameterized.parameters(1, 2)
    def test_in_a_loop_of_two_kinds(self, cores: int) -> None:
        """Each turn takes the same buffers again."""
        shape = dataclasses.replace(
            SHAPE, L=4, layer_kinds=(0, 1, 0, 1), kinds=((6, 8, False, "first"),)
        )
        result = launch.check(shape, cores=cores, stacked=True, record=True)
        for core in range(cores):
            first, second, *_ = (place for place, _ in _reads(result, core, "W_qkvs"))
            experts, *_ = (place for place, _ in _reads(result, core, "W_gates"))
            self.assertLess(first, second)
            self.assertLess(second, experts)

    @parameterized.parameters(1, 2)
    def test_some_of_it_if_not_all_fits(self, cores: int) -> None:
        """A row of a chunk fills a buffer; a core multiplies eight chunks or four."""
        shape = dataclasses.replace(SHAPE, q=8, k=1, d=128, H=1024, dtype="bfloat16")
        spare = kernel_limits.SpareSbuf(0, 2)
        with (
            mock.patch("jax_tkg.kernels.layer_kinds.WIDE_SLOT_BYTES", 4096),
            mock.patch("jax_tkg.kernels.narrow_experts.RING_SLOT_BYTES", 4096),
            mock.patch.object(kernel_limits, "spare_beside", return_value=spare),
        ):
            result = launch.check(shape, cores=cores, record=True)
        before = _reads(result, 0, "W_gates[0]")[0][0]
        places = [place for place, _ in _reads(result, 0, "W_qkvs[1]")]
        chunks = 8 // cores
        self.assertLen(places, chunks)
        self.assertEqual(
            [place < before for place in places], [index < 2 for index in range(chunks)]
        )

    @parameterized.parameters((1, 2), (2, 2), (2, 1))
    def test_biases_stay_until_they_are_added(self, chosen: int, cores: int) -> None:
        """Their rows lie beside the next layer's vectors, which are there before them."""
        shape = dataclasses.replace(
            SHAPE, options=("bias_downs",), I_expert=128, experts_per_token=chosen, L=3
        )
        for seed in range(2):
            launch.check(shape, seed=seed, cores=cores)

    def test_vectors_of_the_next_layer_load_before_the_experts(self) -> None:
        """HBM rests until experts are chosen."""
        result = launch.check(dataclasses.replace(SHAPE, experts_per_token=4), cores=2, record=True)
        for core in range(2):
            (gain, _), *_ = _reads(result, core, "W_gamma_qkvs[1]")
            (first, _), *_ = _reads(result, core, "W_gates[0]")
            self.assertLess(gain, first)


class LastProductTest(parameterized.TestCase):
    @parameterized.parameters(
        # Narrow experts and others; an odd number of chunks, of which both cores have the middle.
        (1024, 96, 2),
        (1152, 96, 4),
        (1024, 128, 2),
        (1152, 256, 4),
    )
    @pytest.mark.extended_except("0", "3")
    def test_what_the_other_core_waits_for_loads_first(
        self, H: int, I_expert: int, chosen: int
    ) -> None:
        shape = dataclasses.replace(SHAPE, H=H, I_expert=I_expert, experts_per_token=chosen, L=1)
        result = launch.check(shape, cores=2, record=True)
        half = (H // 128 + 1) // 2 * 128
        narrow = I_expert == 96
        # Two narrow experts run at once, each in pieces of 64 and 32 features.
        pieces = 2 * min(2, chosen // 2) if narrow else 1
        for core in range(2):
            loads = [moved(each)[1][0].shape for _, each in _reads(result, core, "W_downs[0]")]
            widths = [shape[-1] for shape in loads[-2 * pieces :]]
            self.assertEqual(widths, [half] * pieces + [H - half] * pieces)
            if I_expert == 256:
                # The first expert's rows in one load; of the last one, chunk by chunk.
                self.assertEqual([shape[1:] for shape in loads[:-2]], [(2, H), (1, H)])

    def test_short_rows_load_whole(self) -> None:
        """Halves of 512 bytes would be inefficient."""
        result = launch.check(dataclasses.replace(SHAPE, L=1), cores=2, record=True)
        for core in range(2):
            for _, each in _reads(result, core, "W_downs[0]"):
                self.assertEqual(moved(each)[1][0].shape[-1], SHAPE.H)


class VectorsTest(parameterized.TestCase):
    """Biases of experts load behind the first weights, for which nothing may wait."""

    @parameterized.parameters(1, 3)
    def test_turn_after_the_first_product(self, B: int) -> None:
        """The Tensor Engine keeps the order of the program."""
        shape = dataclasses.replace(SHAPE, B=B, I_expert=128, options=("bias_gates",), L=1)
        result = launch.check(shape, cores=2, record=True)
        for core in range(2):
            stream = result.record.streams[0, core]
            opcodes = [
                each.opcode
                for each in stream
                if each.engine == "tensor"
                and (
                    ("expert_vectors", "_turn") in each.functions
                    or ("experts", "_product") in each.functions
                )
            ]
            products = opcodes.index("nc_transpose")
            self.assertEqual(opcodes[:products], ["nc_matmul"] * (shape.H // 128))

    @parameterized.parameters((256, 2, 1), (384, 2, 1), (384, 4, 3))
    def test_biases_of_the_last_product_are_read_once(self, H: int, chosen: int, B: int) -> None:
        """Of the features that a core keeps; where one core runs all, that one reads all."""
        shape = dataclasses.replace(
            SHAPE, B=B, H=H, options=("bias_downs",), experts_per_token=chosen, L=1
        )
        result = launch.check(shape, cores=2, record=True)
        half = (H // 128 + 1) // 2 * 128
        widths = []
        for core in range(2):
            rows = [moved(each)[1][0] for _, each in _reads(result, core, "bias_downs[0]")]
            widths.append({access.shape[-1] for access in rows})
            # Not on the partitions of the DMA engine that loads other rows.
            self.assertEqual({access.partition_start for access in rows}, {96})
        self.assertEqual(widths, [{half}, {H - half}])

    def test_weights_of_wide_rows_load_at_once(self) -> None:
        """23 chunks of 360 columns, if a launch leaves room for wider buffers."""
        shape = dataclasses.replace(
            SHAPE, H=2944, I_expert=360, E=4, E_held=4, dtype="bfloat16", L=1
        )
        for buffers, loads in ((1, 1), (0, 2)):
            spare = kernel_limits.SpareSbuf(0, buffers)
            with mock.patch.object(kernel_limits, "spare_beside", return_value=spare):
                result = launch.check(shape, cores=2, record=True)
            for core in range(2):
                self.assertLen(_reads(result, core, "W_gates[0]"), loads)


class GapsTest(parameterized.TestCase):
    def test_skipped_passes_are_not_the_last(self) -> None:
        """Two of 16 have no expert; modeled, one of each core would take its products' time."""
        shape = dataclasses.replace(
            SHAPE, B=4, H=2048, E=32, E_held=32, I_expert=512, experts_per_token=4,
            dtype="bfloat16", L=1,
        )  # fmt: skip
        times = []
        for changed in (True, False):
            with contextlib.ExitStack() as stack:
                if not changed:
                    stack.enter_context(
                        mock.patch.object(Gaps, "between", lambda self, order, *_: order)
                    )
                result = launch.check(shape, cores=2, record=True)
            times.append(schedule(result.record).latency)
        self.assertLess(times[0], 0.97 * times[1])


class SinksTest(parameterized.TestCase):
    def test_are_added_in_one_step(self) -> None:
        """Their exponentials are there before the sum of the others is."""
        shape = dataclasses.replace(SHAPE, options=("sinks",), L=1)
        result = launch.check(shape, cores=2, record=True)
        for core in range(2):
            steps = [
                each.opcode
                for each in result.record.streams[0, core]
                if ("attention", "attention") in each.functions
            ]
            self.assertEqual(steps.count("activation"), 2)
            last = len(steps) - 1 - steps[::-1].index("activation")
            self.assertLess(last, steps.index("tensor_reduce", last))


class ChoiceTest(parameterized.TestCase):
    @parameterized.parameters(
        ("topk_softmax", True, 1, True),
        ("softmax_topk", True, 1, True),
        ("softmax_topk", False, 1, True),
        # Biases are added to scaled logits; several tokens are searched in SBUF.
        ("topk_softmax", True, 1, False),
        ("topk_softmax", True, 2, True),
    )
    def test_one_token_is_searched_where_its_logits_are(
        self, routing: str, normalize: bool, B: int, unscaled: bool
    ) -> None:
        """Before they are multiplied by its factor, which does not change their order."""
        options = () if unscaled else ("bias_routers",)
        shape = dataclasses.replace(
            SHAPE, routing=routing, normalize_expert_weights=normalize, B=B, options=options, L=1
        )
        result = launch.check(shape, cores=2, record=True)
        for core in range(2):
            stream = result.record.streams[0, core]
            (search, *_) = (each for each in stream if each.opcode == "max8")
            self.assertEqual(search.reads[0].space, "psum" if B == 1 else "sbuf")
            scaled = [
                each
                for each in stream[: stream.index(search)]
                if ("linear", "store_product") in each.functions
                and ("router", "router_logits") in each.functions
            ]
            self.assertEqual(not scaled, unscaled and B == 1)

    def test_weights_follow_the_factor(self) -> None:
        """Logits of a token with a small norm are far apart only after the norm."""
        shape = dataclasses.replace(SHAPE, L=1, experts_per_token=3)
        (row,) = parallel_cases.random_ranks(shape, 1, 1, 0)
        row[0]["X"] = (np.asarray(row[0]["X"]) / 64).astype(np.float32)
        hidden, K, V, written = cases.expected(shape, row, row)
        (output,), _ = launch.run(shape, row, cores=2)
        cases.check(output, shape, row[0], hidden, K[0], V[0], written)


class PairsOfHeadsTest(parameterized.TestCase):
    @parameterized.parameters((64, 2, 1, 128), (64, 3, 1, 64), (128, 2, 1, 128), (32, 2, 1, 32))
    def test_tiles_of_the_projection(self, d: int, q: int, k: int, width: int) -> None:
        """Two heads of 64 features in a tile, if their number is even; with biases."""
        shape = cases.Shape(
            B=2, S=2, L=1, H=256, I=128, d=d, q=q, k=k, S_ctx=4, S_max=8, options=("bias_qkvs",)
        )
        for cores in (1, 2):
            result = launch.check(shape, cores=cores, record=True)
            (_, load), *_ = _reads(result, 0, "W_qkvs[0]")
            loaded = {access.storage for access in moved(load)[1]}
            widths = {
                read.shape[-1]
                for each in result.record.streams[0, 0]
                if each.opcode == "nc_matmul"
                for read in each.reads
                if read.operand == "stationary" and read.storage in loaded
                and ("layer", "_heads") in each.functions
            }  # fmt: skip
            self.assertEqual(widths, {width})


if __name__ == "__main__":
    absltest.main()
