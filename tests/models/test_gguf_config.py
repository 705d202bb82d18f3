"""What the metadata of a GGUF file says of the model, and what it may not say."""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf
from jax_tkg.models.config import LayerKind, ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families.gguf_layers import READS_ROPE
from jax_tkg.models.families.known import GGUF_FAMILIES
from jax_tkg.models.rope_scaling import plain
from jax_tkg.models.typed_keys import TypedKeys
from tests.models import files, tiny

TYPE, FACTOR, OLD_FACTOR = (
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scale_linear",
)


class ConfigTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = files.folder(self) / "model.gguf"

    def config(self, changes: dict[str, Any], shape: tiny.Tiny | None = None) -> ModelConfig:
        shape = shape or tiny.Tiny()
        tiny.write(self.path, shape.tensors(), shape.metadata() | changes)
        return gguf.read_config(gguf.GgufFile(self.path))

    def assert_refused(
        self, changes: dict[str, Any], message: str, shape: tiny.Tiny | None = None
    ) -> None:
        with self.assertRaisesRegex(ModelError, f"^{self.path}: {message}") as caught:
            self.config(changes, shape)
        self.assertRegex(str(caught.exception), ", (got|but) ")

    def test_values(self) -> None:
        self.assertEqual(
            self.config({}),
            ModelConfig(
                num_layers=2,
                hidden_size=96,
                intermediate_size=160,
                num_heads=6,
                num_kv_heads=2,
                head_size=16,
                vocabulary_size=len(tiny.VOCABULARY),
                context_length=512,
                rms_norm_eps=np.float32(1e-2).item(),
                layers=(LayerKind(plain(16, 500.0)),) * 2,
            ),
        )

    def test_defaults(self) -> None:
        config = self.config(
            {
                "llama.attention.key_length": None,
                "llama.attention.head_count_kv": None,
                "llama.rope.freq_base": None,
            }
        )
        self.assertEqual((config.head_size, config.num_kv_heads), (16, 6))
        self.assertEqual(config.layers[0].rope, plain(16, 10000.0))

    def test_one_number_for_each_layer(self) -> None:
        self.assertEqual(self.config({"llama.attention.head_count_kv": [2, 2]}).num_kv_heads, 2)
        self.assert_refused(
            {"llama.attention.head_count_kv": [2, 3]},
            r"llama.attention.head_count_kv: expected the same number for all layers, got \[2, 3\]",
        )

    def test_embedding_with_more_rows_than_tokens(self) -> None:
        count = len(tiny.VOCABULARY)
        self.assertEqual(self.config({"llama.vocab_size": count + 8}).vocabulary_size, count + 8)
        self.assert_refused(
            {"llama.vocab_size": count - 1}, f"llama.vocab_size: expected at least {count}, the"
        )

    @parameterized.named_parameters(
        ("architecture", {"general.type": "adapter"}, "general.type: expected 'model', got 'adap"),
        ("partly_turned", {"llama.rope.dimension_count": 8}, "llama.rope.dimension_count: expect"),
        ("values", {"llama.attention.value_length": 8}, "llama.attention.value_length: expected t"),
        ("eps", {"llama.attention.layer_norm_rms_epsilon": 0.0}, "llama.attention.layer_norm_rms_"),
        ("eps_nan", {"llama.attention.layer_norm_rms_epsilon": np.nan}, "llama.attention.layer_n"),
        ("theta", {"llama.rope.freq_base": -1.0}, "llama.rope.freq_base: expected a number from"),
        ("theta_small", {"llama.rope.freq_base": 1e-9}, "llama.rope.freq_base: expected a number "),
        ("theta_text", {"llama.rope.freq_base": "1"}, "llama.rope.freq_base: expected a number fr"),
        (
            "heads",
            {"llama.attention.head_count_kv": 4},
            "llama.attention.head_count_kv: expected a divisor of the 6 query heads, got 4",
        ),
        (
            "no_head",
            {"llama.attention.head_count": 0},
            "llama.attention.head_count: expected an in",
        ),
        (
            "uneven",
            {"llama.attention.key_length": None, "llama.attention.head_count": 7},
            "llama.attention.key_length: expected an even integer from 2 .* but the key is miss",
        ),
        ("odd", {"llama.attention.key_length": 15}, "llama.attention.key_length: expected an even"),
        ("wide", {"llama.attention.key_length": 2**32 - 2}, "llama.attention.key_length: expected"),
        ("flag", {"llama.block_count": True}, "llama.block_count: expected an integer .* got True"),
        ("float", {"llama.block_count": 2.0}, "llama.block_count: expected an integer .* got 2.0"),
        ("deep", {"llama.block_count": 2**32 - 1}, "llama.block_count: expected an integer from 1"),
        ("long", {"llama.context_length": 2**31}, "llama.context_length: expected an integer from"),
        ("no_tokens", {"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens: expected a list of"),
        ("number_tokens", {"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens: expected a l"),
    )
    def test_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        self.assert_refused(changes, message)

    @parameterized.parameters(None, 0, 9)
    def test_experts_per_token(self, count: int | None) -> None:
        """Of a file with eight experts, as Mixtral's."""
        self.assert_refused(
            {"llama.expert_count": 8, "llama.expert_used_count": count},
            "llama.expert_used_count: expected an integer from 1 to 8",
        )

    @parameterized.named_parameters(
        ("window", "llama.attention.sliding_window", 4096, 0),
        ("scale", "llama.attention.scale", 0.5, 0.0),
        ("clamp", "llama.attention.clamp_kqv", 8.0, 0.0),
        ("logits", "llama.logit_scale", 0.25, 1.0),
        ("cap", "llama.final_logit_softcapping", 30.0, 0.0),
        ("bidirectional", "llama.attention.causal", False, True),
        ("concentration", "llama.rope.scaling.attn_factor", 1.2, 1.0),
        ("parallel", "llama.use_parallel_residual", True, False),
    )
    def test_arithmetic_that_is_not_there(self, key: str, value: Any, neutral: Any) -> None:
        self.assert_refused({key: value}, f"{key}: expected ")
        self.config({key: neutral})

    def test_unknown_key(self) -> None:
        self.assert_refused(
            {"llama.attention.gate": 1}, "llama.attention.gate: expected no such ke"
        )
        self.config({"other.attention.gate": 1, "general.file_type": 0})


class EveryKeyTest(parameterized.TestCase):
    @parameterized.parameters(*GGUF_FAMILIES)
    def test_any_type(self, architecture: str) -> None:
        """Whatever a key holds, it is read or refused: no operation of NumPy sees an array."""
        reads = GGUF_FAMILIES[architecture].reads
        sizes = {
            f"{architecture}.{key.removeprefix('llama.')}": value
            for key, value in tiny.Tiny().metadata().items()
            if key.startswith("llama.")
        }
        sizes |= {f"{architecture}.{key}": 1 for key in reads if key.startswith("expert_")}
        sizes |= {f"{architecture}.attention.sliding_window": 8} if "gpt" in architecture else {}
        base = {"general.architecture": architecture, "tokenizer.ggml.tokens": ["a"], **sizes}
        self.read(base)
        kept = 0
        for key in (*base, *(f"{architecture}.{name}" for name in (*READS_ROPE, *reads))):
            for value in (np.array([1, 2]), np.array([0.5]), np.array([]), ["a"], "a", True, -1):
                try:
                    self.read(base | {key: value})
                    kept += 1
                except ModelError as error:
                    self.assertIn(key, str(error))
        self.assertGreater(kept, 0)

    def read(self, values: dict[str, Any]) -> ModelConfig:
        keys = TypedKeys("file", values)
        return gguf.read_config(types.SimpleNamespace(metadata=keys, tensor_names=(), path="file"))


class RopeScalingTest(parameterized.TestCase):
    """As llama.cpp reads it: hparams in llama-model.cpp, and rope_freq_scale in llama-context."""

    def setUp(self) -> None:
        super().setUp()
        self.path = files.folder(self) / "model.gguf"

    @parameterized.named_parameters(
        ("nothing", {}, False, None),
        ("linear", {TYPE: "linear", FACTOR: 4.0}, False, 4.0),
        ("without_type", {FACTOR: 4.0}, False, 4.0),
        ("old_name", {OLD_FACTOR: 4.0}, False, 4.0),
        ("old_name_with_type", {TYPE: "linear", OLD_FACTOR: 4.0}, False, 4.0),
        ("new_name_before_old", {FACTOR: 4.0, OLD_FACTOR: 2.0}, False, 4.0),
        ("none_with_factor", {TYPE: "none", FACTOR: 4.0}, False, None),
        ("factor_one", {FACTOR: 1.0}, False, None),
        ("tensor", {}, True, 1.0),
        ("tensor_and_linear", {TYPE: "linear", FACTOR: 4.0}, True, 4.0),
        ("tensor_without_type", {FACTOR: 4.0}, True, 4.0),
        ("tensor_and_none", {TYPE: "none", FACTOR: 4.0}, True, 1.0),
    )
    def test_factors(self, changes: dict[str, Any], tensor: bool, linear: float | None) -> None:
        shape = tiny.Tiny(rope_factors=tensor)
        tensors = shape.tensors()
        tiny.write(self.path, tensors, shape.metadata() | changes)
        rope = gguf.read_config(gguf.GgufFile(self.path)).layers[0].rope
        stored = tensors.get("rope_freqs.weight", np.ones(8))
        expected = 500.0 ** (-np.arange(8) / 8) / (linear or 1.0) / stored
        np.testing.assert_allclose(rope.frequencies, expected, rtol=1e-12)

    @parameterized.named_parameters(
        ("plain", {}),
        ("original_length", {"original_context_length": 64}),
        ("betas", {"original_context_length": 64, "yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0}),
        ("concentration", {"attn_factor": 0.8, "yarn_ext_factor": 1.0}),
        ("narrow", {"original_context_length": 7, "yarn_beta_fast": 1.0}),
    )
    def test_yarn(self, scaling: dict[str, Any]) -> None:
        """Every angle and its factor, as ggml's rope_yarn and llama-context.cpp define them."""
        factor = 6.0
        keys = {f"llama.rope.scaling.{name}": value for name, value in scaling.items()}
        shape = tiny.Tiny()
        fields = shape.metadata() | {TYPE: "yarn", FACTOR: factor} | keys
        tiny.write(self.path, shape.tensors(), fields)
        rope = gguf.read_config(gguf.GgufFile(self.path)).layers[0].rope
        size, base = shape.head_size, shape.rope_theta
        length = scaling.get("original_context_length", shape.context_length)

        def pair_of(turns: float) -> float:
            return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

        start = max(0, math.floor(pair_of(scaling.get("yarn_beta_fast", 32.0))))
        end = min(size - 1, math.ceil(pair_of(scaling.get("yarn_beta_slow", 1.0))))
        # Before the operation: its own factor divided out, the file's multiplied in.
        before = (0.1 * math.log(factor) + 1) / (1 + 0.1 * math.log(factor))
        before *= scaling.get("attn_factor", 1.0)
        for pair in range(size // 2):
            ramp = 1 - min(1, max(0, (pair - start) / max(0.001, end - start)))
            turned = base ** (-2 * pair / size)
            expected = turned / factor * (1 - ramp) + turned * ramp
            np.testing.assert_allclose(rope.frequencies[pair], expected, rtol=1e-6)
        np.testing.assert_allclose(
            rope.concentration, before * (1 + 0.1 * math.log(factor)), rtol=1e-6
        )

    @parameterized.named_parameters(
        ("mrope", {TYPE: "mrope"}, "type: expected 'none' or 'linear' or .*, got 'mrope'"),
        ("longrope", {TYPE: "longrope"}, "rope_factors_long.weight: expected with llama.rope.sca"),
        ("linear", {TYPE: "linear"}, "factor: expected a number from .*, but the key is missing"),
        ("zero", {FACTOR: 0.0}, "factor: expected a number from 0.001 to .*, got 0.0"),
        ("negative", {FACTOR: -2.0}, "factor: expected a number from 0.001 to .*, got -2.0"),
        ("nan", {FACTOR: np.nan}, "factor: expected a number from 0.001 to .*, got nan"),
        ("infinite", {FACTOR: np.inf}, "factor: expected a number from 0.001 to .*, got inf"),
        (
            "nan_and_none",
            {TYPE: "none", FACTOR: np.nan},
            "factor: expected a number from .*, got n",
        ),
        ("old_zero", {OLD_FACTOR: 0.0}, "scale_linear: expected a number from 0.001 to .*, got 0."),
    )
    def test_refused(self, changes: dict[str, Any], message: str) -> None:
        for tensor in (False, True):
            shape = tiny.Tiny(rope_factors=tensor)
            tiny.write(self.path, shape.tensors(), shape.metadata() | changes)
            with self.assertRaisesRegex(ModelError, message):
                gguf.read_config(gguf.GgufFile(self.path))

    @parameterized.parameters(
        ("yarn_ext_factor", 0.5, "expected 1.0 or -1.0, got 0.5"),
        ("yarn_attn_factor", 1.2, "expected 1.0, got 1.2"),
        ("yarn_log_multiplier", 0.1, "expected 0.0, got 0.1"),
        ("yarn_beta_fast", 0.5, "expected at least yarn_beta_slow, 1.0, got 0.5"),
        ("original_context_length", 6, "expected a context in which a pair turns 1.0 times"),
    )
    def test_refused_yarn(self, name: str, value: float, message: str) -> None:
        shape = tiny.Tiny()
        changes = {TYPE: "yarn", FACTOR: 4.0, f"llama.rope.scaling.{name}": value}
        tiny.write(self.path, shape.tensors(), shape.metadata() | changes)
        with self.assertRaisesRegex(ModelError, f"llama.rope.scaling.{name}: {message}"):
            gguf.read_config(gguf.GgufFile(self.path))

    @parameterized.parameters(0.0, -1.0, np.nan, np.inf)
    def test_refused_tensor(self, value: float) -> None:
        shape = tiny.Tiny(rope_factors=True)
        tensors = shape.tensors()
        tensors["rope_freqs.weight"][3] = value
        tiny.write(self.path, tensors, shape.metadata())
        with self.assertRaisesRegex(
            ModelError, "rope_freqs.weight: expected numbers from 0.001 to"
        ):
            gguf.read_config(gguf.GgufFile(self.path))


if __name__ == "__main__":
    absltest.main()
