"""`config.json` as models were published with it: every key is known, and means what it should."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl.testing import absltest, parameterized

from jax_tkg.models import json_config, packing
from jax_tkg.models.config import Experts, ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families.known import JSON_FAMILIES, REFUSED
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.typed_keys import TypedKeys

_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}


def _published(model_type: str, model_class: str, sizes: str, **members: Any) -> dict[str, Any]:
    """Members of a file; `sizes` are layers, H, I, heads, KV heads, vocabulary and context."""
    names = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
    )
    numbers = dict(zip(names, map(int, sizes.split()), strict=True))
    head = {"model_type": model_type, "architectures": [model_class], "rms_norm_eps": 1e-5}
    return _COMMON | head | numbers | members


PUBLISHED = {
    "llama_3_1_8b": _published(
        "llama", "LlamaForCausalLM", "32 4096 14336 32 8 128256 131072",
        attention_bias=False, hidden_act="silu", mlp_bias=False, pretraining_tp=1,
        rope_scaling={"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        rope_theta=500000.0, tie_word_embeddings=False,
    ),
    "mistral_7b_0_1": _published(
        "mistral", "MistralForCausalLM", "32 4096 14336 32 8 32000 32768",
        hidden_act="silu", rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False,
    ),
    "mistral_nemo": _published(
        "mistral", "MistralForCausalLM", "40 5120 14336 32 8 131072 131072",
        head_dim=128, hidden_act="silu", rope_theta=1000000.0, sliding_window=None,
        tie_word_embeddings=False,
    ),
    "mixtral_8x7b": _published(
        "mixtral", "MixtralForCausalLM", "32 4096 14336 32 8 32000 32768",
        hidden_act="silu", num_experts_per_tok=2, num_local_experts=8, output_router_logits=False,
        rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None,
        tie_word_embeddings=False,
    ),
    "qwen3_30b_a3b": _published(
        "qwen3_moe", "Qwen3MoeForCausalLM", "48 2048 6144 32 4 151936 40960",
        attention_bias=False, decoder_sparse_step=1, head_dim=128, hidden_act="silu",
        max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768, norm_topk_prob=True,
        num_experts=128, num_experts_per_tok=8, output_router_logits=False, rope_scaling=None,
        rope_theta=1000000.0, router_aux_loss_coef=0.001, sliding_window=None,
        tie_word_embeddings=False, use_sliding_window=False,
    ),
    "gpt_oss_20b": _published(
        "gpt_oss", "GptOssForCausalLM", "24 2880 2880 64 8 201088 131072",
        attention_bias=True, experts_per_token=4, head_dim=64, hidden_act="silu",
        initial_context_length=4096, layer_types=["sliding_attention", "full_attention"] * 12,
        num_experts_per_tok=4, num_local_experts=32, output_router_logits=False,
        quantization_config={
            "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
            "quant_method": "mxfp4",
        },
        rope_scaling={"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                      "original_max_position_embeddings": 4096, "rope_type": "yarn",
                      "truncate": False},
        rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0,
        tie_word_embeddings=False,
    ),
    "qwen2_5_7b": _published(
        "qwen2", "Qwen2ForCausalLM", "28 3584 18944 28 4 152064 32768",
        hidden_act="silu", max_window_layers=28, rope_theta=1000000.0, sliding_window=131072,
        tie_word_embeddings=False, use_sliding_window=False,
    ),
    "qwen3_8b": _published(
        "qwen3", "Qwen3ForCausalLM", "36 4096 12288 32 8 151936 40960",
        attention_bias=False, head_dim=128, hidden_act="silu", max_window_layers=36,
        rope_scaling=None, rope_theta=1000000, sliding_window=None, tie_word_embeddings=False,
        use_sliding_window=False,
    ),
    "gemma_2_9b": _published(
        "gemma2", "Gemma2ForCausalLM", "42 3584 14336 16 8 256000 8192",
        attention_bias=False, attn_logit_softcapping=50.0, cache_implementation="hybrid",
        final_logit_softcapping=30.0, head_dim=256, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, rope_theta=10000.0,
        sliding_window=4096, sliding_window_size=4096, pad_token_id=0,
    ),
    "gemma_3_1b": _published(
        "gemma3_text", "Gemma3ForCausalLM", "26 1152 6912 4 1 262144 32768",
        attention_bias=False, attn_logit_softcapping=None, cache_implementation="hybrid",
        final_logit_softcapping=None, head_dim=256, hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256, rope_local_base_freq=10000, rope_scaling=None,
        rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, pad_token_id=0,
    ),
    "gemma_3_270m": _published(
        "gemma3_text", "Gemma3ForCausalLM", "18 640 2048 4 1 262144 32768",
        _sliding_window_pattern=6, attention_bias=False, attn_logit_softcapping=None,
        final_logit_softcapping=None, head_dim=256, hidden_activation="gelu_pytorch_tanh",
        layer_types=([*["sliding_attention"] * 5, "full_attention"] * 3),
        query_pre_attn_scalar=256, rope_local_base_freq=10000.0, rope_scaling=None,
        rope_theta=1000000.0, sliding_window=512, use_bidirectional_attention=False,
    ),
    "phi_3_mini_4k": _published(
        "phi3", "Phi3ForCausalLM", "32 3072 8192 32 32 32064 4096",
        _name_or_path="Phi-3-mini-4k-instruct", attention_bias=False, embd_pdrop=0.0,
        hidden_act="silu", original_max_position_embeddings=4096, pad_token_id=32000,
        resid_pdrop=0.0, rope_scaling=None, rope_theta=10000.0, sliding_window=2047,
        tie_word_embeddings=False, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
    ),
    "phi_3_5_mini": _published(
        "phi3", "Phi3ForCausalLM", "32 3072 8192 32 32 32064 131072",
        attention_bias=False, embd_pdrop=0.0, hidden_act="silu",
        original_max_position_embeddings=4096, resid_pdrop=0.0,
        rope_scaling={"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=False,
    ),
    "phi_4_mini": _published(
        "phi3", "Phi3ForCausalLM", "32 3072 8192 24 8 200064 131072",
        attention_bias=False, embd_pdrop=0.0, full_attn_mod=1, hidden_act="silu",
        interpolate_factor=1, lm_head_bias=False, mlp_bias=False,
        original_max_position_embeddings=4096, partial_rotary_factor=0.75, resid_pdrop=0.0,
        rope_scaling={"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=True,
    ),
    "smollm3_3b": _published(
        "smollm3", "SmolLM3ForCausalLM", "36 2048 11008 16 4 128256 65536",
        attention_bias=False, hidden_act="silu", layer_types=["full_attention"] * 36,
        max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9, pretraining_tp=2, rope_scaling=None,
        rope_theta=5000000.0, sliding_window=None, use_sliding_window=False,
    ),
    "granite_3_3_8b": _published(
        "granite", "GraniteForCausalLM", "40 4096 12800 32 8 49159 131072",
        attention_bias=False, attention_multiplier=0.0078125, embedding_multiplier=12.0,
        hidden_act="silu", logits_scaling=16.0, mlp_bias=False, residual_multiplier=0.22,
        rope_scaling=None, rope_theta=10000000.0, tie_word_embeddings=True,
    ),
    "granite_3_1_1b_a400m": _published(
        "granitemoe", "GraniteMoeForCausalLM", "24 1024 512 16 8 49155 131072",
        attention_bias=False, attention_multiplier=0.015625, embedding_multiplier=12.0,
        hidden_act="silu", logits_scaling=6.0, num_experts_per_tok=8, num_local_experts=32,
        output_router_logits=False, residual_multiplier=0.22, rope_scaling=None,
        rope_theta=1500000.0, router_aux_loss_coef=0.0, tie_word_embeddings=True,
    ),
    "glm_4_9b_0414": _published(
        "glm4", "Glm4ForCausalLM", "40 4096 13696 32 2 151552 32768",
        attention_bias=True, head_dim=128, hidden_act="silu", pad_token_id=151329,
        partial_rotary_factor=0.5, rope_theta=10000.0, tie_word_embeddings=False,
    ),
}  # fmt: skip


def _experts(count: int, per_token: int, size: int) -> dict[str, Any]:
    return dataclasses.asdict(Experts(count, per_token, size, normalize_weights=True))


def _read(**members: Any) -> ModelConfig:
    return json_config.read_config(TypedKeys("config.json", members))


class PublishedTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("llama_3_1_8b", 0, (None,), 128, {}),
        ("mistral_7b_0_1", 0, (4096,), 128, {}),
        ("mistral_nemo", 0, (None,), 128, {"head_size": 128}),
        ("mixtral_8x7b", 0, (None,), 128, {"experts": _experts(8, 2, 14336)}),
        (
            "qwen3_30b_a3b",
            0,
            (None,),
            128,
            {"experts": _experts(128, 8, 768), "head_norms": True},
        ),
        (
            "gpt_oss_20b",
            1,
            (128, None),
            64,
            {"activation": "swiglu_oai", "sinks": True, "output_bias": True},
        ),
        ("qwen2_5_7b", 0, (None,), 128, {"projection_bias": True, "output_bias": False}),
        ("qwen3_8b", 0, (None,), 128, {"head_norms": True, "projection_bias": False}),
        (
            "gemma_2_9b",
            1,
            (4096, None),
            256,
            {
                "activation": "gelu_tanh",
                "softmax_scale": 1 / 16,
                "attention_softcap": 50.0,
                "logit_softcap": 30.0,
                "post_norms": True,
                "embedding_scale": 3584**0.5,
            },
        ),
        ("gemma_3_1b", 5, (512, None), 256, {"head_norms": True, "attention_softcap": 0.0}),
        ("gemma_3_270m", 5, (512, None), 256, {"post_norms": True, "logit_softcap": 0.0}),
        ("phi_3_mini_4k", 0, (2047,), 96, {}),
        ("phi_3_5_mini", 0, (None,), 96, {}),
        ("phi_4_mini", 0, (None,), 96, {"head_size": 128}),
        ("smollm3_3b", 3, (None, None), 128, {}),
        (
            "granite_3_3_8b",
            0,
            (None,),
            128,
            {
                "softmax_scale": 1 / 128,
                "embedding_scale": 12.0,
                "residual_scale": 0.22,
                "logit_scale": 1 / 16,
            },
        ),
        (
            "granite_3_1_1b_a400m",
            0,
            (None,),
            64,
            {
                "experts": dataclasses.asdict(Experts(32, 8, 512, routing="topk_softmax")),
                "softmax_scale": 1 / 64,
                "logit_scale": 1 / 6,
            },
        ),
        ("glm_4_9b_0414", 0, (None,), 64, {"projection_bias": True, "output_bias": False}),
    )
    def test_options(
        self,
        first_other: int,
        windows: tuple[int | None, ...],
        rotary_size: int,
        fields: dict[str, Any],
    ) -> None:
        """The first layer of another kind, each kind's window, features that turn, and options."""
        name = self.id().rsplit("test_options_", 1)[1]
        config = _read(**PUBLISHED[name])
        self.assertEqual(tuple(kind.window for kind in config.kinds), windows)
        self.assertEqual(config.layer_kinds[: first_other + 1][-1], len(windows) - 1)
        self.assertEqual(set(config.layer_kinds[:first_other]) <= {0}, True)
        self.assertEqual(config.rotary_size, rotary_size)
        actual = dataclasses.asdict(config)
        self.assertEqual({field: actual[field] for field in fields}, fields)

    def test_all_families_are_here(self) -> None:
        """But Granite's with a shared expert, which only a test model has."""
        types = {members["model_type"] for members in PUBLISHED.values()}
        self.assertEqual(types | {"granitemoeshared"}, set(JSON_FAMILIES))

    def test_a_shared_expert(self) -> None:
        members = PUBLISHED["granite_3_1_1b_a400m"] | {
            "model_type": "granitemoeshared",
            "architectures": ["GraniteMoeSharedForCausalLM"],
        }
        for size in (1024, 0):
            experts = _read(**members, shared_intermediate_size=size).experts
            self.assertEqual(experts, Experts(32, 8, 512, "topk_softmax", shared_size=size))

    @parameterized.parameters(
        ({"decoder_sparse_step": 1, "mlp_only_layers": []}, ()),
        ({"mlp_only_layers": [47, 0]}, (0, 47)),
        ({"decoder_sparse_step": 3}, tuple(n for n in range(48) if n % 3 != 2)),
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": [1, 3]},
            (*range(5), *range(6, 48, 2)),
        ),
    )
    def test_layers_without_experts(self, members: dict[str, Any], dense: tuple[int, ...]) -> None:
        config = _read(**PUBLISHED["qwen3_30b_a3b"] | members)
        self.assertEqual(config.dense_layers, dense)
        self.assertEqual([n for n in range(48) if config.experts_of(n) is None], list(dense))
        if dense:
            model = packing.outline(config, "bfloat16", 1, tied=False)
            with self.assertRaisesRegex(ValueError, "stacked: expected False or None, because on"):
                ModelForward(model, stacked=True)

    def test_ropes_of_gemma_3(self) -> None:
        local, everywhere = (kind.rope for kind in _read(**PUBLISHED["gemma_3_1b"]).kinds)
        self.assertAlmostEqual(local.frequencies[1], 10000 ** (-2 / 256))
        self.assertAlmostEqual(everywhere.frequencies[1], 1e6 ** (-2 / 256))

    @parameterized.parameters(("mixtral_8x7b", 1e6, 128), ("gpt_oss_20b", 150000.0, 64))
    def test_absent_base(self, name: str, base: float, size: int) -> None:
        """What transformers' classes take for it."""
        members = {k: v for k, v in PUBLISHED[name].items() if k != "rope_theta"}
        rope = _read(**members).layers[0].rope
        self.assertAlmostEqual(rope.frequencies[1], base ** (-2 / size))

    def test_layers_without_rope(self) -> None:
        config = _read(**PUBLISHED["smollm3_3b"])
        turning = [bool(kind.rope.frequencies) for kind in config.layers]
        self.assertEqual(turning, [True, True, True, False] * 9)

    def test_long_contexts(self) -> None:
        rope = _read(**PUBLISHED["phi_3_5_mini"]).layers[0].rope
        # (1 + ln 32 / ln 4096)**0.5, which is 17 / 12.
        self.assertAlmostEqual(rope.concentration, (17 / 12) ** 0.5)
        self.assertAlmostEqual(rope.head_frequencies(96, capacity=4096)[0], 1.0)
        self.assertAlmostEqual(rope.head_frequencies(96, capacity=4097)[0], 0.5)


class RefusedTest(parameterized.TestCase):
    @parameterized.parameters(
        ("qwen2_5_7b", "use_mrope", True),
        ("qwen2_5_7b", "dual_chunk_attention_config", {"chunk_size": 1}),
        ("qwen2_5_7b", "sliding_window", 0, {"use_sliding_window": True}),
        ("qwen2_5_7b", "layer_types", ["sliding_attention"] * 28),
        ("qwen3_8b", "layer_types", ["full_attention"]),
        ("qwen3_8b", "num_experts", 128),
        ("qwen3_8b", "per_layer_config", {"3": {"rms_norm_eps": 0.1}}),
        ("qwen3_30b_a3b", "decoder_sparse_step", 0),
        ("qwen3_30b_a3b", "mlp_only_layers", [48]),
        ("qwen3_30b_a3b", "mlp_only_layers", list(range(48))),
        ("mixtral_8x7b", "mlp_only_layers", [0]),
        ("qwen3_30b_a3b", "num_experts_per_tok", 129),
        ("gpt_oss_20b", "swiglu_limit", 5.0),
        ("gpt_oss_20b", "experts_per_token", 5),
        ("mixtral_8x7b", "num_local_experts", 0),
        ("mixtral_8x7b", "num_shared_experts", 2),
        ("mixtral_8x7b", "num_shared_experts", 1),
        ("qwen3_30b_a3b", "n_shared_experts", 1),
        ("qwen3_8b", "moe_layer_freq", 1),
        ("llama_3_1_8b", "residual_clip", 1.0),
        ("granite_3_1_1b_a400m", "shared_intermediate_size", 1024),
        ("gemma_2_9b", "sliding_window_size", 2048),
        ("gemma_2_9b", "hidden_activation", "relu"),
        ("gemma_2_9b", "query_pre_attn_scalar", 0),
        ("gemma_3_1b", "use_bidirectional_attention", True),
        ("gemma_3_1b", "attn_logit_softcapping", 50.0),
        ("gemma_3_1b", "sliding_window_pattern", "5:1"),
        ("gemma_3_1b", "_sliding_window_pattern", 5),
        ("phi_4_mini", "lm_head_bias", True),
        ("smollm3_3b", "no_rope_layers", [1, 0]),
        ("smollm3_3b", "mlp_bias", True),
        ("granite_3_3_8b", "residual_multiplier", 0.0),
        ("granite_3_3_8b", "position_embedding_type", "nope"),
        ("glm_4_9b_0414", "partial_rotary_factor", 1.5),
        ("llama_3_1_8b", "partial_rotary_factor", 0.5),
        ("llama_3_1_8b", "embedding_multiplier", 12.0),
        ("mistral_nemo", "attention_bias", True),
    )
    def test_keys(
        self, name: str, key: str, value: Any, others: dict[str, Any] | None = None
    ) -> None:
        with self.assertRaisesRegex(ModelError, f"^config.json: {key}: expected .*, got "):
            _read(**PUBLISHED[name] | {key: value} | (others or {}))

    def test_gpt_oss_without_yarn(self) -> None:
        members = {k: v for k, v in PUBLISHED["gpt_oss_20b"].items() if k != "rope_scaling"}
        with self.assertRaisesRegex(ModelError, "rope_scaling: expected an object, but the key is"):
            _read(**members)

    @parameterized.parameters("embedding_scalar", "ffn_scale", "head_multiplier", "q_factor_rope")
    def test_a_factor_of_one_is_off(self, key: str) -> None:
        config = _read(**PUBLISHED["llama_3_1_8b"] | {key: 1})
        self.assertEqual(config, _read(**PUBLISHED["llama_3_1_8b"]))

    @parameterized.parameters(
        "olmo2", "olmoe", "exaone4", "cohere2", "llama4", "deepseek_v3", "qwen3_next"
    )
    def test_families(self, name: str) -> None:
        with self.assertRaises(ModelError) as caught:
            _read(**PUBLISHED["llama_3_1_8b"] | {"model_type": name})
        self.assertRegex(str(caught.exception), f"^config.json: model_type: expected .*{name}")
        self.assertEndsWith(str(caught.exception), REFUSED[name])

    def test_none_is_both(self) -> None:
        self.assertEmpty(set(REFUSED) & set(JSON_FAMILIES))


if __name__ == "__main__":
    absltest.main()
