"""AWS's kernel with the signature from SDK 2.30 on gets the right arrays: a stand-in computes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from tests import cases
from tests.lowering import nkilib_stand_in, with_nki

SHAPE = cases.Shape(
    B=2, S=2, q=2, k=1, d=64, H=256, I=256, S_ctx=256, S_max=300, unified=True, dtype="float32"
)
OLD_FLOAT8 = ("float8_e4m3",) * 3
NEW_FLOAT8 = ("float8_e4m3fn",) * 3

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "each_token": ({}, "S"),
    "first_slots": ({}, "1"),
    "one_token": ({"S": 1, "B": 3}, "S"),
    "slots_given_for_each_token": ({"positions": "each"}, "S"),
    "masks_apart": ({"unified": False, "S_max": 520}, "S"),
    "float8": ({"quantized": (OLD_FLOAT8, (None,) * 3), "dtype": "bfloat16"}, "S"),
    "float8_ocp": ({"quantized": ((None,) * 3, NEW_FLOAT8), "dtype": "bfloat16"}, "1"),
}


def _arguments(shape: cases.Shape) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


def _call(shape: cases.Shape, **options: Any) -> Any:
    """A function of its own each time: JAX keeps the programs of one it knows."""
    call = functools.partial(
        jax_tkg.transformer_tkg, **cases.options(shape), implementation="nkilib", lnc=1, **options
    )
    return jax.jit(lambda arguments: call(**arguments))


def _check(got: Any, shape: cases.Shape, arguments: dict[str, Any]) -> None:
    hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
    cases.check(got, shape, arguments, hidden, K[0], V[0], written)


@pytest.mark.thorough
class SignatureTest(parameterized.TestCase):
    @parameterized.named_parameters((name, *case) for name, case in CASES.items())
    def test_in_the_simulator(self, sizes: dict[str, Any], slots: str) -> None:
        shape = dataclasses.replace(SHAPE, **sizes)
        arguments = _arguments(shape)
        with nkilib_stand_in.installed(slots):
            _check(_call(shape)(arguments), shape, arguments)

    @parameterized.named_parameters((name, *case) for name, case in CASES.items())
    @pytest.mark.extended_except("first_slots", "float8")
    def test_through_an_installed_nki(self, sizes: dict[str, Any], slots: str) -> None:
        shape = dataclasses.replace(SHAPE, **sizes)
        arguments = _arguments(shape)
        call = _call(shape)
        with with_nki.installed(), nkilib_stand_in.installed(slots):
            _check(with_nki.run_as_neuron(call, arguments), shape, arguments)

    def test_skipped_and_outside(self) -> None:
        """Slots that are skipped or past the end are not written, in either form."""
        arguments = _arguments(SHAPE)
        for slots in ("S", "1"):
            arguments["position_ids"] = np.asarray([[-1], [7]], np.int32)
            with nkilib_stand_in.installed(slots):
                _check(_call(SHAPE)(arguments), SHAPE, arguments)
        arguments["position_ids"] = np.asarray([[3, 300], [-1, 9]], np.int32)
        shape = dataclasses.replace(SHAPE, positions="each")
        with nkilib_stand_in.installed("S"):
            _check(_call(shape)(arguments), shape, arguments)

    def test_on_chip_residual_is_passed(self) -> None:
        call = _call(SHAPE, sbuf_residual_and_cc=True)
        with nkilib_stand_in.installed("S") as library:
            _check(call(_arguments(SHAPE)), SHAPE, _arguments(SHAPE))
            self.assertTrue(library().on_chip)


if __name__ == "__main__":
    absltest.main()
