"""The context of a KV head shared out over ranks, against the oracle with the whole context."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

import jax_tkg
import jax_tkg.reference
from jax_tkg import caches, kinds, rope, sharding
from tests import cases, context_cases, parallel_cases

SHAPE = cases.Shape(B=2, S=2, q=2, k=1, d=16, L=1, S_ctx=21, S_max=24)

VALUES_PER_SHAPE = 4

SHAPES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "masks": (2, 1, {"positions": "each"}),
    "unified_masks_of_four_ranks": (4, 1, {"unified": True, "S": 3}),
    "lengths_of_two_kv_heads": (2, 2, {"context": "each_length", "unified": True, "S_ctx": 20}),
    "ranges_with_every_option": (4, 1, {"context": "ranges", "S_ctx": 20, **cases.EVERY_OPTION}),
    "float8_caches": (2, 1, {"context": "lengths", "cache_dtype": "float8_e4m3", "S_ctx": 22}),
    "blocks": (2, 2, {"context": "each_range", "block_len": 8, "S_ctx": 24, "positions": "each"}),
    "blocks_bfloat16": (
        *(4, 1),
        {"context": "lengths", "block_len": 8, "S_ctx": 24, "dtype": "bfloat16", "S": 4},
    ),
    "kinds": (
        *(2, 1),
        {
            "L": 3,
            "layer_kinds": (0, 1, 0),
            "kinds": ((12, 12, True, "each"),),
            "context": "each_range",
            "S_ctx": 20,
        },
    ),
    "few_slots": (4, 1, {"S_ctx": 3, "S_max": 4, "S": 1, "unified": True}),
}
"""Ranks that share out a context, KV heads, and changes of `SHAPE`."""


class OracleTest(parameterized.TestCase):
    @parameterized.named_parameters(*((name, name) for name in SHAPES))
    @pytest.mark.thorough
    @pytest.mark.extended_except("masks", "ranges_with_every_option", "blocks")
    def test_drawn(self, name: str) -> None:
        count, kv_heads, changes = SHAPES[name]
        shape = dataclasses.replace(SHAPE, **changes)
        context_cases.check_call(shape, count, kv_heads, draws=VALUES_PER_SHAPE)

    def test_axes_of_a_mesh(self) -> None:
        """The ranks of a context are neighbors in the order of the axes."""
        mesh = context_cases.mesh_of(dp=1, kv=2, context=2)
        context_cases.check_call(
            SHAPE, 2, 2, mesh=mesh, axes=("kv", "context"), implementation="reference"
        )

    def test_replica_groups_without_varying_types(self) -> None:
        groups = [[0, 1, 2, 3]]
        context_cases.check_call(
            SHAPE, 2, 2, check_vma=False, axis_name=None, replica_groups=groups
        )

    def test_gradients(self) -> None:
        """Those of the reference, beside ranks that have copies of the context."""
        shape = dataclasses.replace(SHAPE, options=("sinks",))
        ranks = context_cases.random_ranks(shape, 2, 1, 0)
        specs = sharding.partition_specs("tp")
        copies = parallel_cases.join([ranks], specs, "tp", None)
        found = []
        for count, given in ((1, copies), (2, context_cases.join(ranks, 2))):
            options = {**cases.options(shape), "axis_name": "tp", "context_parallel": count}

            def hidden(arguments: dict[str, Any]) -> jax.Array:
                return jax_tkg.reference.transformer_tkg(**arguments, **options).hidden  # noqa: B023

            run = jax.shard_map(
                hidden,
                mesh=context_cases.mesh_of(tp=2),
                in_specs=({n: None if x is None else getattr(specs, n) for n, x in given.items()},),
                out_specs=specs.hidden,
            )

            def loss(own: dict[str, Any]) -> jax.Array:
                return jnp.square(run({**given, **own})).sum()  # noqa: B023

            own = {name: given[name] for name in ("X", "W_qkvs", "sinks")}
            found.append(jax.jit(jax.grad(loss))(own))
            # Ranks have the key and value columns in common: one of them gets all, or each a part.
            (columns,) = found[-1]["W_qkvs"]
            by_rank = columns.reshape(shape.H, 2, -1)
            queries = shape.q * shape.d
            found[-1]["W_qkvs"] = by_rank[:, :, :queries], by_rank[:, :, queries:].sum(axis=1)
        want, got = map(jax.tree.leaves, found)
        for one, other in zip(want, got, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())


class DecodeTest(parameterized.TestCase):
    """Prompt and loop on shared-out caches, beside the same model on one device."""

    @parameterized.parameters(("float32", 2e-5), ("bfloat16", 0.03))
    @pytest.mark.extended_except("0")
    def test_prompt_and_loop(self, dtype: str, tolerance: float) -> None:
        shape = dataclasses.replace(SHAPE, S=1, L=2, dtype=dtype, S_max=32)
        ranks = context_cases.random_ranks(shape, 4, 1, 0)
        whole = context_cases.join(ranks, 4)
        weights = {name: whole[name] for name in ranks[0] if name.startswith(("W_", "bias_"))}
        tokens = cases.uniform(np.random.default_rng(1), (shape.B, 24, shape.H), -1, 1)
        lengths = np.array([13, 6], np.int32)
        results = []
        for count, mesh in ((1, context_cases.mesh_of(tp=4)), (4, context_cases.mesh_of(tp=4))):
            results.append(_generated(weights, tokens, lengths, shape, mesh, count))
        want, got = results
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def _generated(
    weights: dict[str, Any],
    tokens: np.ndarray,
    lengths: np.ndarray,
    shape: cases.Shape,
    mesh: jax.sharding.Mesh,
    count: int,
) -> np.ndarray:
    """Hidden states [B, T, H] of a prompt of 13 tokens and of 11 steps of a loop."""
    specs = sharding.partition_specs("tp")
    K_caches, V_caches = caches.allocate_caches(
        shape.L,
        B=shape.B,
        k=4,
        d=shape.d,
        S_max=shape.S_max,
        dtype=shape.dtype,
        context_parallel=count,
    )
    frequencies = rope.rope_frequencies(shape.d)
    options: dict[str, Any] = {
        "num_layers": shape.L,
        "axis_name": "tp",
        "context_parallel": count,
    }

    def run(weights: dict[str, Any], K: Any, V: Any, tokens: jax.Array) -> jax.Array:
        # Padding of the shorter prompts is not written.
        prompt = kinds.decode_inputs(
            *(jnp.zeros(2, jnp.int32), frequencies), S_tkg=13, new_lengths=jnp.asarray(lengths), q=2
        )
        given = {**prompt, "mask_active": None}
        first = jax_tkg.prefill.transformer_prefill(
            X=tokens[:, :13], **weights, **given, K_caches=K, V_caches=V, platform="cpu", **options
        )

        def step(carry: Any, token: jax.Array) -> Any:
            K, V, lengths = carry
            given = kinds.decode_inputs(lengths, frequencies, S_tkg=1)
            out = jax_tkg.transformer_tkg(
                X=token[:, None], **weights, **given, K_caches=K, V_caches=V, **options
            )
            return (out.K_caches, out.V_caches, lengths + 1), out.hidden[:, 0]

        carry = (first.K_caches, first.V_caches, jnp.asarray(lengths))
        _, hidden = jax.lax.scan(step, carry, tokens[:, 13:].swapaxes(0, 1))
        # The prompt's hidden states are of real tokens only up to the shortest length.
        return jnp.concatenate([first.hidden[:, :6], hidden.swapaxes(0, 1)], axis=1)

    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(
            {name: getattr(specs, name) for name in weights},
            *(specs.K_caches, specs.V_caches, PartitionSpec()),
        ),
        out_specs=specs.hidden,
    )
    call = jax.jit(sharded, donate_argnums=(1, 2))
    hidden = call(weights, K_caches, V_caches, tokens.astype(jnp.dtype(shape.dtype)))
    return np.asarray(hidden).astype(np.float64)


class BadInputTest(parameterized.TestCase):
    @parameterized.parameters(
        (3, {}, r"context_parallel: expected a divisor of the 2 ranks that sum their results"),
        (0, {}, r"context_parallel: expected at least 1, got 0"),
        (
            2,
            {"q": 4, "k": 2},
            r"context_parallel: expected 1 with several KV heads per rank .k = 2",
        ),
        (
            2,
            {"S_ctx": 50},
            r"mask_cache: expected S_ctx <= context_parallel \* S_max = 2 \* 24 = 48",
        ),
        (2, {"S_ctx": 50, "context": "lengths"}, r"context_bucket: expected S_ctx <= .* = 48"),
        (2, {"context": "lengths"}, r"context_bucket: expected a multiple of context_parallel = 2"),
        (2, {"block_len": 8, "S_ctx": 16}, r"S_ctx = n \* block_len = 2 \* 8 \* 2 .* = 32"),
    )
    def test_messages(self, count: int, changes: dict[str, Any], message: str) -> None:
        shape = dataclasses.replace(SHAPE, **changes)
        rng = np.random.default_rng(0)
        arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
        options = {"axis_name": "tp", "context_parallel": count, **cases.options(shape)}

        def call(arguments: dict[str, Any]) -> jax.Array:
            return jax_tkg.transformer_tkg(**arguments, **options).hidden

        spec = PartitionSpec()
        run = jax.shard_map(
            call, mesh=context_cases.mesh_of(tp=2), in_specs=spec, out_specs=spec, check_vma=False
        )
        with self.assertRaisesRegex(ValueError, message):
            jax.eval_shape(run, arguments)


class ShareOutTest(absltest.TestCase):
    def test_every_slot_is_on_its_rank(self) -> None:
        rng = np.random.default_rng(0)
        keys = rng.standard_normal((2, 3, 2, 4, 10)).astype(np.float32)
        got = np.asarray(caches.share_out(keys, 4, -1))
        self.assertEqual(got.shape, (2, 3, 8, 4, 3))
        for head in range(2):
            for slot in range(12):
                want = keys[:, :, head, :, slot] if slot < 10 else 0.0
                own = got[:, :, 4 * head + slot % 4, :, slot // 4]
                np.testing.assert_array_equal(own, np.broadcast_to(want, own.shape))
        values = caches.share_out([keys.swapaxes(-1, -2)], 4, -2)[0]
        np.testing.assert_array_equal(np.asarray(values).swapaxes(-1, -2), got)


if __name__ == "__main__":
    absltest.main()
