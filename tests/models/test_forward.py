"""A model's forward pass in both forms of its per-layer arrays."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.bits import Bits
from jax_tkg.models import gguf
from jax_tkg.models.forward import ModelForward
from tests.models import devices, tiny

TOKENS = np.array([[3, 1, 4], [1, 5, 9]], np.int32)
S_CTX, CAPACITY = 8, 16


def _forward(dtype: str, ranks: int, stacked: bool | None) -> ModelForward:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, tiny.Tiny())
        model = gguf.load(gguf.GgufFile(path), dtype, ranks)
    return ModelForward(model, devices.mesh(ranks), stacked=stacked, capacity=CAPACITY)


def _run(forward: ModelForward) -> tuple[jax.Array, Any]:
    """Logits of tokens after others that the caches hold, and the caches."""

    @jax.jit
    def run(parameters: Any, K_caches: Any, V_caches: Any) -> Any:
        for length in (0, TOKENS.shape[1]):
            hidden, K_caches, V_caches = forward.hidden(
                parameters,
                jnp.asarray(TOKENS),
                jnp.full((2,), length),
                jnp.full((2,), TOKENS.shape[1]),
                K_caches,
                V_caches,
                S_CTX,
            )
        return forward.logits(parameters, hidden), (K_caches, V_caches)

    return run(forward.parameters, *forward.caches(2))


@pytest.mark.thorough
class FormsTest(parameterized.TestCase):
    @parameterized.product(dtype=("float32", "bfloat16"), ranks=(1, 2))
    @pytest.mark.extended_except("2")
    def test_lists_give_what_stacks_give(self, dtype: str, ranks: int) -> None:
        """Lists are what Trainium gets."""
        stacked, lists = (_forward(dtype, ranks, form) for form in (True, False))
        self.assertIsInstance(lists.parameters.layers.W_outs, list)
        tolerance = 1e-5 if dtype == "float32" else 0.02
        (want, K_stacked), (got, K_lists) = _run(stacked), _run(lists)
        largest = np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * largest)
        self.assertLen(jax.tree.leaves(K_stacked), 2)
        self.assertLen(jax.tree.leaves(K_lists), 2 * lists.model.config.num_layers)

    def test_cpus_get_stacks_of_bits(self) -> None:
        forward = _forward("bfloat16", 1, None)
        layers = forward.parameters.layers.W_outs
        self.assertIsInstance(layers, Bits)
        self.assertEqual(layers.shape[0], forward.model.config.num_layers)


if __name__ == "__main__":
    absltest.main()
