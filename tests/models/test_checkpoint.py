"""Opening a model whatever its format, and the tokenizer of a folder."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import hypothesis
import numpy as np
import pytest
import tokenizers
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from jax_tkg.models import decode, gguf, gguf_tokenizer, json_tokenizer
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.errors import ModelError
from tests.models import files, tiny

END = tiny.VOCABULARY.index(tiny.END)


def _write_tokenizer(folder: pathlib.Path, begins: bool = False) -> tokenizers.Tokenizer:
    """The tiny vocabulary as a `tokenizer.json`, with the files that transformers puts beside."""
    vocabulary = {token: index for index, token in enumerate(tiny.VOCABULARY)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(tiny.MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tiny.END, tiny.USER, tiny.ASSISTANT])
    backend.add_tokens([tiny.WHOLE])
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tiny.USER} $A", special_tokens=[(tiny.USER, vocabulary[tiny.USER])]
        )
    backend.save(str(folder / "tokenizer.json"))
    described = {"eos_token": {"content": tiny.END}, "chat_template": tiny.CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return backend


class JsonTokenizerTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)

    @hypothesis.settings(max_examples=100)
    @hypothesis.given(st.text())
    def test_equals_that_of_a_gguf_file(self, text: str) -> None:
        if not (self.folder / "model.gguf").exists():
            tiny.write_tiny(self.folder / "model.gguf")
            _write_tokenizer(self.folder)
            self.from_gguf = gguf_tokenizer.read_tokenizer(
                gguf.GgufFile(self.folder / "model.gguf")
            )
            self.from_json = json_tokenizer.read_tokenizer(self.folder)
        ids = self.from_json.encode(text)
        self.assertEqual(ids, self.from_gguf.encode(text))
        self.assertEqual(self.from_json.decode(ids), self.from_gguf.decode(ids))
        self.assertEqual(self.from_json.stop_tokens, (END,))

    def test_begin_token(self) -> None:
        expected = _write_tokenizer(self.folder, begins=True).encode("the").ids
        self.assertEqual(json_tokenizer.read_tokenizer(self.folder).encode("the"), expected)

    def test_generation_config_says_where_to_stop(self) -> None:
        _write_tokenizer(self.folder)
        (self.folder / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
        self.assertEqual(json_tokenizer.read_tokenizer(self.folder).stop_tokens, (3, 5))

    @parameterized.parameters("field", "list", "file")
    def test_chat_template(self, where: str) -> None:
        _write_tokenizer(self.folder)
        described: dict[str, Any] = {"eos_token": tiny.END, "chat_template": tiny.CHAT_TEMPLATE}
        if where == "list":
            named = [("tools", "no"), ("default", tiny.CHAT_TEMPLATE)]
            described["chat_template"] = [{"name": n, "template": t} for n, t in named]
        if where == "file":
            described["chat_template"] = "no"
            (self.folder / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
        (self.folder / "tokenizer_config.json").write_text(json.dumps(described))
        template = json_tokenizer.read_tokenizer(self.folder).chat_template
        assert template is not None
        messages = [{"role": "user", "content": "Hi"}]
        self.assertEqual(template.prompt(messages), "<|user|>Hi<|assistant|>")

    def test_other_kinds(self) -> None:
        backend = _write_tokenizer(self.folder)
        backend.decoder = decoders.WordPiece()
        backend.save(str(self.folder / "tokenizer.json"))
        with self.assertRaisesRegex(ModelError, "decoder: expected ByteLevel .*, got WordPiece"):
            json_tokenizer.read_tokenizer(self.folder)

    @parameterized.parameters(
        ("", "not a readable JSON file"),
        ("{}", "not a readable tokenizer"),
        ("[]", "expected a JSON object, got list"),
    )
    def test_damaged(self, content: str, message: str) -> None:
        _write_tokenizer(self.folder)
        (self.folder / "tokenizer.json").write_text(content)
        with self.assertRaisesRegex(ModelError, f"tokenizer.json: {message}"):
            json_tokenizer.read_tokenizer(self.folder)

    def test_absent(self) -> None:
        with self.assertRaisesRegex(ModelError, "tokenizer.json: No such file"):
            json_tokenizer.read_tokenizer(self.folder)

    def test_nowhere_to_stop(self) -> None:
        _write_tokenizer(self.folder)
        (self.folder / "tokenizer_config.json").write_text("{}")
        with self.assertRaisesRegex(ModelError, "tokenizer_config.json: eos_token is missing"):
            json_tokenizer.read_tokenizer(self.folder)


class OpenTest(absltest.TestCase):
    def test_gguf_file(self) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path)
        checkpoint = open_checkpoint(path)
        self.assertEqual(checkpoint.config.hidden_size, 96)
        self.assertEqual(checkpoint.tokenizer.stop_tokens, (END,))
        self.assertEqual(checkpoint.load("bfloat16", 2).tensor_parallel, 2)

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
        _write_tokenizer(folder)
        (folder / "generation_config.json").unlink()
        checkpoint = open_checkpoint(folder)
        ids = checkpoint.tokenizer.encode("the and")
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        actual = decode.Decoder(checkpoint.load("float32"), 64).logits(ids)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())

    def test_absent(self) -> None:
        with self.assertRaisesRegex(ModelError, "nowhere: no such file"):
            open_checkpoint("nowhere")


if __name__ == "__main__":
    absltest.main()
