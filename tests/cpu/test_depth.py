"""What depth does to the program of a step on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from tests import cases, hlo

pytestmark = pytest.mark.compilation("users_hlo")

FLOAT8 = "float8_e4m3fn"
H = 256


def _compiled(dtype: str, B: int, layers: int, stacked: bool) -> Any:
    shape = cases.Shape(
        B=B,
        S=1,
        H=H,
        I=512,
        L=layers,
        dtype="float32" if dtype == "float32" else "bfloat16",
        quantized=((FLOAT8,) * 3,) * layers if dtype == FLOAT8 else (),
    )
    rng = np.random.default_rng(0)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    arguments["position_ids"] = np.zeros((B, 1), np.int32)  # The drawn ones vary in dtype.
    if stacked:
        arguments = cases.stack(arguments)
    held = cases.held_as_bits(arguments)

    def step(arguments: dict[str, Any]) -> Any:
        return tuple(jax_tkg.transformer_tkg(**arguments, **cases.options(shape)))

    return jax.jit(step).lower({**arguments, **held}).compile()


@pytest.mark.thorough
class DepthTest(parameterized.TestCase):
    @parameterized.parameters(*itertools.product(("float32", "bfloat16", FLOAT8), (1, 8)))
    @pytest.mark.extended_except("0")
    def test_no_loop_over_weights_computes_the_layers_before(self, dtype: str, B: int) -> None:
        """XLA may fuse a layer into the loops of the next over its weights, in every turn anew."""
        small, large = (
            hlo.largest_fusion(_compiled(dtype, B, layers, False), H * H) for layers in (2, 6)
        )
        self.assertGreater(small, 0)
        self.assertEqual(large, small)

    @parameterized.parameters("float32", "bfloat16", FLOAT8)
    @pytest.mark.extended_except("0")
    def test_stacked_layers_are_one_program(self, dtype: str) -> None:
        small, large = (
            len(_compiled(dtype, 1, layers, True).as_text().splitlines()) for layers in (2, 6)
        )
        self.assertEqual(large, small)


if __name__ == "__main__":
    absltest.main()
