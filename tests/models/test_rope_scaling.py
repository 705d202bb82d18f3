"""Frequencies and concentrations of every kind of RoPE, judged by transformers' own."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models.errors import ModelError
from jax_tkg.models.gguf import GgufFile, read_config
from jax_tkg.models.json_rope import read_rope
from jax_tkg.models.rope_scaling import Rope
from jax_tkg.models.typed_keys import TypedKeys
from tests.models import files

pytestmark = pytest.mark.oracle

HEAD_SIZE, CONTEXT, THETA = 32, 4096, 500.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": np.linspace(1.0, 1.5, 16).tolist(),
    "long_factor": np.linspace(1.0, 9.0, 16).tolist(),
    "original_max_position_embeddings": 512,
}


class _RopeTest(parameterized.TestCase):
    def assert_equals_transformers(self, actual: Rope, rope: dict[str, Any]) -> None:
        """Compares tables of a short context and of the whole one."""
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config = transformers.LlamaConfig(
            hidden_size=128,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            rope_parameters=rope | {"rope_theta": THETA},
        )
        for length in (300, CONTEXT):
            rotary = LlamaRotaryEmbedding(config)
            cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
            pairs = cos.shape[-1] // 2
            positions = np.arange(length)[:, None]
            angles = positions * actual.head_frequencies(HEAD_SIZE, capacity=length)
            self.assertFalse(angles[:, pairs:].any())
            for table, function in ((cos, np.cos), (sin, np.sin)):
                expected = actual.concentration * function(angles[:, :pairs])
                # Angles of up to `length`, in float32.
                np.testing.assert_allclose(table[0, :, :pairs], expected, atol=1e-6 * length)


class JsonTest(_RopeTest):
    @parameterized.named_parameters(
        ("default", {"rope_type": "default"}),
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        ("dynamic", {"rope_type": "dynamic", "factor": 4.0}),
        ("llama3", LLAMA3),
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
        described = rope | {"rope_theta": THETA}
        keys = {"max_position_embeddings": CONTEXT, "rope_parameters": described}
        actual = read_rope(TypedKeys("config.json", keys), HEAD_SIZE)
        self.assert_equals_transformers(actual, rope)


class GgufTest(_RopeTest):
    """Files as llama.cpp's converter writes them for a model with such a RoPE."""

    @parameterized.named_parameters(
        ("default", "llama", {"rope_type": "default"}),
        ("linear", "qwen2", {"rope_type": "linear", "factor": 4.0}),
        ("llama3", "llama", LLAMA3),
        ("yarn", "qwen3", YARN),
        ("yarn_betas", "llama", YARN | {"beta_fast": 16.0, "beta_slow": 2.0}),
        ("yarn_long", "qwen2", YARN | {"factor": 2.5, "original_max_position_embeddings": 1024}),
        ("longrope", "phi3", LONGROPE),
        (
            "longrope_of_a_part",
            "phi3",
            LONGROPE
            | {
                "partial_rotary_factor": 0.75,
                "short_factor": LONGROPE["short_factor"][:12],
                "long_factor": LONGROPE["long_factor"][:12],
            },
        ),
    )
    def test_equal_transformers(self, architecture: str, rope: dict[str, Any]) -> None:
        path = files.folder(self) / "model.gguf"
        _write_gguf(path, architecture, rope)
        (layer,) = read_config(GgufFile(path)).layers
        self.assert_equals_transformers(layer.rope, rope)


def _write_gguf(path: pathlib.Path, architecture: str, rope: dict[str, Any]) -> None:
    """Metadata of a model of one layer, and the tensors of its RoPE, by gguf's writer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(128)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(int(HEAD_SIZE * rope.get("partial_rotary_factor", 1.0)))
    writer.add_token_list(["a", "b"])
    kind, original = rope["rope_type"], rope.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(original)
    if "beta_fast" in rope:
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if kind == "longrope":
        stretched = math.log(CONTEXT / original) / math.log(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + stretched))
        for name in ("long", "short"):
            factors = np.asarray(rope[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", np.asarray(_llama3_divisors(rope), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _llama3_divisors(rope: dict[str, Any]) -> list[float]:
    """Of each pair: none of fast ones, the factor of slow ones, a mixture between."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    divisors = []
    for pair in range(HEAD_SIZE // 2):
        wave = 2 * math.pi * THETA ** (2 * pair / HEAD_SIZE)
        turns = rope["original_max_position_embeddings"] / wave
        mixture = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - mixture) / factor + mixture))
    return divisors


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
        ("slow", YARN | {"beta_fast": 1e-320}, "beta_fast: expected a number from 0.001"),
    )
    def test_refused(self, rope: dict[str, Any], message: str) -> None:
        keys = {"max_position_embeddings": CONTEXT, "rope_scaling": rope}
        with self.assertRaisesRegex(ModelError, rf"^config.json: rope_scaling\.{message}"):
            read_rope(TypedKeys("config.json", keys), HEAD_SIZE)

    @parameterized.named_parameters(
        ("linear", {"rope_type": "linear", "factor": 2.0}),
        ("llama3", LLAMA3),
        ("yarn", YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}),
        ("longrope", LONGROPE),
    )
    def test_any_value(self, rope: dict[str, Any]) -> None:
        """It is refused by its key or gives numbers."""
        keys = (*rope, "beta_fast", "beta_slow", "attention_factor", "partial_rotary_factor")
        odd: tuple[Any, ...] = (0, -1, 1e-320, 1e-3, 1, 1e308, 10**400, math.nan, True, "x", [], {})
        for key in keys:
            for value in odd:
                scaling = rope | {key: value}
                file = {"max_position_embeddings": CONTEXT, "rope_scaling": scaling}
                try:
                    found = read_rope(TypedKeys("config.json", file), HEAD_SIZE, fraction=1.0)
                except ModelError as error:
                    self.assertIn("rope_scaling.", str(error))
                else:
                    numbers = (*found.frequencies, *found.long_frequencies, found.concentration)
                    self.assertTrue(np.isfinite(numbers).all(), f"{key}: {value}")

    def test_no_pair_turns(self) -> None:
        keys = {"max_position_embeddings": CONTEXT, "rope_scaling": LLAMA3}
        part = {"partial_rotary_factor": 0}
        found = read_rope(TypedKeys("config.json", keys | part), HEAD_SIZE, fraction=1.0)
        self.assertEqual(found, Rope(()))

    def test_an_odd_part_is_refused(self) -> None:
        keys = {"max_position_embeddings": CONTEXT, "partial_rotary_factor": 0.1}
        with self.assertRaisesRegex(ModelError, "partial_rotary_factor: expected an even part"):
            read_rope(TypedKeys("config.json", keys), HEAD_SIZE, fraction=1.0)


if __name__ == "__main__":
    absltest.main()
