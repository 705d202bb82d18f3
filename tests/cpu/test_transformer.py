"""The whole operation as "cpu" and as "reference": equal, in place, and named apart."""

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
from jax_tkg.bits import without_bits
from jax_tkg.call.operand_table import names
from tests import cases, hlo

SHAPE = cases.Shape(B=1, S=2, L=3, S_ctx=24, S_max=2048)
BOTH = ("cpu", "reference")


def _arguments(dtype: str, stacked: bool) -> dict[str, Any]:
    shape = SHAPE if dtype == "float32" else dataclasses.replace(SHAPE, dtype=dtype)
    rng = np.random.default_rng(0)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    arguments["position_ids"] = np.full((SHAPE.B, 1), 7, np.int32)
    return cases.stack(arguments) if stacked else arguments


@pytest.mark.thorough
class ImplementationsTest(parameterized.TestCase):
    def test_chosen(self) -> None:
        call = functools.partial(jax_tkg.explain, **_arguments("float32", False))
        for platform, name in (("cpu", "cpu"), ("cuda", "reference"), ("tpu", "reference")):
            choice = call(**cases.options(SHAPE), platform=platform)
            self.assertEqual(choice.implementation, name)
            self.assertIn(platform, choice.reason)
        with self.assertRaisesRegex(ValueError, "'cpu' on platform cpu only"):
            call(**cases.options(SHAPE), platform="cuda", implementation="cpu")

    @parameterized.product(stacked=(False, True), bits=(False, True))
    @pytest.mark.extended_except("1", "2")
    def test_equal_and_in_place(self, stacked: bool, bits: bool) -> None:
        """Donated caches are updated where they are: nothing as large as one of them is copied."""
        dtype = "bfloat16" if bits else "float32"
        arguments = _arguments(dtype, stacked)
        held = {**arguments, **(cases.held_as_bits(arguments) if bits else {})}
        caches = {name: jax.tree.map(jnp.asarray, held.pop(name)) for name in names("cache")}
        results = {}
        for implementation in BOTH:

            def step(caches: Any, held: Any, implementation: str = implementation) -> Any:
                options = {**cases.options(SHAPE), "implementation": implementation}
                return tuple(jax_tkg.transformer_tkg(**caches, **held, **options))

            compiled = jax.jit(step, donate_argnums=0).lower(caches, held).compile()
            elements = SHAPE.B * SHAPE.k * SHAPE.d * SHAPE.S_max
            # XLA:CPU of JAX 0.9 transposes the operand of the reference's scatter.
            if implementation == "cpu" or jax.__version_info__ >= (0, 10):
                self.assertEqual(hlo.copies_of(compiled, elements), [], implementation)
            aliased = compiled.memory_analysis().alias_size_in_bytes
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
            self.assertEqual(aliased, size, implementation)
            copies = jax.tree.map(jnp.copy, caches)
            results[implementation] = compiled(copies, held)
        tolerance = 1e-5 if dtype == "float32" else 0.02
        for got, want in zip(*map(without_bits, results.values()), strict=True):
            jax.tree.map(
                lambda got, want: np.testing.assert_allclose(
                    np.asarray(got, np.float32), np.asarray(want, np.float32), atol=tolerance
                ),
                got,
                want,
            )

    def test_routers_are_read_where_they_are(self) -> None:
        """A low-precision router is not up-cast: not its layer's, and not those of all layers."""
        H, E, L = 256, 40, 3
        shape = dataclasses.replace(
            cases.EXPERTS, B=1, S=1, L=L, H=H, E=E, E_held=E, dtype="bfloat16"
        )
        rng = np.random.default_rng(0)
        arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
        arguments = cases.stack(arguments)
        step = functools.partial(
            jax_tkg.transformer_tkg, **cases.options(shape), implementation="cpu"
        )
        for held, up_cast in ((cases.held_as_bits(arguments), False), ({}, True)):
            if up_cast:
                step = functools.partial(step, implementation="reference")
            text = jax.jit(step).lower(**{**arguments, **held}).compile().as_text()
            found = f"f32[{L},{H},{E}]" in text
            # JAX 0.9 up-casts a layer's router, when it is that layer's turn.
            if up_cast or jax.__version_info__ >= (0, 10):
                found = found or f" = f32[{H},{E}]" in text
            self.assertEqual(found, up_cast)


if __name__ == "__main__":
    absltest.main()
