"""Sliding windows in rings: token by token as all tokens at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.caches import allocate_caches, ring_capacity
from jax_tkg.kinds import Kind, decode_inputs, step_inputs
from jax_tkg.rope import rope_frequencies
from tests import cases

WINDOW = 6
SHAPE = cases.Shape(q=2, k=1, L=3, layer_kinds=(0, 1, 0))
"""Kind 0 has a window."""

BEHIND = 2
"""How many tokens the second sequence is behind the first."""


def frequencies(kind: int) -> np.ndarray:
    """Of two bases: the full layers have another than the window layers."""
    return rope_frequencies(SHAPE.d, (100.0, 10000.0)[kind])


def random_text(shape: cases.Shape, window: int) -> tuple[dict[str, Any], np.ndarray]:
    """Weights, and two sequences of more than three windows, [2, n, H]."""
    rng = np.random.default_rng(0)
    weights = cases.random_weights(shape, rng)
    return weights, cases.uniform(rng, (2, 3 * window + 2, shape.H), -1, 1)


def whole_sequences(
    shape: cases.Shape, window: int, weights: dict[str, Any], X: np.ndarray
) -> np.ndarray:
    """The oracle's hidden states of all tokens at once: nothing cached, masks say what is seen."""
    batch, tokens, _ = X.shape
    shape = dataclasses.replace(shape, B=batch, S=tokens, S_ctx=1, S_max=1)
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    seen = [(distance >= 0) & (distance < window), distance >= 0]
    angles = [np.arange(tokens) * frequencies(kind)[:, None] for kind in (0, 1)]
    tables = [np.repeat(each[:, None], batch, axis=1) for each in angles]
    caches = np.zeros((batch, shape.k, shape.d, 1), np.float32)
    inputs = {
        "X": X,
        "K_caches": [caches] * shape.L,
        "V_caches": [caches.swapaxes(-1, -2)] * shape.L,
        "RoPE_cos": tuple(map(np.cos, tables)),
        "RoPE_sin": tuple(map(np.sin, tables)),
        "mask_cache": (np.zeros((1, batch, shape.q, tokens), bool),) * 2,
        "mask_active": tuple(np.tile(mask[:, None, None], (1, batch, shape.q, 1)) for mask in seen),
        "position_ids": None,
    }
    hidden, *_ = cases.expected(shape, [weights], [inputs])
    return hidden


def step_by_step(
    shape: cases.Shape,
    window: int,
    weights: dict[str, Any],
    X: np.ndarray,
    S: int,
    ring: int,
    stacked: bool,
    implementation: str,
) -> np.ndarray:
    """The hidden states of all tokens, S new ones in each step; one sequence is behind."""
    batch, tokens, _ = X.shape
    kinds = (Kind(ring, frequencies(0), window), Kind(tokens, frequencies(1)))
    caches = allocate_caches(
        shape.L,
        B=batch,
        k=shape.k,
        d=shape.d,
        S_max=[kind.S_max for kind in kinds],
        dtype=jnp.float32,
        stacked=stacked,
        layer_kinds=shape.layer_kinds,
    )
    weights = cases.stack(weights) if stacked else weights
    call = functools.partial(
        jax_tkg.transformer_tkg,
        **cases.options(shape),
        implementation=implementation,
    )

    @functools.partial(jax.jit, donate_argnames="caches")
    def step(new: Any, lengths: Any, counts: Any, caches: Any) -> Any:
        inputs = step_inputs(kinds, lengths, S_tkg=S, q=shape.q, new_lengths=counts)
        return call(X=new, **weights, **inputs, K_caches=caches[0], V_caches=caches[1])

    lengths = np.zeros(batch, np.int32)
    found = np.zeros_like(X)
    while lengths.min() < tokens:
        counts = np.minimum(S, tokens - lengths)
        if not lengths.any():
            counts[1] = max(0, counts[1] - BEHIND)
        new = np.zeros((batch, S, shape.H), np.float32)
        for b, count in enumerate(counts):
            new[b, :count] = X[b, lengths[b] : lengths[b] + count]
        result = step(new, jnp.asarray(lengths), jnp.asarray(counts), caches)
        caches = result.K_caches, result.V_caches
        for b, count in enumerate(counts):
            found[b, lengths[b] : lengths[b] + count] = result.hidden[b, :count]
        lengths += counts.astype(np.int32)
    return found


@pytest.mark.thorough
class RingTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.weights, cls.X = random_text(SHAPE, WINDOW)
        cls.want = whole_sequences(SHAPE, WINDOW, cls.weights, cls.X)

    @parameterized.parameters(
        (1, WINDOW - 1, True, "auto"),
        (3, WINDOW + 8, False, "auto"),
        (3, WINDOW + 8, True, "reference"),
        (1, WINDOW + 8, False, "reference"),
        (8, WINDOW + 8, True, "auto"),
        (6, WINDOW + 8, True, "simulate"),
    )
    @pytest.mark.extended_except("3", "5")
    def test_three_windows(self, S: int, ring: int, stacked: bool, implementation: str) -> None:
        got = step_by_step(SHAPE, WINDOW, self.weights, self.X, S, ring, stacked, implementation)
        np.testing.assert_allclose(got, self.want, atol=2e-5 * np.abs(self.want).max())


@pytest.mark.slow
class PublishedWindowTest(parameterized.TestCase):
    """Windows of published models in the Neuron kernel, with the ring that decoders give them."""

    def _check(self, window: int, S: int) -> None:
        shape = dataclasses.replace(SHAPE, L=2, layer_kinds=(0, 1))
        weights, X = random_text(shape, window)
        want = whole_sequences(shape, window, weights, X)
        ring = ring_capacity(window)
        got = step_by_step(shape, window, weights, X, S, ring, False, "simulate")
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())

    @pytest.mark.extended
    def test_gpt_oss(self) -> None:
        self._check(128, 8)

    @pytest.mark.exhaustive
    def test_gpt_oss_one_by_one(self) -> None:
        self._check(128, 1)

    @pytest.mark.exhaustive
    def test_gemma_3_1b(self) -> None:
        self._check(512, 8)


@pytest.mark.thorough
class StepInputsTest(absltest.TestCase):
    def test_forms(self) -> None:
        """Positions that follow one another are given by the first; a short ring is whole."""
        kinds = (Kind(12, frequencies(0), 4), Kind(40, np.zeros(SHAPE.d // 2)))
        given = step_inputs(kinds, jnp.asarray([3, 23]), S_tkg=2, q=3, S_ctx=24)
        self.assertEqual(
            [mask.shape for mask in given["mask_cache"]], [(12, 2, 3, 2), (24, 2, 3, 2)]
        )
        np.testing.assert_array_equal(given["position_ids"][0], [[3, 4], [11, 0]])
        np.testing.assert_array_equal(given["position_ids"][1], [[3], [23]])
        np.testing.assert_array_equal(given["RoPE_cos"][1], np.ones((32, 2, 2)))
        np.testing.assert_array_equal(given["RoPE_sin"][1], np.zeros((32, 2, 2)))
        padded = step_inputs(
            kinds, jnp.asarray([3, 23]), S_tkg=2, q=3, new_lengths=jnp.asarray([2, 1])
        )
        np.testing.assert_array_equal(padded["position_ids"][0], [[3, 4], [11, -1]])
        np.testing.assert_array_equal(padded["position_ids"][1], [[3, 4], [23, -1]])


class DecodeInputsTest(absltest.TestCase):
    def test_forms(self) -> None:
        lengths, rates = jnp.asarray([3, 23]), np.zeros(4)
        plain = decode_inputs(lengths, rates, S_tkg=2)
        self.assertIsNone(plain["mask_cache"])
        self.assertIsNone(plain["mask_active"])
        np.testing.assert_array_equal(plain["context_lengths"], lengths)
        np.testing.assert_array_equal(plain["position_ids"], [[3], [23]])
        np.testing.assert_array_equal(plain["RoPE_cos"], np.ones((4, 2, 2)))
        padded = decode_inputs(lengths, rates, S_tkg=2, q=3, new_lengths=jnp.asarray([2, 1]))
        np.testing.assert_array_equal(padded["position_ids"], [[3, 4], [23, -1]])
        self.assertEqual(padded["mask_active"].shape, (2, 2, 3, 2))
        ring = decode_inputs(lengths, rates, S_tkg=2, window=4, S_max=12)
        np.testing.assert_array_equal(ring["position_ids"], [[3, 4], [11, 0]])
        np.testing.assert_array_equal(ring["context_starts"], [[0, 1], [8, 9]])
        tables = jnp.asarray([[2, -1], [5, 1]])
        blocks = decode_inputs(lengths, rates, block_tables=tables, block_len=16)
        np.testing.assert_array_equal(blocks["position_ids"], [[35], [23]])

    def test_refused(self) -> None:
        lengths, rates = jnp.asarray([3]), np.zeros(4)
        for options, message in (
            ({"S_max": 12}, "S_max: expected None without window"),
            ({"block_tables": jnp.zeros((1, 1), jnp.int32)}, "block_len: expected an integer"),
            ({"new_lengths": jnp.asarray([1])}, "q: expected .* heads with new_lengths, got None"),
            ({"S_tkg": 4, "window": 2}, "q: expected .* heads with window = 2 < S_tkg = 4, got No"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                decode_inputs(lengths, rates, **options)

    @pytest.mark.extended
    def test_a_ring_of_lengths_decodes_as_masks_do(self) -> None:
        shape = dataclasses.replace(SHAPE, L=1, B=2, S=1)
        rng = np.random.default_rng(2)
        weights = cases.random_weights(shape, rng)
        rates, kind = frequencies(1), Kind(8, frequencies(1), WINDOW)
        states = [allocate_caches(1, B=2, k=1, d=shape.d, S_max=8, dtype=jnp.float32)] * 2
        run = jax.jit(functools.partial(jax_tkg.transformer_tkg, num_layers=1))
        for turn in range(12):
            X = cases.uniform(rng, (2, 1, shape.H), -1, 1)
            lengths = jnp.asarray([turn, turn + 3])
            masked = {n: v[0] for n, v in step_inputs((kind,), lengths, S_tkg=1, q=2).items()}
            ranges = decode_inputs(lengths, rates, window=WINDOW, S_max=8)
            outs = [
                run(X, **weights, K_caches=K, V_caches=V, **inputs)
                for (K, V), inputs in zip(states, (masked, ranges), strict=True)
            ]
            np.testing.assert_allclose(outs[0].hidden, outs[1].hidden, rtol=1e-5, atol=1e-5)
            states = [(out.K_caches, out.V_caches) for out in outs]


if __name__ == "__main__":
    absltest.main()
