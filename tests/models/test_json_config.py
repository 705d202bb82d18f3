"""What a config.json says of the model, and what it may not say."""

from __future__ import annotations

import json
import math
from typing import Any

from absl.testing import absltest, parameterized

from jax_tkg.models import json_config, safetensors
from jax_tkg.models.config import LayerKind, ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.rope_scaling import llama3, plain
from jax_tkg.rope import Llama3Scaling
from tests.models import files, tiny, tiny_folder

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LINEAR = {"type": "linear", "factor": 2.0}
SMOLLM2 = {
    "_name_or_path": "HuggingFaceTB/SmolLM2",
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "initializer_range": 0.041666666666666664,
    "is_llama_config": True,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
}
"""Keys of SmolLM2-135M-Instruct's config.json that change nothing."""


def _group(block: Any) -> dict[str, Any]:
    """What compressed-tensors says of the weights of one group of layers."""
    return {"targets": ["Linear"], "weights": {"num_bits": 8, "block_structure": block}}


def _compressed(*groups: Any, **members: Any) -> dict[str, Any]:
    """A quantization of compressed-tensors, as `config.json` has it."""
    named = dict(zip("acb", groups, strict=False))
    described = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return described | {"config_groups": named} | members


class _FolderTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.path = self.folder / "config.json"

    def write(self, **members: Any) -> None:
        described = tiny_folder.config(tiny.Tiny()) | members
        kept = {key: value for key, value in described.items() if value is not ...}
        self.path.write_text(json.dumps(kept))

    def config(self, **members: Any) -> ModelConfig:
        self.write(**members)
        return safetensors.read_config(self.folder)

    def assert_refused(self, message: str, **members: Any) -> None:
        with self.assertRaisesRegex(ModelError, f"^{self.path}: {message}") as caught:
            self.config(**members)
        self.assertRegex(str(caught.exception), ", (got|but) ")


class ConfigTest(_FolderTest):
    def test_values(self) -> None:
        self.assertEqual(
            self.config(),
            ModelConfig(
                num_layers=2,
                hidden_size=96,
                intermediate_size=160,
                num_heads=6,
                num_kv_heads=2,
                head_size=16,
                vocabulary_size=len(tiny.VOCABULARY),
                context_length=512,
                rms_norm_eps=1e-2,
                layers=(LayerKind(plain(16, 500.0)),) * 2,
            ),
        )

    def test_defaults(self) -> None:
        for absent in (None, ...):
            config = self.config(num_key_value_heads=absent, head_dim=absent, rope_theta=absent)
            self.assertEqual((config.num_kv_heads, config.head_size), (6, 16))
            self.assertEqual(config.layers[0].rope, plain(16, 10000.0))

    def test_keys_of_a_real_model(self) -> None:
        self.assertEqual(self.config(**SMOLLM2), self.config())

    @parameterized.parameters(
        ("silu", "silu"), ("swish", "silu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")
    )
    def test_activation(self, name: str, activation: str) -> None:
        self.assertEqual(self.config(hidden_act=name).activation, activation)

    def test_biases(self) -> None:
        config = self.config(attention_bias=True)
        self.assertTrue(config.projection_bias and config.output_bias)

    @parameterized.named_parameters(
        ("model_type", "model_type: expected 'llama' or .*, got 'gpt'", {"model_type": "gpt"}),
        ("no_type", "model_type: expected 'llama' or .* the key is missing", {"model_type": ...}),
        ("missing", "num_hidden_layers: expected an integer from 1", {"num_hidden_layers": None}),
        ("text", "num_hidden_layers: expected .*, got 'two'", {"num_hidden_layers": "two"}),
        ("list", r"num_hidden_layers: expected .*, got \[2\]", {"num_hidden_layers": [2]}),
        ("flag", "num_hidden_layers: expected .*, got True", {"num_hidden_layers": True}),
        ("float", "num_hidden_layers: expected .*, got 2.0", {"num_hidden_layers": 2.0}),
        ("zero", "hidden_size: expected an integer from 1 to 1048576, got 0", {"hidden_size": 0}),
        ("huge", "hidden_size: expected an integer from 1 to .*", {"hidden_size": 10**30}),
        ("negative", "vocab_size: expected an integer from 1 to .*, got -1", {"vocab_size": -1}),
        (
            "kv_heads",
            "num_key_value_heads: expected a divisor of the 6 query heads, got 4",
            {"num_key_value_heads": 4},
        ),
        ("odd", "head_dim: expected an even number, got 15", {"head_dim": 15}),
        ("wide", "head_dim: expected an integer from 2 to 256, got 258", {"head_dim": 258}),
        (
            "uneven",
            "head_dim: expected an even integer from 2 to 256 .* but the key is missing",
            {"head_dim": None, "num_attention_heads": 7, "num_key_value_heads": 7},
        ),
        ("eps_text", "rms_norm_eps: expected a number from 1e-15 to 1.0, got 'small'",
         {"rms_norm_eps": "small"}),
        ("eps_flag", "rms_norm_eps: expected a number .*, got True", {"rms_norm_eps": True}),
        ("eps_zero", "rms_norm_eps: expected a number .*, got 0", {"rms_norm_eps": 0}),
        ("eps_nan", "rms_norm_eps: expected a number .*, got nan", {"rms_norm_eps": math.nan}),
        ("theta", "rope_theta: expected a number from 1.0 .*, got '1'", {"rope_theta": "1"}),
        ("theta_zero", "rope_theta: expected a number .*, got 0", {"rope_theta": 0}),
        ("theta_inf", "rope_theta: expected a number .*, got inf", {"rope_theta": math.inf}),
        ("context", "max_position_embeddings: expected .*", {"max_position_embeddings": 2**31}),
        ("tied", "tie_word_embeddings: expected true or false, got 1", {"tie_word_embeddings": 1}),
    )  # fmt: skip
    def test_out_of_range(self, message: str, members: dict[str, Any]) -> None:
        self.write(**members)
        with self.assertRaisesRegex(ModelError, f"^{self.path}: {message}"):
            keys = ModelFolder(self.folder).json("config.json")
            json_config.read_config(keys)
            json_config.ties_embeddings(keys)


class ArithmeticTest(_FolderTest):
    """What changes the arithmetic is done or refused by name."""

    @parameterized.parameters(
        ("hidden_act", "relu"),
        ("attention_bias", 0),
        ("mlp_bias", True),
        ("quantization", {"bits": 4}),
        ("sliding_window", 4096),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("rope_interleaved", True),
        ("partial_rotary_factor", 0.5),
        ("residual_multiplier", 0.2),
        ("logits_scaling", 8.0),
        ("num_local_experts", 8),
        ("pruned_heads", {"0": [1]}),
        ("architectures", ["LlamaForCausalLMEagle"]),
        ("architectures", "LlamaForCausalLM"),
        # Names that nobody has used yet.
        ("attn_logit_softcap", 30.0),
        ("use_qk_norm", True),
        ("no_rope_layers", [1, 0]),
        ("attention_window", 128),
        ("activation_fn", "relu"),
        ("scale_embeddings", True),
        ("moe_layers", [1]),
    )
    def test_refused(self, key: str, value: Any) -> None:
        self.assert_refused(f"{key}: expected ", **{key: value})

    def test_class_of_another_family(self) -> None:
        """Either key may be the wrong one."""
        message = r"architectures: expected \['MistralForCausalLM'\] with model_type 'mistral', got"
        self.assert_refused(message, model_type="mistral")

    @parameterized.parameters(
        ("quant_method: expected 'fp8' or .*, got 'gptq'", {"quant_method": "gptq"}),
        ("kv_cache_scheme: expected no such key", {"quant_method": "fp8", "kv_cache_scheme": {}}),
        (
            "format: expected 'float-quantized', got 'pack-quantized'",
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        ),
        (
            "weight_block_size: expected rows and columns",
            {"quant_method": "fp8", "weight_block_size": [128]},
        ),
        ("scale_fmt: expected 'float', got 'ue8m0'", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
        ("expert_dtype: expected 'fp8', got", {"quant_method": "fp8", "expert_dtype": "fp4"}),
        (
            "sparsity_config: expected {}, got {'format': 'dense'}",
            _compressed(sparsity_config={"format": "dense"}),
        ),
        ("config_groups: expected an object, got 5", _compressed(config_groups=5)),
        ("config_groups.a: expected an object, got 5", _compressed(config_groups={"a": 5})),
        (
            "config_groups.a.weights.block_structure: expected a list of integers .*, got '8x8'",
            _compressed(_group("8x8")),
        ),
        (
            r"config_groups.b.weights.block_structure: expected \[8, 8\], as in other groups, got",
            _compressed(_group([8, 8]), _group(None), _group([8, 4])),
        ),
    )
    def test_other_quantizations_are_refused(self, message: str, value: Any) -> None:
        self.assert_refused(rf"quantization_config\.{message}", quantization_config=value)

    @parameterized.parameters(
        ("quantization_config", None),
        ("quantization_config", _compressed(_group(None), sparsity_config={}, transform_config={})),
        ("quantization_config", _compressed(config_groups={"FP8": ["Linear"]})),
        ("sliding_window", None),
        ("layer_types", ["full_attention", "full_attention"]),
        ("partial_rotary_factor", 1),
        ("use_qk_norm", False),
        ("attn_logit_softcap", None),
        ("embedding_multiplier", 1.0),
        ("moe_layers", []),
        ("_attn_implementation", "flash_attention_2"),
        ("temperature", 0.6),
        ("normal", 3),
        ("unsloth_version", "2024.9"),
        ("auto_map", {"AutoModel": "modeling.Llama"}),
        ("architectures", ["LlamaForCausalLM"]),
    )
    def test_neutral_or_harmless(self, key: str, value: Any) -> None:
        self.assertEqual(self.config(**{key: value}), self.config())


class RopeTest(_FolderTest):
    def test_llama3(self) -> None:
        scaling = Llama3Scaling(8.0, 1.0, 4.0, 256)
        for name in ("rope_scaling", "rope_parameters"):
            config = self.config(**{name: LLAMA3})
            self.assertEqual(config.layers[0].rope, llama3(16, 500.0, scaling))

    def test_linear(self) -> None:
        for key in ("type", "rope_type"):
            config = self.config(rope_scaling={key: "linear", "factor": 2})
            self.assertEqual(config.layers[0].rope, plain(16, 500.0, 2.0))

    def test_theta_inside(self) -> None:
        parameters = {"rope_type": "default", "rope_theta": 700.0}
        config = self.config(rope_parameters=parameters, rope_theta=...)
        self.assertEqual(config.layers[0].rope, plain(16, 700.0))
        self.assert_refused(
            "rope_theta: expected 700.0, as in rope_parameters, got 500.0",
            rope_parameters=parameters,
        )

    def test_both_names(self) -> None:
        both = {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3}
        self.assertEqual(self.config(**both), self.config(rope_scaling=LLAMA3))
        self.assertEqual(
            self.config(rope_parameters={}, rope_scaling=LINEAR), self.config(rope_scaling=LINEAR)
        )
        for other in (LINEAR, {"rope_type": "default"}, LLAMA3 | {"factor": 4.0}):
            self.assert_refused(
                "rope_scaling: expected the same as rope_parameters",
                rope_parameters=other,
                rope_scaling=LLAMA3,
            )
        self.assert_refused(
            r"rope_scaling\.rope_type: expected .*, got 'mrope'",
            rope_parameters={"rope_type": "default"},
            rope_scaling={"rope_type": "mrope", "factor": 4.0},
        )

    @parameterized.named_parameters(
        ("mrope", {"type": "mrope"}, "type: expected 'default' or 'linear' or 'dynamic' or"),
        ("odd_type", {"rope_type": 3}, "rope_type: expected 'default' or .*, got 3"),
        (
            "types",
            {"rope_type": "linear", "type": "default", "factor": 2.0},
            "type: expected 'linea",
        ),
        (
            "no_factor",
            {"type": "linear"},
            "factor: expected a number from .* but the key is missing",
        ),
        ("no_type", {"factor": 2.0}, "factor: expected 1.0, got 2.0"),
        ("text", {"type": "linear", "factor": "2"}, "factor: expected a number from .*, got '2'"),
        ("zero", {"type": "linear", "factor": 0.0}, "factor: expected a number from .*, got 0.0"),
        ("negative", {"type": "linear", "factor": -1}, "factor: expected a number from .*, got -1"),
        ("nan", {"type": "linear", "factor": math.nan}, "factor: expected a number .*, got nan"),
        ("zero3", LLAMA3 | {"factor": 0.0}, "factor: expected a number from 0.001 to .*, got 0.0"),
        (
            "low",
            LLAMA3 | {"low_freq_factor": 4.0},
            "low_freq_factor: expected a number below high_",
        ),
        ("high", LLAMA3 | {"high_freq_factor": -4.0}, "high_freq_factor: expected a number from"),
        (
            "length",
            LLAMA3 | {"original_max_position_embeddings": 256.0},
            "original_max_position_embeddings: expected an integer from 1 to .*, got 256.0",
        ),
        (
            "unknown",
            LINEAR | {"beta_fast": 32},
            "beta_fast: expected no such key with rope_type 'li",
        ),
        ("partial", LINEAR | {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0"),
        (
            "layers",
            {"full_attention": {"rope_type": "default"}},
            "full_attention: expected no such",
        ),
    )
    def test_refused(self, rope: dict[str, Any], message: str) -> None:
        for name in ("rope_scaling", "rope_parameters"):
            self.assert_refused(rf"{name}\.{message}", **{name: rope})

    @parameterized.parameters((True,), ("linear",), ([],), (2.0,))
    def test_no_object(self, value: Any) -> None:
        self.assert_refused("rope_scaling: expected an object, got ", rope_scaling=value)

    def test_length_beside_the_scaling(self) -> None:
        # transformers 5 lets the outer one win.
        self.assert_refused(
            "original_max_position_embeddings: expected 256, as with the other values",
            rope_scaling=LLAMA3,
            original_max_position_embeddings=512,
        )


class StopTokensTest(_FolderTest):
    def stops(self) -> list[int]:
        return json_config.stop_tokens(ModelFolder(self.folder))

    def test_of_config_json(self) -> None:
        self.write(eos_token_id=[3, 5])
        self.assertEqual(self.stops(), [3, 5])
        self.write(eos_token_id=4)
        self.assertEqual(self.stops(), [4])

    def test_generation_config_is_more_to_the_point(self) -> None:
        self.write(eos_token_id=4)
        generation = self.folder / "generation_config.json"
        generation.write_text('{"eos_token_id": [3, 5]}')
        self.assertEqual(self.stops(), [3, 5])
        for none in ("{}", '{"eos_token_id": []}'):
            generation.write_text(none)
            self.assertEqual(self.stops(), [4])

    def test_none(self) -> None:
        self.assertEqual(self.stops(), [])
        self.write(eos_token_id=None)
        self.assertEqual(self.stops(), [])

    @parameterized.parameters(
        (-1,), (len(tiny.VOCABULARY),), ("<|end|>",), (True,), (2.0,), ([[1]],), ([1, None],)
    )
    def test_refused(self, value: Any) -> None:
        for name in ("config.json", "generation_config.json"):
            self.write()
            path = self.folder / name
            content = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(content | {"eos_token_id": value}))
            last = len(tiny.VOCABULARY) - 1
            message = (
                f"{name}: eos_token_id: expected an integer from 0 to {last} or a list of them"
            )
            with self.assertRaisesRegex(ModelError, message):
                self.stops()


if __name__ == "__main__":
    absltest.main()
