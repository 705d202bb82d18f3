"""Folders that transformers itself saved, judged by transformers."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file, save_file

from jax_tkg.models import decode, safetensors
from jax_tkg.models.errors import ModelError
from tests.models import devices, files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

TOKENS = np.random.default_rng(3).integers(0, 97, 19).tolist()
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _model(**changes: Any) -> Any:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "tie_word_embeddings": False,
        # Attention far from uniform, so that a wrong order of features shows.
        "initializer_range": 0.3,
    }
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


class LogitsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("untied", {}),
        ("tied", {"tie_word_embeddings": True}),
        ("llama3", {"rope_parameters": LLAMA3}),
        (
            "linear",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        ),
        ("head_size", {"head_dim": 32}),
        ("several_files", {}, {"max_shard_size": "200KB"}),
        ("two_ranks", {}, {}, 2),
    )
    def test_equal_transformers(
        self, changes: dict[str, Any], saving: dict[str, Any] | None = None, ranks: int = 1
    ) -> None:
        folder = files.folder(self)
        model = _model(**changes)
        model.save_pretrained(folder, **(saving or {}))
        self.assertEqual((folder / "model.safetensors").exists(), not saving)
        with torch.no_grad():
            expected = model(torch.tensor([TOKENS])).logits[0].numpy()
        loaded = safetensors.load(folder, "float32", ranks)
        actual = decode.Decoder(loaded, 64, devices.mesh(ranks)).logits(TOKENS)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())

    def test_bfloat16_tensors(self) -> None:
        folder = files.folder(self)
        _model().to(torch.bfloat16).save_pretrained(folder)
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            expected = model(torch.tensor([TOKENS])).logits[0].numpy()
        actual = decode.Decoder(safetensors.load(folder, "float32"), 64).logits(TOKENS)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())


class TiedTest(parameterized.TestCase):
    """Which head is used, whatever config.json says of it, is what transformers uses."""

    @parameterized.named_parameters(
        ("tied_though_another_is_stored", True, ()),
        ("tied_and_stored_once", True, ("lm_head.weight",)),
        ("tied_and_stored_as_head", True, ("model.embed_tokens.weight",)),
        ("untied_by_default", None, ()),
        ("untied", False, ()),
    )
    def test_equal_transformers(self, tied: bool | None, absent: tuple[str, ...]) -> None:
        folder = files.folder(self)
        _model().save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if name not in absent}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        _change_config(folder, tie_word_embeddings=tied)
        model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            expected = model(torch.tensor([TOKENS])).logits[0].numpy()
        actual = decode.Decoder(safetensors.load(folder, "float32"), 64).logits(TOKENS)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())


def _change_config(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


class ErrorsTest(parameterized.TestCase):
    """Each names the file and what is wrong, in one line."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        _model().save_pretrained(self.folder)

    def assert_error(self, *parts: str, ranks: int = 1) -> None:
        with self.assertRaises(ModelError) as caught:
            safetensors.load(self.folder, "float32", ranks)
        message = str(caught.exception)
        self.assertEqual(len(message.splitlines()), 1)
        for part in parts:
            self.assertIn(part, message)

    def change_config(self, **changes: Any) -> pathlib.Path:
        return _change_config(self.folder, **changes)

    @parameterized.named_parameters(
        ("architecture", {"model_type": "gpt2"}, "model_type: expected 'llama' or"),
        ("bias", {"mlp_bias": True}, "mlp_bias: expected False, got True"),
        (
            "activation",
            {"hidden_act": "relu"},
            "hidden_act: expected 'silu' or 'swish' or",
        ),
        ("missing", {"num_hidden_layers": None}, "num_hidden_layers: expected"),
    )
    def test_config(self, changes: dict[str, Any], part: str) -> None:
        path = self.change_config(**changes)
        self.assert_error(f"{path}: {part}")

    def test_config_is_no_json(self) -> None:
        (self.folder / "config.json").write_text("{")
        self.assert_error("config.json: expected JSON, got")

    def test_config_is_absent(self) -> None:
        (self.folder / "config.json").unlink()
        self.assert_error("config.json: expected a file, got no such file")

    def test_shape(self) -> None:
        self.change_config(intermediate_size=192)
        self.assert_error(
            "model.safetensors: tensor model.layers.0.mlp.gate_proj.weight: expected shape "
            "[192, 96], got [160, 96]"
        )

    def test_missing_tensor(self) -> None:
        self.change_config(num_hidden_layers=3)
        self.assert_error("tensor model.layers.2.self_attn.q_proj.weight: expected in a model of 3")

    def test_tensor_too_many(self) -> None:
        self.change_config(num_hidden_layers=1)
        self.assert_error(
            "tensor model.layers.1.", "expected no tensor of that name", "of 1 layers"
        )

    def test_ranks(self) -> None:
        self.assert_error("a multiple of the 2 KV heads, got 3", ranks=3)

    @parameterized.parameters(0, 7, 300, 100_000)
    def test_truncated(self, size: int) -> None:
        path = self.folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        self.assert_error(f"{path}: expected a readable safetensors file, got")

    def test_absent(self) -> None:
        (self.folder / "model.safetensors").unlink()
        self.assert_error("model.safetensors: expected a file, got no such file")

    def test_not_finite(self) -> None:
        model = _model()
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
        model.save_pretrained(self.folder)
        self.assert_error("tensor model.layers.1.mlp.up_proj.weight: expected finite numbers")


if __name__ == "__main__":
    absltest.main()
