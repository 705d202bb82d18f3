"""Differentiation: the primitive refuses, the reference obliges."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

import jax_tkg
from jax_tkg import reference
from tests import cases

SHAPE = cases.Shape(B=2, S=2, q=2, k=1, d=4, H=128, I=128, L=2, S_ctx=6, S_max=8)
DIFFERENTIATED = ("X", "W_qkvs", "W_downs", "W_gamma_mlps", "K_caches", "V_caches")


def _arguments(positions: str, unified: bool) -> tuple[cases.Shape, dict[str, Any]]:
    shape = dataclasses.replace(SHAPE, positions=positions, unified=unified)
    rng = np.random.default_rng(3)
    return shape, {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


@pytest.mark.thorough
class GradientsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("updated", "first", False, False),
        ("stacked", "each", True, True),
        ("not_updated", "none", False, False),
    )
    @pytest.mark.extended_except("updated")
    def test_reference_against_differences(
        self, positions: str, unified: bool, stacked: bool
    ) -> None:
        shape, arguments = _arguments(positions, unified)
        if stacked:
            arguments = cases.stack(arguments)
        chosen = {name: arguments.pop(name) for name in DIFFERENTIATED}

        def results(chosen: dict[str, Any]) -> Any:
            out = reference.transformer_tkg(**arguments, **chosen, **cases.options(shape))
            return out.hidden, list(out.K_caches), list(out.V_caches)

        # The direction has about 1e5 entries of size one, so the step along it is about 0.06.
        check_grads(results, (chosen,), order=1, modes=("fwd", "rev"), eps=2e-4, rtol=2e-2)

    def test_written_slots_pass_the_gradient_on(self) -> None:
        shape, arguments = _arguments("none", False)
        arguments["position_ids"] = jnp.array([[1], [-1]], jnp.int32)
        x = arguments.pop("X")

        def written(x: Any) -> jax.Array:
            out = reference.transformer_tkg(x, **arguments, **cases.options(shape))
            return out.V_caches[0][:, 0, 1:3].sum(axis=(1, 2))

        jacobian = jax.jacrev(written)(x)
        self.assertGreater(np.abs(jacobian[0, 0]).max(), 0)
        np.testing.assert_array_equal(jacobian[1], 0)

    def test_primitive_names_the_reference(self) -> None:
        shape, arguments = _arguments("first", False)
        x = arguments.pop("X")

        def loss(x: Any) -> jax.Array:
            return jax_tkg.transformer_tkg(x, **arguments, **cases.options(shape)).hidden.sum()

        for differentiate in (jax.grad(loss), jax.jit(jax.grad(loss))):
            with self.assertRaisesRegex(TypeError, r"jax_tkg\.reference\.transformer_tkg"):
                differentiate(x)


if __name__ == "__main__":
    absltest.main()
