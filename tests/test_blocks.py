"""Caches in blocks: against the oracle, and to the bit against flat caches."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

import jax_tkg
from tests import cases

VALUES_PER_SHAPE = 20


@st.composite
def shapes(draw: st.DrawFn, context: str) -> cases.Shape:
    """Small models: what is drawn is the form of the blocks."""
    block_len = draw(st.sampled_from((1, 5, 16, 16)))
    q, k = draw(st.sampled_from(((4, 2), (3, 1))))
    S_ctx = block_len * draw(st.integers(1, 40 // block_len))
    return cases.Shape(
        B=draw(st.integers(1, 3)),
        S=draw(st.integers(1, min(4, S_ctx))),
        q=q,
        k=k,
        d=16,
        L=draw(st.integers(1, 2)),
        S_ctx=S_ctx,
        S_max=S_ctx,
        dtype=draw(st.sampled_from(("float32", "float32", "bfloat16"))),
        unified=context == "masks" and draw(st.booleans()),
        context=context,
        block_len=block_len,
        positions=draw(st.sampled_from(("first", "each"))),
        cache_dtype=draw(st.sampled_from((None, None, "float8_e4m3"))),
    )


@functools.lru_cache(maxsize=4)
def _compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(jax_tkg.transformer_tkg, **options))


def flat(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with the caches that the tables put together, nothing written."""
    tables = inputs["block_tables"]

    def put_together(cache: np.ndarray, axis: int) -> np.ndarray:
        rows = [
            np.concatenate([cache[i] if i >= 0 else 0 * cache[0] for i in table], axis=axis)
            for table in tables
        ]
        return np.stack(rows)

    return {
        **inputs,
        "K_caches": [put_together(cache, -1) for cache in inputs["K_caches"]],
        "V_caches": [put_together(cache, -2) for cache in inputs["V_caches"]],
        "block_tables": None,
        "position_ids": None,
    }


class DrawnBlocksTest(parameterized.TestCase):
    """3 forms x (2 + 3) drawn shapes x 20 draws of values: 300 cases."""

    @parameterized.product(count=(2, 3), context=("lengths", "ranges", "masks"))
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "1", "2")
    def test_drawn(self, count: int, context: str) -> None:
        @hypothesis.seed(zlib.crc32(f"blocks {context} {count}".encode()))
        @hypothesis.settings(max_examples=count, phases=(hypothesis.Phase.generate,))
        @hypothesis.given(data=st.data())
        def run(data: st.DataObject) -> None:
            shape = data.draw(shapes(context))
            stacked = data.draw(st.booleans())
            rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
            weights = cases.random_weights(shape, rng)
            for _ in range(VALUES_PER_SHAPE):
                inputs = cases.random_inputs(shape, rng)
                given = {**weights, **inputs}
                actual = _compiled(**cases.options(shape))(
                    **cases.stack(given) if stacked else given
                )
                hidden, K, V, written = cases.expected(shape, [weights], [inputs])
                cases.check(actual, shape, inputs, hidden, K[0], V[0], written)

        run()


class FormsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.shape = cases.Shape(
            L=1, d=16, S_ctx=24, S_max=24, block_len=8, context="lengths", unified=True
        )
        rng = np.random.default_rng(0)
        self.weights = cases.random_weights(self.shape, rng)
        self.inputs = cases.random_inputs(self.shape, rng)
        self.options = cases.options(self.shape)

    def _check(self, inputs: dict[str, Any], **options: Any) -> None:
        actual = jax_tkg.transformer_tkg(**self.weights, **inputs, **{**self.options, **options})
        hidden, K, V, written = cases.expected(self.shape, [self.weights], [inputs])
        cases.check(actual, self.shape, inputs, hidden, K[0], V[0], written)

    def test_the_reference_is_equal_to_the_bit_with_flat_caches(self) -> None:
        call = _compiled(**self.options, implementation="reference")
        got = call(**self.weights, **{**self.inputs, "position_ids": None})
        want = call(**self.weights, **flat(self.inputs))
        np.testing.assert_array_equal(got.hidden, want.hidden)

    def test_missing_blocks_are_never_read(self) -> None:
        tables = np.array([[3, -1, -1], [-1, -1, -1]], np.int32)
        lengths = np.array([8, 0], np.int32)
        inputs = {**self.inputs, "block_tables": tables, "context_lengths": lengths}
        inputs["position_ids"] = np.array([[30], [-1]], np.int32)
        for name in ("K_caches", "V_caches"):
            cache = np.full_like(inputs[name][0], np.nan)
            cache[3] = self.inputs[name][0][3]
            inputs[name] = [cache]
        for implementation in ("cpu", "reference"):
            out = jax_tkg.transformer_tkg(
                **self.weights, **inputs, **self.options, implementation=implementation
            )
            self.assertTrue(np.isfinite(out.hidden).all())

    def test_tokens_past_the_end_of_their_block_are_not_written(self) -> None:
        self._check({**self.inputs, "position_ids": np.array([[15], [6]], np.int32)})

    def test_the_last_of_all_tokens_in_one_slot_stays(self) -> None:
        ids = np.array([[9, 9], [40, 9]], np.int32)
        for implementation in ("cpu", "reference"):
            self._check({**self.inputs, "position_ids": ids}, implementation=implementation)

    def test_vmap_gives_each_member_its_own_blocks(self) -> None:
        ids = np.array([[[3], [60]], [[17], [3]]], np.int32)
        call = functools.partial(jax_tkg.transformer_tkg, **self.options)

        def one(ids: Any) -> Any:
            return call(**self.weights, **{**self.inputs, "position_ids": ids})

        got = jax.jit(jax.vmap(one))(ids)
        for index, own in enumerate(ids):
            want = one(own)
            for mine, other in zip(got.K_caches, want.K_caches, strict=True):
                np.testing.assert_allclose(mine[index], other, rtol=1e-5, atol=1e-6)

    def test_donated_blocks_are_updated_in_place(self) -> None:
        def step(caches: Any) -> Any:
            given = {**self.inputs, "K_caches": caches[0], "V_caches": caches[1]}
            out = jax_tkg.transformer_tkg(**self.weights, **given, **self.options)
            return out.K_caches, out.V_caches

        caches = jax.tree.map(jnp.asarray, (self.inputs["K_caches"], self.inputs["V_caches"]))
        text = jax.jit(step, donate_argnums=0).lower(caches).compile().as_text()
        shown = [f"f32[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(caches)]
        copies = [line for line in text.splitlines() if " copy(" in line]
        for one in shown:
            self.assertIn(one, text)
            self.assertEmpty([line for line in copies if f"= {one}" in line])

    def test_aws_kernel_refuses_them_by_name(self) -> None:
        with self.assertRaisesRegex(ValueError, "block_tables|NKILIB"):
            jax_tkg.transformer_tkg(
                **self.weights, **self.inputs, **self.options, implementation="nkilib"
            )

    @parameterized.named_parameters(
        ("table_batch", {"block_tables": np.zeros((3, 3), np.int32)}, ["block_tables:", "[B, n]"]),
        (
            "table_dtype",
            {"block_tables": np.zeros((2, 3))},
            ["block_tables:", "integer", "float64"],
        ),
        ("bucket", {"context_bucket": 8}, ["context_bucket:", "block_tables", "n * block_len"]),
        (
            "mask",
            {"mask_cache": np.ones((20, 2, 4, 2), bool), "context_lengths": None},
            ["mask_cache:", "S_ctx = n * block_len = 3 * 8 = 24", "got S_ctx = 20"],
        ),
        (
            "values_of_other_blocks",
            {"V_caches": [np.zeros((8, 2, 9, 16), np.float32)]},
            ["V_caches[0]:", "[blocks, k, block_len, d]", "[8, 2, 8, 16]", "[8, 2, 9, 16]"],
        ),
        (
            "no_blocks",
            {
                "K_caches": [np.zeros((0, 2, 16, 8), np.float32)],
                "V_caches": [np.zeros((0, 2, 8, 16), np.float32)],
            },
            ["K_caches:", "blocks >= 1 in [blocks, k, d, block_len]", "blocks = 0"],
        ),
        (
            "empty_blocks",
            {
                "K_caches": [np.zeros((8, 2, 16, 0), np.float32)],
                "V_caches": [np.zeros((8, 2, 0, 16), np.float32)],
            },
            ["K_caches:", "block_len >= 1 in [blocks, k, d, block_len]", "block_len = 0"],
        ),
        (
            "no_head_axis",
            {"K_caches": [np.zeros((8, 16, 8), np.float32)]},
            ["K_caches[0]:", "4 dimensions", "[blocks, k, d, block_len]"],
        ),
    )
    def test_bad(self, changes: dict[str, Any], parts: list[str]) -> None:
        given = {**self.weights, **self.inputs, **self.options, **changes}
        with self.assertRaises((TypeError, ValueError)) as caught:
            jax_tkg.transformer_tkg(**given)
        for part in parts:
            self.assertIn(part, str(caught.exception))


if __name__ == "__main__":
    absltest.main()
