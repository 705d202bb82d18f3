"""Opening a model whatever its format."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import decode
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.errors import ModelError
from jax_tkg.models.packing import PackedModel
from tests.models import files, tiny, tiny_folder, tokenizer_files

END = tiny.VOCABULARY.index(tiny.END)


def _shapes(model: PackedModel) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), model.parameters)


class OpenTest(parameterized.TestCase):
    def test_gguf_file(self) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path)
        checkpoint = open_checkpoint(path)
        self.assertEqual(checkpoint.config.hidden_size, 96)
        self.assertEqual(checkpoint.tokenizer.stop_tokens, (END,))
        self.assertEqual(checkpoint.load("bfloat16", 2).tensor_parallel, 2)

    @parameterized.product(
        folder=(False, True), tied=(True, False), ranks=(1, 2), dtype=("float32", "bfloat16")
    )
    def test_outline_has_the_shapes_of_the_model(
        self, folder: bool, tied: bool, ranks: int, dtype: str
    ) -> None:
        path, shape = files.folder(self), tiny.Tiny(tied=tied)
        if folder:
            tiny_folder.write(path, shape)
            tokenizer_files.write(path)
        else:
            tiny.write_tiny(path / "model.gguf", shape)
        checkpoint = open_checkpoint(path)
        outlined, loaded = checkpoint.outline(dtype, ranks), checkpoint.load(dtype, ranks)
        self.assertEqual(_shapes(outlined), _shapes(loaded))
        self.assertEqual(outlined.eps, loaded.eps)

    @pytest.mark.oracle
    def test_folder(self) -> None:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        folder = files.folder(self)
        config = transformers.LlamaConfig(
            vocab_size=len(tiny.VOCABULARY),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        model = transformers.LlamaForCausalLM(config).eval()
        model.save_pretrained(folder)
        tokenizer_files.write(folder)
        (folder / "generation_config.json").unlink()
        checkpoint = open_checkpoint(folder)
        ids = checkpoint.tokenizer.encode("the and")
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        actual = decode.Decoder(checkpoint.load("float32"), 64).logits(ids)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())


class PathTest(parameterized.TestCase):
    """What a user may name, and what is said of the rest."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)

    def assert_refused(self, name: str, message: str) -> None:
        with self.assertRaisesRegex(ModelError, message):
            open_checkpoint(self.folder / name)

    def test_home(self) -> None:
        self.enter_context(mock.patch.dict(os.environ, {"HOME": str(self.folder)}))
        tiny.write_tiny(self.folder / "model.gguf")
        self.assertEqual(open_checkpoint("~/model.gguf").config.hidden_size, 96)
        self.assertEqual(open_checkpoint("~").config.hidden_size, 96)

    def test_folder_with_a_gguf_file(self) -> None:
        tiny.write_tiny(self.folder / "model.gguf")
        (self.folder / "README.md").touch()
        self.assertEqual(open_checkpoint(self.folder).config.hidden_size, 96)
        tiny.write_tiny(self.folder / "other.gguf")
        self.assert_refused("", "expected one model, got 2 GGUF files: model.gguf, other.gguf")

    def test_folder_with_a_gguf_file_in_parts(self) -> None:
        tensors = list(tiny.Tiny().tensors().items())
        for number in range(2):
            fields = {"split.no": number, "split.count": 2}
            tiny.write(
                self.folder / f"model-{number + 1:05}-of-00002.gguf",
                dict(tensors[number::2]),
                (tiny.Tiny().metadata() if not number else {}) | fields,
            )
        checkpoint = open_checkpoint(self.folder)
        self.assertEqual(checkpoint.load("float32").config.num_layers, 2)

    def test_folder_with_both(self) -> None:
        tiny.write_tiny(self.folder / "model.gguf", llama__context_length=77)
        tiny_folder.write(self.folder)
        tokenizer_files.write(self.folder)
        self.assertEqual(open_checkpoint(self.folder).config.context_length, 512)

    def test_folder_with_a_gguf_file_beside_its_configuration(self) -> None:
        """As repositories of converted models have them."""
        tiny_folder.write(self.folder)
        (self.folder / "model.safetensors").unlink()
        tiny.write_tiny(self.folder / "model.gguf", llama__context_length=77)
        self.assertEqual(open_checkpoint(self.folder).config.context_length, 77)

    def test_folder_without_a_model(self) -> None:
        self.assert_refused("", "expected a GGUF file, or a folder .*, got a folder without config")

    @parameterized.parameters(
        "model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"
    )
    def test_one_file_of_a_folder(self, name: str) -> None:
        (self.folder / name).touch()
        self.assert_refused(name, f"expected a GGUF file, or .*; the folder is {self.folder}$")

    @parameterized.parameters("nowhere", "HuggingFaceTB/SmolLM2-135M", "~nobody/model", "a\0b")
    def test_absent(self, name: str) -> None:
        message = "expected a GGUF file, or a folder with config.json, .*, got no such file or fold"
        with self.assertRaisesRegex(ModelError, message):
            open_checkpoint(name)

    def test_link_to_nothing(self) -> None:
        (self.folder / "model.gguf").symlink_to("nothing")
        self.assert_refused("model.gguf", "model.gguf: expected a GGUF file, got no such file")


if __name__ == "__main__":
    absltest.main()
