"""Final norm, head and the largest logits: against float64, and what ties, NaN and ranks give."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

import jax_tkg
from jax_tkg.bits import as_bits
from jax_tkg.output_head import merge_candidates
from tests import cases

SHAPE = cases.Shape(B=2, S=2, L=1)
V = 300
LOWEST = np.float32(-3e38)


def head(shape: cases.Shape, V: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A final gain and a head."""
    dtype = jnp.dtype(shape.dtype)
    return {
        "W_gamma_final": cases.uniform(rng, (1, shape.H), 0.5, 1.5).astype(dtype),
        "W_head": cases.projection(rng, shape.H, V).astype(dtype),
    }


def arguments(shape: cases.Shape = SHAPE, V: int = V, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    given = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    return {**given, **head(shape, V, rng)}


def exact_logits(hidden: Any, given: dict[str, Any]) -> np.ndarray:
    """[B, S, V] float64, of the hidden states that the operation returned."""
    x, gamma, W = (
        np.asarray(array).astype(np.float64)
        for array in (hidden, given["W_gamma_final"], given["W_head"])
    )
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5) * gamma[0] @ W


def check_candidates(logits: np.ndarray, ids: np.ndarray, exact: np.ndarray, error: float) -> None:
    """Checks that candidates are the largest of exact logits up to an error, in order."""
    tolerance = error * np.abs(exact).max()
    assert logits.dtype == np.float32
    assert ids.dtype == np.int32
    count = ids.shape[-1]
    assert (np.diff(np.sort(ids, axis=-1), axis=-1) > 0).all()
    np.testing.assert_allclose(np.take_along_axis(exact, ids, -1), logits, rtol=0, atol=tolerance)
    assert (np.diff(logits, axis=-1) <= 0).all()
    largest = -np.sort(-exact, axis=-1)[..., :count]
    np.testing.assert_allclose(largest, logits, rtol=0, atol=tolerance)


@functools.lru_cache(maxsize=8)
def _compiled(shape: cases.Shape, **options: Any) -> Any:
    call = functools.partial(jax_tkg.transformer_tkg, **cases.options(shape), **options)
    return jax.jit(lambda given: call(**given))


def one_hot_head(hidden_size: int, rows: list[int]) -> np.ndarray:
    """A head whose logit j is normalized feature rows[j], to the bit."""
    W = np.zeros((hidden_size, len(rows)), np.float32)
    W[rows, np.arange(len(rows))] = 1
    return W


class CandidatesTest(parameterized.TestCase):
    @parameterized.product(
        implementation=("reference", "cpu"), dtype=("float32", "bfloat16"), count=(1, 20)
    )
    @pytest.mark.extended_except("0", "3", "5", "6")
    def test_against_float64(self, implementation: str, dtype: str, count: int) -> None:
        shape = cases.Shape(B=2, S=2, L=1, dtype=dtype)
        run = _compiled(shape, implementation=implementation, candidates_per_token=count)
        for seed in range(3):
            given = arguments(shape, seed=seed)
            out = run(given)
            self.assertIsInstance(out, jax_tkg.TransformerTkgCandidates)
            error = 1e-5 if dtype == "float32" else 0.02
            check_candidates(
                np.asarray(out.candidate_logits),
                np.asarray(out.candidate_ids),
                exact_logits(out.hidden, given),
                error,
            )

    def test_the_rest_is_as_without_a_head(self) -> None:
        given = arguments()
        out = _compiled(SHAPE, candidates_per_token=1)(given)
        for name in ("W_head", "W_gamma_final"):
            del given[name]
        plain = _compiled(SHAPE)(given)
        self.assertIsInstance(plain, jax_tkg.TransformerTkgOutput)
        for got, want in zip(out[:3], plain, strict=True):
            jax.tree.map(np.testing.assert_array_equal, got, want)

    def test_bits(self) -> None:
        shape = cases.Shape(B=1, S=1, L=1, dtype="bfloat16")
        given = arguments(shape)
        run = _compiled(shape, candidates_per_token=3)
        out, held = run(given), run({**given, "W_head": as_bits(given["W_head"])})
        np.testing.assert_array_equal(out.candidate_ids, held.candidate_ids)

    def test_ties_have_the_lowest_ids(self) -> None:
        rows = [5, 7, 5, 9, 5, 7, 9, 9, 5, 7]
        given = {**arguments(), "W_head": one_hot_head(SHAPE.H, rows)}
        out = _compiled(SHAPE, candidates_per_token=10)(given)
        exact = exact_logits(out.hidden, given)
        for token in np.ndindex(2, 2):
            order = sorted(range(10), key=lambda j: (-exact[*token, rows.index(rows[j])], j))
            self.assertEqual(np.asarray(out.candidate_ids)[token].tolist(), order)

    def test_nan_and_infinity_count_as_the_lowest_number(self) -> None:
        given = arguments()
        given["W_head"] = np.full((SHAPE.H, 6), np.nan, np.float32)
        given["W_head"][:, 3] = 0
        out = _compiled(SHAPE, candidates_per_token=6)(given)
        for token in np.ndindex(2, 2):
            self.assertEqual(np.asarray(out.candidate_ids)[token].tolist(), [3, 0, 1, 2, 4, 5])
            logits = np.asarray(out.candidate_logits)[token].tolist()
            self.assertEqual(logits, [0.0, *[LOWEST] * 5])

    def test_scale_and_softcap_bound_the_logits_and_not_the_choice(self) -> None:
        given = arguments()
        plain = _compiled(SHAPE, candidates_per_token=5)(given)
        # So small a cap makes all of the largest logits equal.
        capped = _compiled(SHAPE, candidates_per_token=5, logit_scale=3.0, logit_softcap=0.01)(
            given
        )
        np.testing.assert_array_equal(plain.candidate_ids, capped.candidate_ids)
        want = 0.01 * np.tanh(3.0 * np.asarray(plain.candidate_logits, np.float64) / 0.01)
        np.testing.assert_allclose(capped.candidate_logits, want, rtol=1e-5)

    @pytest.mark.extended
    def test_vmap(self) -> None:
        """Sequences of members join one batch; the head is the members' own."""
        given = arguments()
        run = functools.partial(
            jax_tkg.transformer_tkg, **cases.options(SHAPE), candidates_per_token=3
        )
        X = np.stack([given.pop("X"), np.random.default_rng(1).random((2, 2, 128), np.float32)])
        together = jax.jit(jax.vmap(lambda x: run(X=x, **given).candidate_ids))(X)
        apart = [jax.jit(lambda x: run(X=x, **given).candidate_ids)(x) for x in X]
        np.testing.assert_array_equal(together, np.stack(apart))

    @parameterized.parameters("axis_name", "replica_groups")
    def test_ranks_split_the_vocabulary(self, group: str) -> None:
        """Candidates of both ranks, side by side, are those of the whole vocabulary."""
        shape = cases.Shape(B=2, S=2, L=1, q=4, k=2, I=256)
        given = arguments(shape)
        mesh = jax.make_mesh((2, 2), ("data", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        specs = jax_tkg.sharding.partition_specs("tp", "data")
        of_group = {"axis_name": "tp"} if group == "axis_name" else {
            "replica_groups": [[0, 1], [2, 3]]
        }  # fmt: skip

        def step(named: dict[str, Any]) -> tuple[Any, ...]:
            out = jax_tkg.transformer_tkg(
                **named, **cases.options(shape), **of_group, candidates_per_token=8
            )
            return out.hidden, out.candidate_logits, out.candidate_ids

        named = {name: value for name, value in given.items() if value is not None}
        parallel = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=({name: getattr(specs, name) for name in named},),
            out_specs=(
                specs.hidden if group == "axis_name" else PartitionSpec("data", None, None),
                specs.candidates,
                specs.candidates,
            ),
            check_vma=group == "axis_name",
        )
        hidden, logits, ids = jax.jit(parallel)(named)
        self.assertEqual(ids.shape, (2, 2, 16))
        first = np.asarray(ids)[..., :8]
        self.assertTrue((first < V // 2).all() and (np.asarray(ids)[..., 8:] >= V // 2).all())
        merged = merge_candidates(logits, ids, 8)
        exact = exact_logits(hidden, given)
        check_candidates(np.asarray(merged[0]), np.asarray(merged[1]), exact, 1e-5)


class MergeTest(absltest.TestCase):
    def test_ties_between_ranks(self) -> None:
        logits = np.float32([[[4, 2, 1, 4, 3, 2]]])
        ids = np.int32([[[7, 0, 3, 12, 10, 11]]])
        values, chosen = merge_candidates(logits, ids, 4)
        self.assertEqual(values.tolist(), [[[4, 4, 3, 2]]])
        self.assertEqual(chosen.tolist(), [[[7, 12, 10, 0]]])
        values, chosen = merge_candidates(logits, ids)
        self.assertEqual((values.tolist(), chosen.tolist()), ([[[4]]], [[[7]]]))

    def test_counts_that_cannot_be(self) -> None:
        logits, ids = np.zeros((1, 1, 4), np.float32), np.zeros((1, 1, 4), np.int32)
        for count, expected in ((0, "at least 1"), (-1, "at least 1"), (5, "at most the 4 .*")):
            with self.assertRaisesRegex(ValueError, f"^count: expected {expected}, got {count}$"):
                merge_candidates(logits, ids, count)


if __name__ == "__main__":
    absltest.main()
