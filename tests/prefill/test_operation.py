"""Many new tokens at once, against the float64 oracle and against calls of the operation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import prefill
from jax_tkg.cpu import formulation
from jax_tkg.prefill import attention
from tests import cases

VALUES_PER_SHAPE = 4

NEAR_TIE = {"float32": 1e-4, "bfloat16": 0.04}
"""Scores of experts that differ by less may be chosen in either order: other values are drawn."""

LONG = cases.Shape(
    S=24, q=6, d=16, S_ctx=600, S_max=610, context="each_range", unified=True, positions="each"
)
"""Three blocks of slots, the last of which is cut off."""

SHAPES = {
    "every_option": dataclasses.replace(LONG, bare_layers=(0,), **cases.EVERY_OPTION),
    "lengths": dataclasses.replace(
        LONG, S=70, S_ctx=30, S_max=80, context="lengths", cache_dtype="float8_e4m3"
    ),
    "bfloat16_in_blocks": dataclasses.replace(
        LONG,
        S_ctx=320,
        S_max=320,
        block_len=16,
        dtype="bfloat16",
        context="lengths",
        options=("sinks",),
        quantized=(("float8_e4m3", None, "float8_e5m2"), ("float8_e4m3fn",) * 3),
        clamp_bound=0.5,
    ),
    "bfloat16_and_float8_caches": dataclasses.replace(
        LONG, S=40, dtype="bfloat16", cache_dtype="float8_e4m3fn", context="lengths"
    ),
    "experts": dataclasses.replace(
        LONG,
        S=48,
        S_ctx=20,
        S_max=50,
        E=6,
        E_held=6,
        I_expert=24,
        I_shared=16,
        experts_per_token=2,
        options=cases.EXPERT_OPTIONS,
        routing="sigmoid_topk",
        quantized=(("float8_e4m3", None, "float8_e5m2"),) * 2,
    ),
}
WINDOW = 7


def _window_mask(shape: cases.Shape, window: int) -> np.ndarray:
    """[S, B, q, S]: what `windows` says of the new tokens, for the oracle."""
    key, query = np.arange(shape.S)[:, None], np.arange(shape.S)
    mask = (key <= query) & (key > query - window)
    return np.tile(mask[:, None, None], (1, shape.B, shape.q, 1))


def _draws(shape: cases.Shape, weights: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Inputs and the oracle's answer, without near ties between experts."""
    rng = np.random.default_rng(1)
    for _ in range(VALUES_PER_SHAPE):
        for _ in range(50):
            inputs = cases.random_inputs(shape, rng)
            gaps: list[float] = []
            answer = cases.expected(shape, [weights], [inputs], gaps)
            if min(gaps, default=1.0) > NEAR_TIE[shape.dtype]:
                break
        else:
            raise AssertionError("near ties in every draw")
        if inputs["position_ids"] is not None:
            inputs["position_ids"] = np.asarray(inputs["position_ids"]).astype(np.int32)
        yield inputs, answer


def _compiled(shape: cases.Shape, **options: Any) -> Any:
    return jax.jit(
        functools.partial(prefill.transformer_prefill, **cases.options(shape), **options)
    )


@pytest.mark.thorough
class OracleTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        # Callers may have set them.
        self.enterContext(jax.numpy_rank_promotion("raise"))
        self.enterContext(jax.numpy_dtype_promotion("strict"))
        # Few scores at once, so that heads are taken in turns, and blocks of new tokens, of which
        # the last one is smaller.
        self.enterContext(mock.patch.object(attention, "SCORE_ELEMENTS", 1 << 14))
        self.enterContext(mock.patch.object(attention, "QUERY_BLOCK", 9))

    @parameterized.product(name=tuple(SHAPES), platform=("cpu", None))
    @pytest.mark.extended_except("0", "5")
    def test_equals_the_oracle(self, name: str, platform: str | None) -> None:
        self._check(SHAPES[name], platform)

    @parameterized.product(
        name=("bfloat16_in_blocks", "bfloat16_and_float8_caches"), has_products=(False, True)
    )
    def test_processors(self, name: str, has_products: bool) -> None:
        """Whatever instructions this machine's processor has."""
        with mock.patch.object(formulation, "has_bfloat16_products", return_value=has_products):
            self._check(SHAPES[name], "cpu")

    def _check(self, shape: cases.Shape, platform: str | None) -> None:
        weights = cases.random_weights(shape, np.random.default_rng(0))
        run = _compiled(shape, platform=platform)
        for inputs, (hidden, K, V, written) in _draws(shape, weights):
            actual = run(**weights, **inputs)
            cases.check(actual, shape, inputs, hidden, K[0], V[0], written)

    def test_windows_of_two_kinds_and_fixed_loops(self) -> None:
        """The second kind's window limits which new tokens attend each other."""
        shape = dataclasses.replace(
            LONG, L=3, layer_kinds=(0, 1, 0), kinds=((300, 310, True, "each"),)
        )
        weights = cases.random_weights(shape, np.random.default_rng(0))
        run = _compiled(shape, platform="neuron", windows=(None, WINDOW))
        rng = np.random.default_rng(1)
        for _ in range(VALUES_PER_SHAPE):
            inputs = cases.random_inputs(shape, rng)
            given = {**inputs, "mask_active": None}
            inputs["mask_active"] = (None, _window_mask(shape, WINDOW))
            hidden, K, V, written = cases.expected(shape, [weights], [inputs])
            cases.check(run(**weights, **given), shape, inputs, hidden, K[0], V[0], written)


class ErrorsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        rng = np.random.default_rng(0)
        shape = dataclasses.replace(LONG, L=1, S=9, S_ctx=20, S_max=20)
        self.arguments = {
            **cases.random_weights(shape, rng),
            **cases.random_inputs(shape, rng),
            **cases.options(shape),
        }

    def test_masks(self) -> None:
        arguments = {**self.arguments, "mask_active": np.ones((9, 2, 6, 9), np.bool_)}
        with self.assertRaisesRegex(ValueError, r"mask_active: expected None .*, got a mask"):
            prefill.transformer_prefill(**arguments)

    @parameterized.parameters(
        ({"windows": (None, 4)}, ValueError, "windows: expected .* layers, 1, got 2"),
        ({"windows": 5}, TypeError, "windows: expected a tuple of integers and None, got 5"),
        ({"windows": "a"}, TypeError, "windows: expected a tuple of integers and None, got 'a'"),
        ({"windows": ("a",)}, TypeError, r"windows\[0\]: expected an integer or None, got 'a'"),
        ({"windows": (2.5,)}, TypeError, r"windows\[0\]: expected an integer or None, got 2.5"),
        ({"windows": (True,)}, TypeError, r"windows\[0\]: expected an integer or None, got True"),
        ({"windows": (0,)}, ValueError, r"windows\[0\]: expected at least 1 or None, got 0"),
        ({"platform": 5}, TypeError, "platform: expected a platform's name or None, got 5"),
        ({"layer_kinds": 3}, TypeError, "layer_kinds: expected a tuple with an integer"),
        ({"layer_kinds": (0, "a")}, TypeError, r"layer_kinds\[1\]: expected an integer, got 'a'"),
    )
    def test_options(self, option: dict[str, Any], error: type[Exception], message: str) -> None:
        with self.assertRaisesRegex(error, message):
            prefill.transformer_prefill(**{**self.arguments, **option})

    def test_lengths(self) -> None:
        arguments = {**self.arguments, "context_lengths": None, "context_starts": None}
        with self.assertRaisesRegex(TypeError, "context_lengths"):
            prefill.transformer_prefill(**arguments)


if __name__ == "__main__":
    absltest.main()
