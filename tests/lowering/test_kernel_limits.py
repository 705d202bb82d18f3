"""The kernel's limits: refused before the launch, and figures that hold against the simulator's."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any
from unittest import mock

import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import hardware
from jax_tkg.call.dimensions import Dimensions
from jax_tkg.kernels import limits
from jax_tkg.lowering import kernel_limits
from jax_tkg.simulator.machine import capacity
from tests import cases
from tests.kernels import launch

SHAPES = {
    "one_head": cases.SHAPES["one_head"],
    "odd_groups": cases.SHAPES["odd_groups"],
    "float8": cases.SHAPES["float8"],
    "wide": cases.Shape(B=4, S=2, q=2, k=1, H=2048, I=1024, L=1, dtype="bfloat16"),
    "float8_caches": cases.Shape(B=8, S=4, q=4, k=4, L=1, cache_dtype="float8_e4m3"),
    "wide_mlp": cases.Shape(B=8, S=4, q=1, k=1, H=512, I=4096, L=1),
    "long": cases.Shape(B=2, S=2, q=8, k=2, L=1, S_ctx=2304, S_max=2304),
    "large_heads": cases.Shape(B=16, S=8, q=8, k=8, d=256, L=1),
    "options": cases.Shape(B=8, S=4, H=1024, L=1, dtype="bfloat16", **cases.EVERY_OPTION),
    "experts": dataclasses.replace(
        cases.EXPERTS, H=512, B=4, L=1, I_expert=200, I_shared=128, dtype="bfloat16"
    ),
    "experts_of_many_tokens": dataclasses.replace(
        cases.EXPERTS,
        H=1024,
        B=16,
        S=8,
        q=2,
        k=1,
        L=1,
        I_expert=512,
        E=40,
        E_held=40,
        dtype="bfloat16",
        experts_per_token=4,
        activation="swiglu_oai",
        options=("bias_gates", "bias_ups", "bias_downs"),
    ),
    "many_tokens": cases.Shape(B=16, S=8, q=2, k=1, H=1024, I=1024, L=1, dtype="bfloat16"),
    "two_blocks_of_tokens": cases.Shape(B=64, S=4, q=2, k=1, H=1024, I=1024, L=1, dtype="bfloat16"),
    "experts_of_two_blocks": dataclasses.replace(
        cases.EXPERTS, H=512, B=64, S=4, q=2, k=1, L=1, I_expert=256, dtype="bfloat16"
    ),
    "head_norms": cases.Shape(
        B=64, S=4, q=8, k=8, d=256, L=1, dtype="bfloat16", options=("W_gamma_qs", "W_gamma_ks")
    ),
    "context_read_twice": dataclasses.replace(
        cases.EXPERTS, B=1, S=8, q=8, k=1, d=64, L=1, S_ctx=2000, S_max=2048
    ),
    # Their heads, which wait for the update of the caches, and a product of many features.
    "heads_beside_mlp": cases.Shape(
        B=128, S=2, q=24, k=8, d=32, I=21504, L=1, dtype="bfloat16", S_ctx=128, S_max=128
    ),
    # What is converted to float32.
    "float8_in_float32": cases.Shape(
        B=1, S=1, q=1, k=1, H=2048, I=1024, L=1, quantized=(("float8_e4m3",) * 3,)
    ),
    "norms_of_many_heads": cases.Shape(
        B=256, S=1, q=40, k=1, d=32, L=1, dtype="float16", options=("W_gamma_qs",)
    ),
}


def _dimensions(shape: cases.Shape) -> Dimensions:
    fields = {field.name for field in dataclasses.fields(Dimensions)} - {"dtype"}
    sizes = {name: getattr(shape, name) for name in fields}
    return Dimensions(**sizes, dtype=jnp.dtype(shape.dtype))


@pytest.mark.thorough
class SbufTest(parameterized.TestCase):
    @parameterized.product(name=tuple(SHAPES), cores=(1, 2), stacked=(False, True))
    @pytest.mark.extended_except(
        "1",
        "3",
        "6",
        "9",
        "11",
        "13",
        "17",
        "18",
        "21",
        "22",
        "25",
        "26",
        "30",
        "33",
        "35",
        "37",
        "38",
        "44",
        "47",
        "49",
        "54",
        "56",
        "62",
        "66",
        "69",
        "72",
    )
    def test_estimate_covers_what_the_simulator_counts(
        self, name: str, cores: int, stacked: bool
    ) -> None:
        # Two layers take every buffer of the ring again, so that all are in use at one time; and in
        # the loop over stacked tensors the first's result stays.
        shape = dataclasses.replace(SHAPES[name], L=2, quantized=SHAPES[name].quantized[:1] * 2)
        self._check_estimate(shape, cores, stacked)

    @parameterized.parameters((1, True), (2, False))
    @pytest.mark.extended_except("0")
    def test_estimate_of_kinds(self, cores: int, stacked: bool) -> None:
        """Masks and tables of all kinds, and the largest attention; a loop of two turns."""
        shape = cases.Shape(
            B=4,
            q=8,
            L=4,
            layer_kinds=(0, 1, 0, 1),
            S_ctx=640,
            S_max=640,
            kinds=((2304, 2304, False, "first"),),
        )
        self._check_estimate(shape, cores, stacked)

    def _check_estimate(self, shape: cases.Shape, cores: int, stacked: bool) -> None:
        peaks: list[int] = []

        def measure(machine: Any) -> None:
            peaks.extend(capacity.peak_bytes(core, "sbuf") for core in machine.cores.values())

        (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
        with mock.patch("jax_tkg.simulator.launch.capacity.check", measure):
            launch.run(shape, row, cores=cores, stacked=stacked)
        self.assertLen(peaks, cores)
        kinds = [_dimensions(shape.of_kind(kind)) for kind in range(1 + len(shape.kinds))]
        float8 = any(shape.quantized) if shape.quantized else False
        norms = not {"W_gamma_qs", "W_gamma_ks"}.isdisjoint(shape.options)
        needed = kernel_limits.sbuf_bytes(
            kinds[0], cores, kinds[1:], float8=float8, head_norms=norms
        )
        estimate = sum(needed.values())
        spare = kernel_limits.spare_beside(estimate, shape.E > 0)
        estimate += spare.place_bytes
        held = spare.taken - spare.place_bytes
        self.assertLessEqual(max(peaks), estimate + held)
        # An estimate far above the truth would refuse what runs.
        self.assertLess(estimate, 1.5 * max(peaks))

    @parameterized.parameters("RING_BYTES", "CONSTANT_BYTES", "SOFTMAX_TILES")
    def test_constants_are_the_kernels(self, name: str) -> None:
        """The estimate reads them: doubling one changes it."""
        dimensions = _dimensions(SHAPES["long"])
        before = sum(kernel_limits.sbuf_bytes(dimensions, 1).values())
        with mock.patch.object(limits, name, 2 * getattr(limits, name)):
            self.assertGreater(sum(kernel_limits.sbuf_bytes(dimensions, 1).values()), before)

    def test_reading_the_constants_does_not_import_nki(self) -> None:
        program = "import sys, jax_tkg.kernels.limits; sys.exit('nki' in sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True)


LLAMA_70B = cases.Shape(B=1, S=1, q=8, k=1, d=128, H=8192, I=3584, L=1, dtype="bfloat16")
LLAMA_8B = cases.Shape(B=1, S=1, q=32, k=8, d=128, H=4096, I=14336, L=1, dtype="bfloat16")
GEMMA2_9B = cases.Shape(B=8, S=1, q=16, k=8, d=256, H=3584, I=14336, L=1, dtype="bfloat16")


class LimitsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("few_tokens", LLAMA_70B, limits.PLACE_BYTES),
        ("many_tokens", dataclasses.replace(LLAMA_70B, B=256, q=2), 0),
        ("long", dataclasses.replace(LLAMA_8B, B=16, S=4, S_ctx=10240, S_max=10240), None),
    )
    def test_places_take_what_is_left(self, shape: cases.Shape, expected: int | None) -> None:
        """Never more, and nothing of what a compiler needs itself."""
        needed = sum(kernel_limits.sbuf_bytes(_dimensions(shape), 1).values())
        spare = kernel_limits.spare_beside(needed, has_experts=False)
        found = spare.place_bytes
        self.assertEqual(spare.held_buffers, 0)
        if expected is None:
            self.assertBetween(found, 0, limits.PLACE_BYTES)
        else:
            self.assertEqual(found, expected)
        if found:
            left = kernel_limits.SBUF_BYTES - needed - found
            self.assertGreaterEqual(left, hardware.RESERVED_SBUF_BYTES)

    @parameterized.parameters(1, 2)
    def test_places_of_a_call(self, cores: int) -> None:
        """As many as `sbuf_bytes` of all kinds leave."""
        shape = cases.Shape(
            B=4,
            L=2,
            layer_kinds=(0, 1),
            S_ctx=640,
            S_max=640,
            kinds=((2304, 2304, False, "first"),),
        )
        (row,) = launch.parallel_cases.random_ranks(shape, 1, 1, 0)
        operands, parameters = launch.canonical(row[0], **cases.options(shape))
        kinds = [_dimensions(shape.of_kind(kind)) for kind in range(2)]
        needed = sum(
            kernel_limits.sbuf_bytes(
                kinds[0], cores, kinds[1:], float8=False, head_norms=False
            ).values()
        )
        found = kernel_limits.spare_sbuf(operands, dataclasses.replace(parameters, lnc=cores))
        self.assertEqual(found, kernel_limits.spare_beside(needed, has_experts=False))

    @parameterized.parameters((200000, 3), (58368, 3), (58364, 2), (23552, 1), (23548, 0), (-1, 0))
    def test_buffers_take_what_places_leave(self, left: int, expected: int) -> None:
        """`left` beside what is needed, reserved and for places."""
        others = hardware.RESERVED_SBUF_BYTES + limits.PLACE_BYTES
        needed = kernel_limits.SBUF_BYTES - others - left
        spare = kernel_limits.spare_beside(needed, has_experts=True)
        self.assertEqual(spare.held_buffers, expected)
        taken = spare.taken
        if taken:
            left = kernel_limits.SBUF_BYTES - needed - taken
            self.assertGreaterEqual(left, hardware.RESERVED_SBUF_BYTES)

    @parameterized.named_parameters(
        ("70b_one_sequence", LLAMA_70B),
        ("70b_long", dataclasses.replace(LLAMA_70B, S_ctx=36864, S_max=36864)),
        ("70b_batch", dataclasses.replace(LLAMA_70B, B=8, S_ctx=10240, S_max=10240)),
        ("128_tokens", dataclasses.replace(LLAMA_70B, B=128, H=2048)),
        ("256_tokens", dataclasses.replace(LLAMA_8B, B=256, q=4, k=1, I=1792, S_ctx=4096)),
        # Masks of 36864 slots leave room for the residual stream of 128 tokens.
        (
            "128_tokens_long",
            dataclasses.replace(LLAMA_70B, B=32, S=4, S_ctx=36864, S_max=36864),
        ),
        ("9b_large_heads", dataclasses.replace(GEMMA2_9B, S_ctx=8192, S_max=8192)),
        ("8b_on_one_device", dataclasses.replace(LLAMA_8B, B=4, S_ctx=1024, S_max=1024)),
    )
    def test_real_models_fit(self, shape: cases.Shape) -> None:
        for cores in (1, 2):
            kernel_limits.check_kernel_limits(_dimensions(shape), cores)

    @parameterized.named_parameters(
        # B, H, q, k, d, E, I of an expert, on a rank of eight; of four.
        ("mixtral_8x7b", (128, 4096, 4, 1, 128, 8, 1792)),
        ("gpt_oss_120b", (256, 2944, 8, 1, 64, 128, 360)),
        ("gpt_oss_20b", (128, 2944, 16, 2, 64, 32, 720)),
        ("qwen3_30b_a3b", (256, 2048, 8, 1, 128, 128, 192)),
    )
    def test_real_experts_fit(self, sizes: tuple[int, ...]) -> None:
        B, H, q, k, d, E, I_expert = sizes
        shape = dataclasses.replace(
            cases.EXPERTS,
            **{"B": B, "H": H, "q": q, "k": k, "d": d, "E": E, "E_held": E, "I_expert": I_expert},
            S=1,
            I=0,
            L=1,
            dtype="bfloat16",
            S_ctx=2048,
            S_max=2048,
        )
        kernel_limits.check_kernel_limits(_dimensions(shape), 2, float8=False)

    @parameterized.named_parameters(
        ("part_of_a_tile", {"H": 192}, ["X:", "H in [B, S, H]", "multiple of 128", "got 192"]),
        ("part_of_i", {"I": 100}, ["W_gates:", "I in [H, I]", "multiple of 128", "100 % 128"]),
        ("tokens", {"B": 257, "S": 1}, ["X:", "at most 256 tokens", "257 * 1 = 257"]),
        ("tokens_of_a_sequence", {"B": 1, "S": 130, "q": 2}, ["X:", "S <= 128", "1 * 130"]),
        ("experts", {"E": 513, "E_held": 513}, ["W_routers: expected E <= 512", "got E = 513"]),
        ("scores", {"q": 96, "S": 8}, ["mask_cache:", "q * S <= 512", "96 * 8 = 768"]),
        (
            "cache",
            {"B": 16, "k": 8, "q": 8, "S_max": 131072},
            ["K_caches:", "16 * 8 * 128 * 131072 = 2147483648"],
        ),
        (
            "tables",
            {"B": 8, "context": "lengths", "S_ctx": 1 << 17, "S_max": 1 << 17, "block_len": 32},
            ["block_tables:", "B * n = 8 * 4096 = 32768", "4 bytes each", "larger blocks"],
        ),
        ("memory", {"B": 16, "S": 8, "H": 16384}, ["X:", "H = 16384", "bytes", " + "]),
        (
            "large_heads",
            {"B": 16, "S": 8, "H": 128, "I": 128, "q": 64, "k": 64, "d": 256},
            ["X:", "B * S = 128", "192 heads of d = 256", "(attention)", "fewer sequences"],
        ),
    )
    def test_refused(self, changes: dict[str, int], parts: list[str]) -> None:
        shape = dataclasses.replace(LLAMA_70B, **changes)
        with self.assertRaises(ValueError) as caught:
            kernel_limits.check_kernel_limits(_dimensions(shape), 1)
        for part in parts:
            self.assertIn(part, str(caught.exception))


if __name__ == "__main__":
    absltest.main()
