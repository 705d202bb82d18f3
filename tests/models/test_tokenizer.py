"""Tokenizers from GGUF files, judged by the `tokenizers` package's own decoder and by Unicode."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from typing import Any
from unittest import mock

import hypothesis
import tokenizers
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from tokenizers import models

from jax_tkg.models import gguf, gguf_tokenizer
from jax_tkg.models.errors import ModelError
from jax_tkg.models.tokenizer import Tokenizer
from tests.models import files, tiny

IDS = st.lists(st.integers(0, len(tiny.VOCABULARY) - 1), max_size=40)


def _id(token: str) -> int:
    return tiny.VOCABULARY.index(token)


@functools.cache
def _tokenizer(**metadata: Any) -> Tokenizer:
    return _read(**metadata)


def _read(**metadata: Any) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, **metadata)
        return gguf_tokenizer.read_tokenizer(gguf.GgufFile(path))


class EncodeTest(parameterized.TestCase):
    def test_merges_apply(self) -> None:
        self.assertEqual(
            _tokenizer().encode("the and in"),
            [_id("t"), _id("he"), _id("Ġ"), _id("and"), _id("Ġ"), _id("in")],
        )
        self.assertEqual(_tokenizer().encode(" the"), [_id("Ġthe")])

    @parameterized.parameters(("gpt-2", ["12"]), ("smollm", ["1", "2"]), ("llama-bpe", ["12"]))
    def test_pre_tokenizer_splits_digits(self, name: str, pieces: list[str]) -> None:
        tokenizer = _tokenizer(tokenizer__ggml__pre=name)
        self.assertEqual(tokenizer.encode("12"), [_id(piece) for piece in pieces])

    @parameterized.parameters(("gpt-2", ["Ġ", "Ċ"]), ("llama-bpe", ["Ġ", "Ċ"]))
    def test_bytes(self, name: str, pieces: list[str]) -> None:
        tokenizer = _tokenizer(tokenizer__ggml__pre=name)
        self.assertEqual(tokenizer.encode(" \n"), [_id(piece) for piece in pieces])

    def test_damage_that_one_text_shows(self) -> None:
        damaged = tokenizers.Tokenizer(models.BPE({"a": 0}, [], unk_token="<none>"))
        tokenizer = Tokenizer(damaged, origin="tokenizer.json")
        self.assertEqual(tokenizer.encode("a"), [0])
        message = "^tokenizer.json: expected the tokens of a text, got the error '.*<none>.*'$"
        with self.assertRaisesRegex(ModelError, message):
            tokenizer.encode("b")

    def test_panic(self) -> None:
        """Of Rust in the package; what else ends Python passes."""
        panic = type("PanicException", (BaseException,), {})
        backend = mock.create_autospec(tokenizers.Tokenizer, instance=True)
        for raised, expected in (
            (panic("out of range"), ModelError),
            (KeyboardInterrupt(), KeyboardInterrupt),
            (TypeError("no text"), TypeError),
        ):
            backend.encode.side_effect = raised
            with self.assertRaises(expected):
                Tokenizer(backend).encode("a")

    def test_special_tokens_are_whole(self) -> None:
        self.assertEqual(
            _tokenizer().encode(f"{tiny.USER}a{tiny.WHOLE}"),
            [_id(tiny.USER), _id("a"), _id(tiny.WHOLE)],
        )

    @parameterized.named_parameters(
        ("said", {"tokenizer__ggml__add_bos_token": True}, True),
        ("denied", {"tokenizer__ggml__add_bos_token": False}, False),
        ("silent", {}, False),
        ("silent_llama3", {"tokenizer__ggml__pre": "llama-bpe"}, True),
    )
    def test_begin_token(self, metadata: dict[str, Any], added: bool) -> None:
        begin = _id(tiny.USER)
        tokenizer = _tokenizer(tokenizer__ggml__bos_token_id=begin, **metadata)
        self.assertEqual(tokenizer.encode("a"), [begin] * added + [_id("a")])
        # A template that writes it out gets it once.
        self.assertEqual(tokenizer.encode(f"{tiny.USER}a"), [begin, _id("a")])

    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(st.text())
    def test_round_trip(self, text: str) -> None:
        hypothesis.assume("<" not in text)
        tokenizer = _tokenizer()
        self.assertEqual(tokenizer.decode(tokenizer.encode(text)), text)


class DecodeTest(parameterized.TestCase):
    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(IDS)
    def test_equals_the_package(self, ids: list[int]) -> None:
        tokenizer = _tokenizer()
        expected = tokenizer._backend.decode(ids, skip_special_tokens=True)
        self.assertEqual(tokenizer.decode(ids), expected)

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(IDS)
    def test_stream_says_the_same(self, ids: list[int]) -> None:
        tokenizer = _tokenizer()
        stream = tokenizer.stream()
        pieces = [stream.step(index) for index in ids]
        self.assertEqual("".join(pieces) + stream.finish(), tokenizer.decode(ids))

    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(st.text(st.characters(min_codepoint=128, exclude_categories=["Cs"])))
    def test_stream_never_splits_a_character(self, text: str) -> None:
        tokenizer = _tokenizer()
        stream = tokenizer.stream()
        said = ""
        for index in tokenizer.encode(text):
            said += stream.step(index)
            self.assertStartsWith(text, said)
        self.assertEqual(said + stream.finish(), text)

    def test_unfinished_character(self) -> None:
        stream = _tokenizer().stream()
        first, second, _ = _tokenizer().encode("€")
        self.assertEqual(stream.step(first) + stream.step(second), "")
        self.assertEqual(stream.finish(), "\ufffd")

    def test_unknown_id(self) -> None:
        """Models may have more ids than their tokenizers, and draw them."""
        tokenizer = _tokenizer()
        text = [*tokenizer.encode("a"), 100000, *tokenizer.encode("b")]
        self.assertEqual(tokenizer.decode(text), "ab")
        self.assertEqual(tokenizer.stream().step(100000), "")
        with self.assertRaisesRegex(ValueError, "ids: expected token ids from 0 on, got -1"):
            tokenizer.decode([-1])

    def test_repeated_tokens(self) -> None:
        """An id whose token another id has too can still be drawn."""
        tokens = list(tiny.VOCABULARY)
        tokens[_id("and")], tokens[_id(tiny.ASSISTANT)] = "Ġthe", tiny.USER
        tokenizer = _read(tokenizer__ggml__tokens=tokens, tokenizer__ggml__merges=["h e"])
        self.assertEqual(tokenizer.decode([_id("and")]), " the")
        self.assertEqual(tokenizer.decode([_id("Ġthe")]), " the")
        self.assertEqual(tokenizer.decode([_id(tiny.USER), _id(tiny.ASSISTANT)]), "")


class MetadataTest(parameterized.TestCase):
    def test_stop_tokens(self) -> None:
        self.assertEqual(_tokenizer().stop_tokens, (_id(tiny.END),))
        both = _tokenizer(tokenizer__ggml__eot_token_id=_id(tiny.USER))
        self.assertEqual(both.stop_tokens, (_id(tiny.END), _id(tiny.USER)))

    @parameterized.named_parameters(
        ("turn", "<|im_end|>", "x"), ("text", "<|endoftext|>", "x"), ("no_eos", "</s>", None)
    )
    def test_ends_by_text(self, text: str, eos: str | None) -> None:
        """As llama.cpp finds them, also where the file says that they are ordinary tokens."""
        tokens, ordinary = list(tiny.VOCABULARY), list(map(int, tiny.TOKEN_TYPES))
        tokens[_id(tiny.END)] = text
        ordinary[_id(tiny.END)] = 1
        tokenizer = _read(
            tokenizer__ggml__tokens=tokens,
            tokenizer__ggml__token_type=ordinary,
            tokenizer__ggml__eos_token_id=None if eos is None else _id(eos),
        )
        expected = [_id(tiny.END)] if eos is None else sorted((_id(eos), _id(tiny.END)))
        self.assertEqual(list(tokenizer.stop_tokens), expected)
        self.assertEqual(tokenizer.encode(text), [_id(tiny.END)])
        self.assertEqual(tokenizer.decode([_id(tiny.END)]), "")

    def test_an_end_that_is_none(self) -> None:
        """Where turns end with <|return|> and <|call|>, <|end|> ends a message only."""
        tokens = list(tiny.VOCABULARY)
        tokens[_id(tiny.USER)], tokens[_id(tiny.ASSISTANT)] = "<|return|>", "<|call|>"
        tokenizer = _read(tokenizer__ggml__tokens=tokens, tokenizer__ggml__eos_token_id=_id("x"))
        self.assertEqual(tokenizer.stop_tokens, (_id("x"), _id(tiny.USER), _id(tiny.ASSISTANT)))

    def test_special_tokens_in_templates(self) -> None:
        source = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}"
        tokenizer = _read(
            tokenizer__chat_template=source, tokenizer__ggml__padding_token_id=_id("x")
        )
        assert tokenizer.chat_template is not None
        self.assertEqual(tokenizer.chat_template.prompt([]), f"|{tiny.END}|x|False")

    def test_chat_template(self) -> None:
        template = _tokenizer().chat_template
        assert template is not None
        messages = [{"role": "user", "content": "Hello"}]
        self.assertEqual(template.prompt(messages), "<|user|>Hello<|assistant|>")
        self.assertIsNone(_tokenizer(tokenizer__chat_template=None).chat_template)

    @parameterized.named_parameters(
        ("pre", {"pre": "mpt"}, "tokenizer.ggml.pre: expected one of gpt-2, smollm, .*, got 'mpt'"),
        ("no_pre", {"pre": None}, "tokenizer.ggml.pre: expected a string, but the key is"),
        ("model", {"model": "t5"}, "expected 'gpt2', byte-level BPE, or 'llama', .*, got 't5'"),
        (
            "begin",
            {"add_bos_token": True},
            "bos_token_id: expected the id of the token that",
        ),
        (
            "scores",
            {"model": "llama"},
            "expected a token for every byte, got none for <0x00>",
        ),
        ("no_tokens", {"tokens": None}, "tokenizer.ggml.tokens: expected a list of str"),
        ("no_merges", {"merges": None}, "tokenizer.ggml.merges: expected a list of str"),
        ("merges", {"merges": ["foo bar"]}, "ggml.merges: expected pairs .*Token `foo` out of voc"),
        ("half_a_merge", {"merges": ["foo"]}, "tokenizer.ggml.merges: expected pairs of"),
        ("numbers", {"merges": [1, 2]}, "tokenizer.ggml.merges: expected a list of str"),
        ("kinds", {"token_type": [7] * 267}, "token_type: expected a list of integers from 0 to 6"),
        ("types", {"token_type": [1, 2]}, "token_type: expected 267 entries, .*, got 2"),
        (
            "no_end",
            {"eos_token_id": None, "tokens": [t.replace("end", "e") for t in tiny.VOCABULARY]},
            "tokenizer.ggml.eos_token_id: expected the id of a token that ends a text, but the key",
        ),
        (
            "end",
            {"eos_token_id": 5000},
            "eos_token_id: expected an integer from 0 to 266, got 5000",
        ),
        ("kind", {"eos_token_id": "<|end|>"}, "eos_token_id: expected an integer from 0"),
    )
    def test_errors(self, changes: dict[str, Any], message: str) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path, **{f"tokenizer__ggml__{k}": v for k, v in changes.items()})
        with self.assertRaisesRegex(ModelError, message) as caught:
            gguf_tokenizer.read_tokenizer(gguf.GgufFile(path))
        self.assertStartsWith(str(caught.exception), f"{path}: ")
        self.assertLen(str(caught.exception).splitlines(), 1)


if __name__ == "__main__":
    absltest.main()
