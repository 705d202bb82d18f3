"""What a compiled step on a CPU allocates and copies beside its arguments and results."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.bits import Bits
from jax_tkg.call.arguments import FLOAT8_DTYPES
from jax_tkg.cpu import formulation
from tests import hlo

pytestmark = pytest.mark.compilation("users_hlo")

L, H, I, Q, D, S_CTX = 4, 512, 1792, 4, 128, 128  # noqa: E741
MATRIX_SHAPES = {
    "W_qkvs": (H, (Q + 2) * D),
    "W_outs": (Q * D, H),
    "W_gates": (H, I),
    "W_ups": (H, I),
    "W_downs": (I, H),
}
# One layer's keys have more elements than any weight, so that a copy of them stands out.
S_MAX = 1 << 14
UP_CAST_BYTES = 4 * L * sum(math.prod(sizes) for sizes in MATRIX_SHAPES.values())
DTYPES = {
    "f32": ("float32", "float32"),
    "bf16": ("bfloat16", "bfloat16"),
    "fp8": ("bfloat16", "float8_e4m3fn"),
}
"""Of activations, caches and attention weights; of the MLP's weights."""


def _array(shape: tuple[int, ...], dtype: str, bits: bool) -> Any:
    kind = jnp.dtype(dtype)
    if bits and kind.itemsize < 4:
        return Bits(jax.ShapeDtypeStruct(shape, f"uint{8 * kind.itemsize}"), kind)
    return jax.ShapeDtypeStruct(shape, kind)


def _per_layer(shape: tuple[int, ...], dtype: str, bits: bool, stacked: bool) -> Any:
    if stacked:
        return _array((L, *shape), dtype, bits)
    return [_array(shape, dtype, bits)] * L


def _compiled(
    dtype: str,
    B: int,
    stacked: bool,
    bits: bool,
    S_max: int = S_MAX,
    S_ctx: int = S_CTX,
    stacked_caches: bool | None = None,
) -> Any:
    """A decode step with donated caches; nothing is ever allocated for it."""
    compute, mlp = DTYPES[dtype]
    weights: dict[str, Any] = {}
    for name, sizes in MATRIX_SHAPES.items():
        kind = mlp if name in ("W_gates", "W_ups", "W_downs") else compute
        weights[name] = _per_layer(sizes, kind, bits, stacked)
        if jnp.dtype(kind) in FLOAT8_DTYPES:
            scales = f"{name[:-1]}_scales"
            weights[scales] = _per_layer((1, sizes[1]), "float32", False, stacked)
    for name in ("W_gamma_qkvs", "W_gamma_mlps"):
        weights[name] = _per_layer((1, H), "float32", False, stacked)
    in_stacks = stacked if stacked_caches is None else stacked_caches
    caches = (
        _per_layer((B, 1, D, S_max), compute, bits, in_stacks),
        _per_layer((B, 1, S_max, D), compute, bits, in_stacks),
    )
    others = {
        "X": _array((B, 1, H), compute, False),
        "RoPE_cos": _array((D // 2, B, 1), "float32", False),
        "RoPE_sin": _array((D // 2, B, 1), "float32", False),
        "mask_cache": _array((S_ctx, B, Q, 1), "bool", False),
        "mask_active": _array((1, B, Q, 1), "bool", False),
        "position_ids": _array((B, 1), "int32", False),
    }

    def step(caches: Any, weights: Any, others: Any) -> Any:
        return tuple(
            jax_tkg.transformer_tkg(
                **weights, **others, K_caches=caches[0], V_caches=caches[1], num_layers=L
            )
        )

    return jax.jit(step, donate_argnums=0).lower(caches, weights, others).compile()


@pytest.mark.thorough
class MemoryTest(parameterized.TestCase):
    @parameterized.parameters(
        *itertools.product(DTYPES, (1, 8), ((False, False), (False, True), (True, True)))
    )
    @pytest.mark.extended_except("6", "17")
    def test_bits(self, dtype: str, B: int, stacked: tuple[bool, bool]) -> None:
        """With low precision held as bits: caches in place, and half a layer's weights in f32.

        `stacked` says so of weights and of caches.
        """
        compiled = _compiled(dtype, B, stacked[0], bits=True, stacked_caches=stacked[1])
        cache_elements = B * D * S_MAX
        self.assertEqual(hlo.copies_of(compiled, cache_elements), [])
        memory = compiled.memory_analysis()
        itemsize = jnp.dtype(DTYPES[dtype][0]).itemsize
        self.assertGreaterEqual(memory.alias_size_in_bytes, 2 * L * cache_elements * itemsize)
        self.assertLess(memory.temp_size_in_bytes, UP_CAST_BYTES / L / 2)

    @parameterized.parameters(*itertools.product(("f32", "bf16"), (False, True)))
    @pytest.mark.extended_except("3")
    def test_long_context(self, dtype: str, stacked: bool) -> None:
        """Low-precision caches are converted for attention a few heads at a time."""
        B, S_ctx = 8, S_MAX // 2
        heads = formulation.attention_heads(
            _array((B, 1, D, S_MAX), DTYPES[dtype][0], False), B, S_ctx
        )
        compiled = _compiled(dtype, B, stacked, bits=True, S_ctx=S_ctx)
        self.assertEqual(hlo.copies_of(compiled, B * D * S_MAX), [])
        if dtype == "bf16":
            self.assertEqual(heads, 1)
            temporary = compiled.memory_analysis().temp_size_in_bytes
            self.assertLess(temporary, 4 * B * D * S_ctx)

    @parameterized.parameters(
        *itertools.product(("f32", "bf16"), ((False, False), (False, True), (True, True)))
    )
    @pytest.mark.extended_except("1", "3")
    def test_caches_wait_for_their_layer(self, dtype: str, stacked: tuple[bool, bool]) -> None:
        """Attended whole, one layer's caches are sliced or converted at a time, not all layers'."""
        S_ctx = S_MAX // 2
        compiled = _compiled(
            dtype, 1, stacked[0], bits=True, S_ctx=S_ctx, stacked_caches=stacked[1]
        )
        both_in_f32 = 2 * 4 * D * S_ctx
        self.assertLess(compiled.memory_analysis().temp_size_in_bytes, 1.75 * both_in_f32)

    @parameterized.parameters(*itertools.product(("bf16", "fp8"), (1, 8), (False, True)))
    @pytest.mark.extended_except("7")
    def test_arrays(self, dtype: str, B: int, stacked: bool) -> None:
        """With arrays: at most a copy of the weights as they are held, never of all up-cast."""
        compiled = _compiled(dtype, B, stacked, bits=False, S_max=S_CTX)
        self.assertLess(compiled.memory_analysis().temp_size_in_bytes, 0.6 * UP_CAST_BYTES)


if __name__ == "__main__":
    absltest.main()
