"""Tokenizers of model families from both kinds of files.

The judges are the tokenizers package in each family's own configuration, and transformers.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf, gguf_tokenizer, json_tokenizer
from jax_tkg.models.tokenizer import Tokenizer
from tests.models import family_templates, tokenizer_families

NAMES = tuple(tokenizer_families.FAMILIES)
STOPS = {
    "llama3": ("<|eot_id|>",),
    "smollm3": ("<|endoftext|>", "<|im_end|>"),
    "qwen2": ("<|endoftext|>", "<|im_end|>"),
    "nemo": ("</s>",),
    "granite": ("<|end_of_text|>",),
    "smollm": ("<|endoftext|>", "<|im_end|>"),
    "phi4": ("<|endoftext|>", "<|im_end|>"),
    "phi4_mini": ("<|endoftext|>", "<|end|>"),
    "glm4": ("<|endoftext|>",),
    "llama2": ("</s>",),
    "mistral_v3": ("</s>",),
    "phi3": ("</s>", "<|endoftext|>", "<|end|>"),
    "gemma": ("<eos>", "<end_of_turn>"),
}
"""Texts of the tokens that end generation from GGUF files."""


@functools.cache
def _read(name: str) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of the folder and of the GGUF file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        path = tokenizer_families.write(name, folder)
        return (
            json_tokenizer.read_tokenizer(folder),
            gguf_tokenizer.read_tokenizer(gguf.GgufFile(path)),
        )


@functools.cache
def _transformers(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer_families.write(name, pathlib.Path(temporary))
        return transformers.AutoTokenizer.from_pretrained(temporary)


def _texts(name: str) -> list[str]:
    return tokenizer_families.texts(tokenizer_families.family(name).specials, 200)


def _streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.step, ids)) + stream.finish()


class FamilyTest(parameterized.TestCase):
    def _check(self, name: str, text: str, ids: list[int], decoded: str) -> None:
        for kind, tokenizer in zip(("folder", "gguf"), _read(name), strict=True):
            message = f"{kind}: {text!r}"
            self.assertEqual(tokenizer.encode(text), ids, message)
            self.assertEqual(tokenizer.decode(ids), decoded, message)
            self.assertEqual(_streamed(tokenizer, ids), decoded, message)

    @parameterized.parameters(*NAMES)
    def test_equals_the_package(self, name: str) -> None:
        backend = tokenizer_families.family(name).backend
        begin = backend.encode("").ids
        for text in _texts(name):
            ids = backend.encode(text, add_special_tokens=False).ids
            ids = ids if ids[: len(begin)] == begin else begin + ids
            self._check(name, text, ids, backend.decode(ids, skip_special_tokens=True))

    @parameterized.parameters(*NAMES)
    def test_any_tokens(self, name: str) -> None:
        """What tokens mean does not depend on the kind of file, nor on when they come."""
        from_folder, from_gguf = _read(name)
        size = tokenizer_families.family(name).backend.get_vocab_size()
        draw = np.random.default_rng(5)
        for _ in range(100):
            ids = draw.integers(0, size, draw.integers(1, 12)).tolist()
            decoded = from_folder.decode(ids)
            self.assertEqual(from_gguf.decode(ids), decoded, ids)
            self.assertEqual(_streamed(from_gguf, ids), decoded, ids)
        self.assertEqual(from_gguf.decode([size, size + 2]), "")

    @parameterized.parameters(*NAMES)
    def test_stop_tokens(self, name: str) -> None:
        from_folder, from_gguf = _read(name)
        family = tokenizer_families.family(name)
        ends = sorted(family.backend.token_to_id(text) for text in STOPS[name])
        self.assertEqual(list(from_gguf.stop_tokens), ends)
        own = family.backend.token_to_id(family.described["eos_token"])
        self.assertEqual(from_folder.stop_tokens, (own,))

    @parameterized.parameters(*NAMES)
    @pytest.mark.oracle
    def test_equals_transformers(self, name: str) -> None:
        judge = _transformers(name)
        begin = judge.encode("", add_special_tokens=True)
        for text in _texts(name):
            ids = judge.encode(text, add_special_tokens=False)
            ids = ids if ids[: len(begin)] == begin else begin + ids
            decoded = judge.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            self._check(name, text, ids, decoded)

    @parameterized.parameters(*NAMES)
    @pytest.mark.oracle
    def test_chat_equals_transformers(self, name: str) -> None:
        judge = _transformers(name)
        pairs = zip(_read(name), family_templates.CONVERSATIONS, strict=True)
        for tokenizer, messages in pairs:
            text = judge.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = judge.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
            assert tokenizer.chat_template is not None
            self.assertEqual(tokenizer.chat_template.prompt(messages), text)
            self.assertEqual(tokenizer.encode(text), ids)

    @pytest.mark.oracle
    def test_merges_equal_transformers(self) -> None:
        """The families' merges are those that transformers makes of a SentencePiece model."""
        base = pytest.importorskip("transformers.tokenization_utils_base")
        ids = {
            piece: index
            for index, piece in enumerate(("▁", "t", "h", "e", "▁t", "he", "the", "▁the", "▁▁"))
        }
        scores = {piece: -float(index) for piece, index in ids.items()}
        self.assertEqual(tokenizer_families.merges_of(ids), base.generate_merges(ids, scores))


if __name__ == "__main__":
    absltest.main()
