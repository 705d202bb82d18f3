"""Lengths in place of masks: against the oracle, and to the bit against their masks."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

import jax_tkg
from jax_tkg import masks
from tests import cases

CONTEXTS = ("lengths", "each_length", "ranges", "each_range")

VALUES_PER_SHAPE = 20


@st.composite
def shapes(draw: st.DrawFn, context: str) -> cases.Shape:
    """Small models: what is drawn is the form of the context."""
    S = draw(st.integers(1, 4))
    S_ctx = draw(st.integers(1, 40))
    of_kinds = {
        "L": 2,
        "layer_kinds": (0, 1),
        "kinds": ((draw(st.integers(1, 9)), 9, True, "each"),),
    }
    layers: dict[str, Any] = draw(st.sampled_from(({"L": 1}, of_kinds)))
    q, k = draw(st.sampled_from(((1, 1), (4, 2), (3, 1))))
    return cases.Shape(
        B=draw(st.integers(1, 4)),
        S=S,
        q=q,
        k=k,
        d=16,
        **layers,
        S_ctx=S_ctx,
        S_max=S_ctx + draw(st.integers(0, 8)),
        dtype=draw(st.sampled_from(("float32", "float32", "bfloat16"))),
        unified=draw(st.booleans()),
        context=context,
        positions=draw(st.sampled_from(("first", "each", "none"))),
        options=draw(st.sampled_from(((), ("sinks",)))),
        cache_dtype=draw(st.sampled_from((None, None, "float8_e4m3"))),
    )


def with_masks(shape: cases.Shape, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with masks in place of lengths."""
    lengths, starts = inputs["context_lengths"], inputs["context_starts"]
    active = inputs["mask_active"]
    return {
        **inputs,
        "mask_cache": masks.context_mask(lengths, shape.S_ctx, shape.q, shape.S, starts),
        "mask_active": masks.active_mask(shape.S, shape.B, shape.q) if active is None else active,
        "context_lengths": None,
        "context_starts": None,
    }


@functools.lru_cache(maxsize=4)
def _compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(jax_tkg.transformer_tkg, **options))


class DrawnContextsTest(parameterized.TestCase):
    """4 forms x (2 + 2) drawn shapes x 20 draws of values: 320 cases."""

    @parameterized.product(part=(0, 1), context=CONTEXTS)
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "3")
    def test_drawn(self, part: int, context: str) -> None:
        @hypothesis.seed(zlib.crc32(f"{context} {part}".encode()))
        @hypothesis.settings(max_examples=2, phases=(hypothesis.Phase.generate,))
        @hypothesis.given(data=st.data())
        def run(data: st.DataObject) -> None:
            shape = data.draw(shapes(context))
            rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
            weights = cases.random_weights(shape, rng)
            options = cases.options(shape)
            for _ in range(VALUES_PER_SHAPE):
                inputs = cases.random_inputs(shape, rng)
                inputs["position_ids"] = jax.tree.map(
                    lambda ids: ids.astype(np.int32), inputs["position_ids"]
                )
                hidden, K, V, written = cases.expected(shape, [weights], [inputs])
                actual = _compiled(**options)(**weights, **inputs)
                cases.check(actual, shape, inputs, hidden, K[0], V[0], written)

        run()

    @parameterized.parameters("lengths", "each_range")
    @pytest.mark.extended_except("0")
    def test_the_reference_is_equal_to_the_bit_with_masks(self, context: str) -> None:
        shape = cases.Shape(L=1, k=1, d=16, S_ctx=20, context=context, unified=context == "lengths")
        rng = np.random.default_rng(1)
        weights, options = cases.random_weights(shape, rng), cases.options(shape)
        options["implementation"] = "reference"
        for _ in range(VALUES_PER_SHAPE):
            inputs = {**cases.random_inputs(shape, rng), "position_ids": np.array([[3], [9]])}
            got = _compiled(**options)(**weights, **inputs)
            masked = {**options, "context_bucket": None}
            want = _compiled(**masked)(**weights, **with_masks(shape, inputs))
            jax.tree.map(np.testing.assert_array_equal, got, want)


class FormsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.shape = cases.Shape(L=1, context="lengths", unified=True)
        rng = np.random.default_rng(0)
        self.weights = cases.random_weights(self.shape, rng)
        self.inputs = cases.random_inputs(self.shape, rng)
        self.options = cases.options(self.shape)

    def _check(self, shape: cases.Shape, inputs: dict[str, Any], **options: Any) -> None:
        actual = jax_tkg.transformer_tkg(**self.weights, **inputs, **{**self.options, **options})
        hidden, K, V, written = cases.expected(shape, [self.weights], [inputs])
        cases.check(actual, shape, inputs, hidden, K[0], V[0], written)

    def test_the_bucket_is_the_capacity_if_none_is_given(self) -> None:
        shape = dataclasses.replace(self.shape, S_ctx=self.shape.S_max)
        inputs = {**self.inputs, "context_lengths": np.array([self.shape.S_max, 3], np.int32)}
        self._check(shape, inputs, context_bucket=None)

    @parameterized.parameters("int8", "uint8", "uint32")
    def test_dtypes(self, dtype: str) -> None:
        largest = np.iinfo(dtype).max
        inputs = {**self.inputs, "context_lengths": np.array([5, largest], dtype)}
        self._check(self.shape, inputs)

    def test_64_bit_mode(self) -> None:
        jax.config.update("jax_enable_x64", True)
        self.addCleanup(jax.config.update, "jax_enable_x64", False)
        lengths = np.array([2**40, 2**62], np.int64)
        inputs = {
            **self.inputs,
            "context_lengths": lengths,
            "context_starts": np.array([4, -(2**40)]),
        }
        self._check(self.shape, inputs)

    def test_vmap_joins_the_batch(self) -> None:
        lengths = np.array([[0, 7], [20, 3]], np.int32)
        call = functools.partial(jax_tkg.transformer_tkg, **self.options)

        def one(lengths: Any) -> Any:
            return call(**self.weights, **{**self.inputs, "context_lengths": lengths})

        got = jax.jit(jax.vmap(one))(lengths)
        for index, own in enumerate(lengths):
            want = one(own)
            np.testing.assert_allclose(got.hidden[index], want.hidden, rtol=1e-5, atol=1e-6)

    def test_explain_and_abstract_values(self) -> None:
        shapes = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype),
            {**self.weights, **self.inputs},
        )
        out = jax.eval_shape(functools.partial(jax_tkg.transformer_tkg, **self.options), **shapes)
        self.assertEqual(out.hidden.shape, self.inputs["X"].shape)


if __name__ == "__main__":
    absltest.main()
