"""Attention: the cache as passed in and the new keys in one softmax, under any masks."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.cpu import formulation
from jax_tkg.reference.attention import attention_mask
from tests.stages import drawing

HEADS = ((1, 1), (8, 1), (4, 2), (9, 3), (16, 8))


def expected(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    K_cache: np.ndarray,
    V_cache: np.ndarray,
    mask_cache: np.ndarray,
    mask_active: np.ndarray,
    sinks: np.ndarray | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    k_scale: np.ndarray | None = None,
    v_scale: np.ndarray | None = None,
) -> np.ndarray:
    query, key, value, K, V = map(drawing.wide, (query, key, value, K_cache, V_cache))
    K = K if k_scale is None else K / float(k_scale[0, 0])
    V = V if v_scale is None else V / float(v_scale[0, 0])
    slots, q, k = mask_cache.shape[0], query.shape[2], key.shape[2]
    keys = np.concatenate([K[..., :slots].transpose(3, 0, 1, 2), key.swapaxes(0, 1)])
    values = np.concatenate([V[:, :, :slots].transpose(2, 0, 1, 3), value.swapaxes(0, 1)])
    keys, values = (np.repeat(array, q // k, axis=2) for array in (keys, values))
    scores = np.einsum("bsqd,tbqd->tbqs", query, keys)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(np.concatenate([mask_cache, mask_active]) != 0, scores, -np.inf)
    if sinks is not None:
        # One more key, whose value is zero.
        scores = np.concatenate([scores, np.broadcast_to(sinks[0, :, None], scores[:1].shape)])
        values = np.concatenate([values, 0 * values[:1]])
    peaks = scores.max(axis=0)
    weights = np.exp(scores - np.where(np.isneginf(peaks), 0.0, peaks))
    weights /= np.maximum(weights.sum(axis=0), 1e-300)
    return np.einsum("tbqs,tbqd->bsqd", weights, values)


def _masks(
    rng: np.random.Generator, slots: int, B: int, q: int, S: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of random entries or of random lengths; some queries attend no slot, some nothing at all."""
    cache = rng.random((slots, B, q, S)) < rng.choice([0.0, 0.02, 0.5, 1.0])
    if rng.random() < 0.3:
        lengths = rng.integers(0, slots + 1, (1, B, 1, 1))
        cache[...] = np.arange(slots)[:, None, None, None] < lengths
    active = rng.random((S, B, q, S)) < rng.choice([0.0, 0.5, 1.0])
    cache[:, rng.random((B, q, S)) < 0.1] = False
    blind = rng.random((B, q, S)) < 0.1
    cache[:, blind], active[:, blind] = False, False
    return cache.astype(np.uint8), active.astype(np.uint8)


def arguments(
    rng: np.random.Generator, B: int, S: int, q: int, k: int, d: int, slots: int, S_max: int,
    dtype: str,
) -> dict[str, Any]:  # fmt: skip
    def draw(*shape: int) -> np.ndarray:
        # Scores of several units, so that the softmax is far from a mean.
        return (3 * drawing.uniform(rng, *shape)).astype(drawing.kind(dtype))

    mask_cache, mask_active = _masks(rng, slots, B, q, S)
    return {
        "query": draw(B, S, q, d),
        "key": draw(B, S, k, d),
        "value": draw(B, S, k, d),
        "K_cache": draw(B, k, d, S_max),
        "V_cache": draw(B, k, S_max, d),
        "mask_cache": mask_cache,
        "mask_active": mask_active,
    }


@pytest.mark.thorough
class AttentionTest(parameterized.TestCase):
    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), heads=HEADS, dtype=drawing.DTYPES
    )
    @pytest.mark.extended_except(
        "1", "2", "5", "8", "11", "12", "15", "18", "20", "22", "25", "28", "31", "34", "38", "39"
    )
    def test_drawn(self, implementation: str, heads: tuple[int, int], dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]
        q, k = heads

        # The reference is compiled for each.
        count = 5 if implementation in drawing.KERNELS else 2

        @drawing.examples(f"attention {q} {k} {dtype}", count)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data, max(1, 128 // q))
            d = drawing.head_size(data)
            edges = st.sampled_from((0, 1, 127, 128, 129, 256, 384))
            slots = data.draw(st.one_of(st.integers(0, 600), edges))
            S_max = max(1, slots + data.draw(st.integers(0, 40)))
            rng = drawing.generator(data)
            given = arguments(rng, B, S, q, k, d, slots, S_max, dtype)
            # Sinks among the scores, and far from them.
            spread = data.draw(st.sampled_from((None, None, 3, 300)))
            if spread is not None:
                given["sinks"] = spread * drawing.uniform(rng, 1, q)
            given["scale"] = data.draw(st.sampled_from((None, 0.3)))
            given["softcap"] = data.draw(st.sampled_from((0.0, 0.0, 1.0, 20.0)))
            drawing.assert_close(stages.attention(**given), expected(**given), dtype)

        del run

    @parameterized.product(
        implementation=drawing.KERNELS,
        # Blocks that are full with and without the new keys, and several groups of sequences.
        sizes=(
            {"slots": 2048}, {"slots": 2047}, {"slots": 1920}, {"slots": 4300}, {"slots": 6144},
            {"B": 9, "q": 8, "slots": 700}, {"B": 4, "S": 8, "q": 16, "k": 2, "slots": 260},
            {"B": 16, "S": 8, "q": 1, "slots": 1300},
            # Weighted values of two chunks of a head in one PSUM bank, and in a bank each.
            {"B": 3, "q": 4, "k": 2, "d": 160, "slots": 2100},
            {"S": 8, "q": 64, "d": 256, "slots": 300},
        ),
    )  # fmt: skip
    def test_blocks_and_groups(self, implementation: str, sizes: dict[str, int]) -> None:
        numbers = {"B": 1, "S": 2, "q": 2, "k": 1, "d": 64, **sizes}
        rng = np.random.default_rng(1)
        given = arguments(rng, **numbers, S_max=numbers["slots"] + 3, dtype="float32")
        got = drawing.IMPLEMENTATIONS[implementation].attention(**given)
        drawing.assert_close(got, expected(**given), "float32")

    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), dtype=("float32", "float16")
    )
    @pytest.mark.extended_except("0", "3", "5", "6")
    def test_float8_caches(self, implementation: str, dtype: str) -> None:
        """Keys, values or both in float8; scales with which new columns pass float16's range."""
        options = {"scale": 0.3, "sinks": np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)}
        for seed, softcap, scales in ((5, 0.0, (40.0, 3e4)), (6, 2.0, (2e5, None))):
            rng = np.random.default_rng(seed)
            given = arguments(rng, 2, 2, 4, 2, 160, 260, 264, dtype)
            for name, of, scale in zip(("K_cache", "V_cache"), "kv", scales, strict=True):
                if scale is not None:
                    stored = 50 * given[name].astype(np.float32)
                    given[name] = stored.astype(drawing.kind("float8_e4m3"))
                    given[f"{of}_scale"] = np.full((1, 1), scale, np.float32)
            given |= {**options, "softcap": softcap}
            got = drawing.IMPLEMENTATIONS[implementation].attention(**given)
            drawing.assert_close(got, expected(**given), dtype)

    @parameterized.parameters(1 << 10, 1 << 13, 1 << 14)
    def test_a_few_heads_at_a_time(self, elements: int) -> None:
        """As CPUs attend large caches of low precision, which are converted for the products."""
        given = arguments(np.random.default_rng(4), 3, 2, 8, 4, 32, 60, 64, "bfloat16")
        with mock.patch.object(formulation, "ATTENTION_ELEMENTS", elements):
            taken = formulation.attention_heads(given["K_cache"], 12, 60)
            self.assertLess(taken, 12)
            got = drawing.IMPLEMENTATIONS["cpu"].attention(**given)
        drawing.assert_close(got, expected(**given), "bfloat16")

    @parameterized.product(implementation=tuple(drawing.IMPLEMENTATIONS), dtype=drawing.DTYPES)
    def test_nothing_attended_gives_zeros(self, implementation: str, dtype: str) -> None:
        given = arguments(np.random.default_rng(2), 2, 3, 4, 2, 64, 140, 150, dtype)
        given["mask_cache"][...], given["mask_active"][...] = 0, 0
        if dtype == "float32":
            given["sinks"] = np.array([[-50.0, 0.0, 2.0, 50.0]], np.float32)
        got = drawing.IMPLEMENTATIONS[implementation].attention(**given)
        np.testing.assert_array_equal(got.astype(np.float64), 0.0)

    @parameterized.parameters(*drawing.IMPLEMENTATIONS)
    def test_what_is_masked_does_not_matter(self, implementation: str) -> None:
        """Large values in slots that nobody attends, as in caches of longer sequences."""
        given = arguments(np.random.default_rng(3), 2, 2, 4, 2, 64, 140, 150, "float32")
        given["mask_cache"][70:] = 0
        want = expected(**given)
        given["K_cache"][..., 70:] = 1e15
        given["V_cache"][:, :, 70:] = -1e15
        got = drawing.IMPLEMENTATIONS[implementation].attention(**given)
        drawing.assert_close(got, want, "float32")


class MaskTest(parameterized.TestCase):
    @parameterized.product(unified=(False, True), dtype=("bool", "int32", "uint8"))
    def test_layout(self, unified: bool, dtype: str) -> None:
        """Entry (b, h, g, s, t) says whether query s of head h * (q // k) + g attends key t."""
        slots, B, q, k, S = 5, 2, 6, 2, 3
        rng = np.random.default_rng(0)
        cache, active = (rng.integers(0, 2, (n, B, q, S)) for n in (slots, S))
        if unified:
            cache[slots - S :] = active
            kept = cache[: slots - S]
        else:
            kept = cache
        # Any number but zero attends.
        given = [array.astype(dtype) * (3 if dtype != "bool" else 1) for array in (cache, active)]
        got = np.asarray(attention_mask(given[0], None if unified else given[1], k))
        self.assertEqual(got.shape, (B, k, q // k, S, len(kept) + S))
        for b, h, g, s in np.ndindex(B, k, q // k, S):
            row = np.concatenate([kept, active])[:, b, h * (q // k) + g, s]
            np.testing.assert_array_equal(got[b, h, g, s], row != 0)


if __name__ == "__main__":
    absltest.main()
