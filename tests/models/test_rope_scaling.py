"""Frequencies and concentrations of every kind of RoPE, judged by transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models.errors import ModelError
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.typed_keys import TypedKeys

pytestmark = pytest.mark.oracle

HEAD_SIZE, CONTEXT = 32, 4096
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": np.linspace(1.0, 1.5, 16).tolist(),
    "long_factor": np.linspace(1.0, 9.0, 16).tolist(),
    "original_max_position_embeddings": 512,
}


class TransformersTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("default", {"rope_type": "default"}),
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        ("dynamic", {"rope_type": "dynamic", "factor": 4.0}),
        (
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
        ),
        ("yarn", YARN),
        (
            "yarn_without_a_factor",
            YARN | {"factor": None},
        ),
        ("yarn_attention_factor", YARN | {"attention_factor": 1.2}),
        ("yarn_weights", YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}),
        ("yarn_betas", YARN | {"beta_fast": 16, "beta_slow": 2}),
        ("yarn_whole", YARN | {"truncate": False}),
        ("longrope", LONGROPE),
        ("longrope_attention_factor", LONGROPE | {"attention_factor": 1.3}),
        ("longrope_factor", LONGROPE | {"factor": 4.0}),
    )
    def test_equal_transformers(self, rope: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rope = rope | {"rope_theta": 500.0}
        config = transformers.LlamaConfig(
            hidden_size=128,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            rope_parameters=dict(rope),
        )
        keys = {"max_position_embeddings": CONTEXT, "rope_parameters": rope}
        actual = read_rope(TypedKeys("config.json", keys), HEAD_SIZE)
        for length in (300, CONTEXT):
            rotary = LlamaRotaryEmbedding(config)
            cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
            positions = np.arange(length)[:, None]
            angles = positions * actual.head_frequencies(HEAD_SIZE, capacity=length)
            pairs = HEAD_SIZE // 2
            for table, function in ((cos, np.cos), (sin, np.sin)):
                expected = actual.concentration * function(angles)
                # Angles of up to `length`, in float32.
                np.testing.assert_allclose(table[0, :, :pairs], expected, atol=1e-6 * length)


class OddFilesTest(parameterized.TestCase):
    """What cannot be computed is refused by name."""

    @parameterized.named_parameters(
        ("few", LONGROPE | {"long_factor": [1.0]}, "long_factor: expected a list of 16 numbers"),
        ("nan", LONGROPE | {"short_factor": [float("nan")] * 16}, "short_factor: expected a list"),
        (
            "one",
            LONGROPE | {"original_max_position_embeddings": 1},
            "original_max_.*: expected m",
        ),
        ("theta", YARN | {"rope_theta": 1.0}, "rope_type: expected another type"),
        ("unknown", YARN | {"mscale_by": 1.0}, "mscale_by: expected no such key with"),
        ("flag", YARN | {"truncate": 1}, "truncate: expected true or false, got 1"),
    )
    def test_refused(self, rope: dict[str, Any], message: str) -> None:
        keys = {"max_position_embeddings": CONTEXT, "rope_scaling": rope}
        with self.assertRaisesRegex(ModelError, rf"^config.json: rope_scaling\.{message}"):
            read_rope(TypedKeys("config.json", keys), HEAD_SIZE)

    def test_an_odd_part_is_refused(self) -> None:
        keys = {"max_position_embeddings": CONTEXT, "partial_rotary_factor": 0.1}
        with self.assertRaisesRegex(ModelError, "partial_rotary_factor: expected an even part"):
            read_rope(TypedKeys("config.json", keys), HEAD_SIZE, fraction=1.0)


if __name__ == "__main__":
    absltest.main()
