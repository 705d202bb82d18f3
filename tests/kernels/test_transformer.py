"""The megakernel in the simulator against the float64 oracle.

Every run also holds the simulator's rules: no memory is read that was never written, cores do not
race, core barriers stand where AWS's compiler wants them, everything fits on chip.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.kernels import layer_sequence, masks
from jax_tkg.lowering import kernel_operands
from jax_tkg.simulator import language
from jax_tkg.simulator.memory.addressing import VirtualRegister
from tests import cases
from tests.kernels import launch

_EXPERTS = dataclasses.replace(cases.EXPERTS, L=1)


def _reads(instruction: Any, name: str) -> bool:
    return any(access.name == name for access in instruction.reads)


@pytest.mark.thorough
class FixedTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (f"{name}_{cores}_cores", shape, cores)
        for name, shape in cases.SHAPES.items()
        for cores in (1, 2)
    )
    @pytest.mark.extended_except("*_2_cores")
    def test_named_shape(self, shape: cases.Shape, cores: int) -> None:
        launch.check(shape, cores=cores)

    @parameterized.named_parameters((name, own) for name, own in cases.ONE_OPTION.items())
    def test_one_option(self, fields: dict[str, Any]) -> None:
        """Each option of a layer alone, on two ranks of two cores."""
        launch.check(cases.Shape(q=6, S=3, L=1, **fields), ranks=2, cores=2)

    @parameterized.product(ranks=(2, 4), cores=(1, 2), on_chip=(False, True))
    @pytest.mark.extended_except("3", "4")
    def test_ranks(self, ranks: int, cores: int, on_chip: bool) -> None:
        shape = cases.Shape(q=2, k=1, H=384, I=128, L=2)
        launch.check(shape, ranks=ranks, cores=cores, on_chip=on_chip)

    @parameterized.product(
        given=((dataclasses.replace(cases.Shape(), L=1), 4), (_EXPERTS, 5)), cores=(1, 2)
    )
    def test_memory_in_hbm(self, given: tuple[cases.Shape, int], cores: int) -> None:
        """NKI 0.7 wants private memory for collectives of one core; two cores share theirs.

        Two all-reduces have two tensors each, and the experts' input one. Results are shared.
        """
        shape, tensors = given
        found: collections.Counter[str] = collections.Counter()
        ndarray = language.ndarray

        def recorded(*args: Any, **options: Any) -> Any:
            found[options["buffer"].name] += 1
            return ndarray(*args, **options)

        with mock.patch("nki.language.ndarray", recorded):
            launch.check(shape, ranks=2, cores=cores)
        private, shared = (tensors, 1) if cores == 1 else (0, tensors + 1)
        programs = 2 * cores
        self.assertEqual(found["private_hbm"], programs * private)
        self.assertEqual(found["shared_hbm"], programs * shared)

    @parameterized.product(ranks=(1, 2), cores=(1, 2), on_chip=(False, True))
    @pytest.mark.extended_except("1", "6")
    def test_stacked(self, ranks: int, cores: int, on_chip: bool) -> None:
        shape = cases.Shape(L=3)
        launch.check(shape, ranks=ranks, cores=cores, stacked=True, on_chip=on_chip)

    @parameterized.parameters(*cases.SHAPES)
    @pytest.mark.extended_except("0", "1", "7", "9", "11", "12")
    def test_loop_of_named_shape(self, name: str) -> None:
        shape = cases.SHAPES[name]
        if len(set(shape.quantized)) > 1:
            shape = dataclasses.replace(shape, quantized=shape.quantized[:1] * shape.L)
        launch.check(dataclasses.replace(shape, bare_layers=()), cores=2, stacked=True)

    @parameterized.parameters(
        # Unrolled; in a loop of two turns, with a layer after it; not enough for a loop.
        ({"L": 3, "layer_kinds": (0, 1, 1)}, False, 0),
        ({"L": 5, "layer_kinds": (0, 1, 0, 1, 0)}, True, 2),
        ({"L": 5, "layer_kinds": (1, 0, 0, 1, 0)}, True, 0),
    )
    @pytest.mark.extended_except("1", "2")
    def test_kinds(self, sizes: dict[str, Any], stacked: bool, turns: int) -> None:
        """Masks of a kind that stay on chip, and masks of another that do not."""
        shape = cases.Shape(**sizes, S_ctx=300, S_max=310, kinds=((30, 40, True, "each"),))
        loops: list[int] = []
        loop = layer_sequence.nl.fori_loop

        def watched(lower: Any, upper: Any, body: Any) -> None:
            loops.append(upper - lower)
            loop(lower, upper, body)

        with (
            mock.patch.object(masks, "_mask_room", return_value=40),
            mock.patch.object(layer_sequence.nl, "fori_loop", watched),
        ):
            launch.check(shape, ranks=2, cores=2, stacked=stacked)
        self.assertEqual(set(loops), {turns} if turns else set())

    @parameterized.product(
        S_ctx=(128, 129, 255, 256, 300, 512), cores=(1, 2), unified=(True, False)
    )
    @pytest.mark.extended_except("1", "4", "9", "13", "16", "19", "23")
    def test_contexts(self, S_ctx: int, cores: int, unified: bool) -> None:
        shape = cases.Shape(B=1, q=2, k=1, L=1, S_ctx=S_ctx, S_max=600, unified=unified)
        launch.check(shape, cores=cores)

    @parameterized.parameters((2048, 1), (2304, 2), (4500, 1), (4500, 2))
    def test_several_blocks(self, S_ctx: int, cores: int) -> None:
        """Contexts longer than one block of slots, so that the softmax streams."""
        shape = cases.Shape(B=1, S=2, q=4, k=2, L=1, S_ctx=S_ctx, S_max=S_ctx + 100)
        launch.check(shape, cores=cores)

    @parameterized.product(cores=(1, 2), room=(0, 1200, 2400))
    @pytest.mark.extended_except("1", "5")
    def test_groups_of_several_blocks(self, cores: int, room: int) -> None:
        """Two groups of sequences; masks of all, some or no blocks stay on chip."""
        shape = cases.Shape(B=3, S=4, q=16, k=2, d=256, L=2, S_ctx=2304, S_max=2304)
        with mock.patch.object(masks, "_mask_room", return_value=room):
            result = launch.check(shape, cores=cores, record=True)
        loads = [i for i in result.record.streams[(0, 0)] if _reads(i, "prior_mask")]
        # Bytes: blocks of 10 and 8 chunks on one core, of 9 on each of two; 128 and 64 columns.
        blocks = {1: (1280, 1024, 640, 512), 2: (1152, 576)}[cores]
        kept = {0: (), 1200: ((1024,), (1152,)), 2400: ((1280, 1024), (1152, 576))}[room]
        kept = len(kept[cores - 1]) if kept else 0
        self.assertLen(loads, kept + shape.L * (len(blocks) - kept))

    def test_masks_lie_in_other_groups(self) -> None:
        """One core attends two sequences at once; masks lie as those of two, one, two, one."""
        shape = cases.Shape(B=6, S=4, q=16, k=2, L=1, S_ctx=40, S_max=64)
        launch.check(shape, cores=1)

    def test_scores_far_apart_stream(self) -> None:
        """Later blocks hold far larger scores than earlier ones, and the other way round."""
        for sign in (1, -1):
            shape = cases.Shape(B=1, S=1, q=1, k=1, d=64, L=1, S_ctx=4300, S_max=4400)
            rng = np.random.default_rng(0)
            arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
            arguments["mask_cache"][:] = True
            ramp = np.linspace(-1, 1, shape.S_max, dtype=np.float32) * 40 * sign
            arguments["K_caches"] = [cache * ramp for cache in arguments["K_caches"]]
            (out,), _ = launch.run(shape, [arguments])
            hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
            cases.check(out, shape, arguments, hidden, K[0], V[0], written)

    @pytest.mark.extended
    def test_many_sequences(self) -> None:
        """More columns of scores than a PSUM bank holds."""
        shape = cases.Shape(B=8, S=8, q=9, k=3, H=128, I=128, L=1, S_ctx=40, S_max=64)
        for cores in (1, 2):
            launch.check(shape, cores=cores)

    @parameterized.product(cores=(1, 2), clamp_bound=(0.0, 0.5), on_chip=(False, True))
    @pytest.mark.extended_except("3")
    def test_many_tokens(self, cores: int, clamp_bound: float, on_chip: bool) -> None:
        """Stages that go on piece by piece, and swaps by either kind of DMA."""
        shape = cases.Shape(
            B=16,
            S=4,
            q=4,
            k=2,
            H=1408,
            I=1408,
            L=1,
            dtype="bfloat16",
            quantized=(("float8_e4m3", None, "float8_e5m2"),),
            clamp_bound=clamp_bound,
        )
        launch.check(shape, ranks=2, cores=cores, on_chip=on_chip)

    def test_more_columns_than_psum(self) -> None:
        """An MLP whose products do not fit in PSUM at once."""
        shape = cases.Shape(B=8, S=8, q=1, k=1, H=128, I=5120, L=1)
        launch.check(shape)

    def test_output_is_not_zero(self) -> None:
        shape = cases.SHAPES["one_head"]
        (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
        (out,), _ = launch.run(shape, row)
        self.assertGreater(np.abs(np.asarray(out.hidden, np.float32)).max(), 0)

    @parameterized.parameters(1, 2)
    def test_loads_begin_before_what_their_stage_waits_for(self, sequences: int) -> None:
        """Before all-reduces and swaps: an engine that triggers all of them does so in order."""
        shape = cases.Shape(B=sequences, H=256, L=2)
        result = launch.check(shape, ranks=2, cores=2, on_chip=True, record=True)
        stream = result.record.streams[(0, 0)]
        reductions = [i for i, each in enumerate(stream) if each.opcode == "all_reduce"]
        self.assertLen(reductions, 4)

        def first(name: str) -> int:
            return next(i for i, each in enumerate(stream) if _reads(each, name))

        for layer, begin in ((0, 0), (1, reductions[1])):
            middle, end = reductions[2 * layer], reductions[2 * layer + 1]
            self.assertLess(first(f"W_gamma_mlps[{layer}]"), first(f"W_gates[{layer}]"))
            self.assertLess(first(f"W_gates[{layer}]"), middle)
            self.assertLess(first(f"W_downs[{layer}]"), end)
            # Of sums of squares one swap, then one of each product that is not complete.
            for name, since, swaps in (
                ("K_caches", begin, 1),
                ("W_outs", begin, 2),
                ("W_ups", middle, 1),
                ("W_downs", middle, 2),
            ):
                before = [each.opcode for each in stream[since : first(f"{name}[{layer}]")]]
                self.assertEqual(before.count("sendrecv"), swaps, name)
        self.assertLess(first("W_qkvs[1]"), reductions[1])

    def test_instructions_per_layer_do_not_grow_with_depth(self) -> None:
        counts = []
        for layers in (1, 2, 3):
            shape = dataclasses.replace(cases.SHAPES["one_head"], L=layers)
            counts.append(len(launch.check(shape, record=True).record))
        self.assertEqual(counts[2] - counts[1], counts[1] - counts[0])

    @pytest.mark.extended
    def test_instructions_of_a_loop_do_not_grow_with_depth(self) -> None:
        """With stacked tensors the device repeats one copy of a layer."""
        bodies: list[int] = []

        def once(lower: Any, upper: Any, body: Any) -> None:
            bodies.append(upper - lower)
            body(VirtualRegister(lower))

        counts = []
        for layers in (2, 5):
            shape = cases.Shape(L=layers)
            (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
            with mock.patch.object(layer_sequence.nl, "fori_loop", once):
                _, result = launch.run(shape, row, stacked=True, record=True)
            counts.append(len(result.record))
        self.assertEqual(bodies, [2, 5])
        self.assertEqual(counts[0], counts[1])

    def test_loop_executes_the_same_for_every_layer(self) -> None:
        counts = []
        for layers in (1, 2, 3):
            result = launch.check(cases.Shape(L=layers), stacked=True, record=True)
            counts.append(len(result.record))
        self.assertEqual(counts[2] - counts[1], counts[1] - counts[0])

    def test_stacked_caches_of_too_many_numbers_are_not_looped(self) -> None:
        """The offset of an element in all keys must fit in a register."""
        shape = cases.Shape(L=3)
        (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
        operands, _ = launch.canonical(cases.stack(row[0]), **cases.options(shape))
        size = operands.K_caches.size
        self.assertTrue(kernel_operands.layers_loop(operands))
        with mock.patch.object(kernel_operands, "LARGEST_OFFSET", size - 1):
            self.assertFalse(kernel_operands.layers_loop(operands))
        with mock.patch.object(kernel_operands, "LARGEST_OFFSET", size):
            self.assertTrue(kernel_operands.layers_loop(operands))


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
class RealSizeTest(parameterized.TestCase):
    """One layer of real models, against the reference: the oracle's loops would take long.

    The reference is compared with the oracle elsewhere.
    """

    @parameterized.named_parameters(
        ("llama_3_70b", {"B": 4, "q": 8, "H": 8192, "I": 3584, "S_ctx": 1024}),
        ("llama_3_70b_long", {"B": 1, "q": 8, "H": 8192, "I": 3584, "S_ctx": 36864}),
        ("llama_3_8b_one_rank", {"B": 2, "q": 32, "k": 8, "H": 4096, "I": 14336, "S_ctx": 1024}),
    )
    @pytest.mark.extended
    def test_layer(self, sizes: dict[str, int]) -> None:
        sizes = {"S": 1, "k": 1, "d": 128, "L": 1, "S_max": sizes["S_ctx"], **sizes}
        shape = cases.Shape(**sizes, dtype="bfloat16")
        (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
        want = jax_tkg.transformer_tkg(**row[0], **cases.options(shape))
        (got,), _ = launch.run(shape, row, cores=2)
        for one, other in (
            (got.hidden, want.hidden),
            (got.K_caches[0], want.K_caches[0]),
            (got.V_caches[0], want.V_caches[0]),
        ):
            wide = np.asarray(other, np.float32)
            error = np.abs(np.asarray(one, np.float32) - wide).max()
            self.assertLess(error, 0.025 * np.abs(wide).max())


if __name__ == "__main__":
    absltest.main()
