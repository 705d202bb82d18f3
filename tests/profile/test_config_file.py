"""Sizes and options that the profile takes from a config.json."""

import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest

from jax_tkg.models.errors import ModelError
from jax_tkg.profile import config_file, model_shapes
from jax_tkg.profile.model_shapes import MODELS

GEMMA3_27B = {
    "model_type": "gemma3_text",
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_hidden_layers": 62,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 168,
    "sliding_window": 1024,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 1000000.0,
}


class ConfigFileTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "config.json"

    def _read(self, config, path=None):
        self.path.write_text(json.dumps(config))
        return config_file.read_model(str(path or self.path))

    def test_same_as_the_named_model(self):
        found = self._read(GEMMA3_27B)
        named = MODELS["gemma3_27b"]
        self.assertEqual(
            dataclasses.replace(found, options=()), dataclasses.replace(named, options=())
        )
        self.assertEqual(dict(found.options), {"attention_softcap": 0.0, **dict(named.options)})
        self.assertEqual(self._read(GEMMA3_27B, self.path.parent), found)

    def test_experts(self):
        mixtral = {
            **{key: GEMMA3_27B[key] for key in GEMMA3_27B if "window" not in key},
            **{"model_type": "mixtral", "num_local_experts": 8, "hidden_activation": None},
        }
        del mixtral["query_pre_attn_scalar"]
        found = self._read({**mixtral, "num_experts_per_tok": 3})
        self.assertEqual((found.experts, found.intermediate), (8, mixtral["intermediate_size"]))
        self.assertEqual(dict(found.options)["experts_per_token"], 3)
        self.assertEqual(found.operands, ("W_routers",))

    def test_a_shared_expert(self):
        sizes = ("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size")
        granite = {key: GEMMA3_27B[key] for key in (*sizes, "rms_norm_eps")}
        granite |= {"model_type": "granitemoeshared", "num_local_experts": 8, "hidden_size": 512}
        granite |= {"intermediate_size": 64, "max_position_embeddings": 4096}
        model = self._read({**granite, "shared_intermediate_size": 96})
        self.assertEqual((model.experts, model.shared), (8, 96))
        case = model_shapes.layer_case(
            model, model.kinds()[0], tensor_parallel=2, context=64, B=1, S=1
        )
        row = next(row for row in case.rows() if row.name == "W_shared_downs")
        self.assertEqual(case.array_shape(row), (48, 512))
        self.assertGreater(case.weight_bytes(), 0)

    def test_experts_in_some_layers(self):
        qwen = {key: GEMMA3_27B[key] for key in GEMMA3_27B if "query" not in key}
        qwen |= {"model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 64}
        with self.assertRaisesRegex(ValueError, r"--config: .*, got the dense layers \[1, 60\]"):
            self._read({**qwen, "mlp_only_layers": [60, 1], "hidden_activation": None})

    def test_plain_model(self):
        llama = {
            "model_type": "qwen2",
            **{key: GEMMA3_27B[key] for key in ("vocab_size", "max_position_embeddings")},
            **{"hidden_size": 512, "intermediate_size": 640, "num_hidden_layers": 3},
            **{"num_attention_heads": 8, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
        }
        found = self._read(llama)
        self.assertEqual((found.layers, found.head_size, found.window), (3, 64, None))
        self.assertEqual(found.operands, ("bias_qkvs",))

    def test_refused_family(self):
        with self.assertRaisesRegex(ModelError, "config.json: model_type: .*'rwkv'"):
            self._read({**GEMMA3_27B, "model_type": "rwkv"})


if __name__ == "__main__":
    absltest.main()
