"""SentencePiece vocabularies of GGUF files: what is read, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import gguf as gguf_package
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf, gguf_tokenizer
from jax_tkg.models.errors import ModelError
from jax_tkg.models.tokenizer import Tokenizer
from tests.models import files, tiny

Kind = gguf_package.TokenType
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PIECES = ("▁", "a", "b", "ab", "▁a", "abab")
TOKENS = ("<unk>", "<s>", "</s>", *BYTES, *PIECES)
FIRST_PIECE = TOKENS.index("▁")
TYPES = (Kind.UNKNOWN, *(Kind.CONTROL,) * 2, *(Kind.BYTE,) * 256, *(Kind.NORMAL,) * len(PIECES))
SCORES = (*(0.0,) * FIRST_PIECE, *(-float(rank) for rank in range(len(PIECES))))


class SentencePieceTest(parameterized.TestCase):
    def _file(self, architecture: str = "llama", **changes: Any) -> str:
        path = files.folder(self) / "model.gguf"
        metadata = {
            "model": "llama",
            "pre": "default",
            "tokens": list(TOKENS),
            "token_type": [int(kind) for kind in TYPES],
            "scores": list(SCORES),
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        }
        fields = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
        tiny.write(path, {}, fields, architecture)
        return str(path)

    def _read(self, **changes: Any) -> Tokenizer:
        return gguf_tokenizer.read_tokenizer(gguf.GgufFile(self._file(**changes)))

    def _pieces(self, text: str, **changes: Any) -> list[str]:
        return [TOKENS[index] for index in self._read(**changes).encode(text)]

    @parameterized.named_parameters(
        ("default", {}, ["<s>", "▁", "ab", "</s>", "▁", "ab"]),
        ("no_begin", {"add_bos_token": False}, ["▁", "ab", "</s>", "▁", "ab"]),
        ("no_prefix", {"add_space_prefix": False}, ["<s>", "ab", "</s>", "ab"]),
        ("ends_are_not_added", {"add_eos_token": True}, ["<s>", "▁", "ab", "</s>", "▁", "ab"]),
        ("no_types", {"token_type": None}, ["<s>", "▁", "ab", "</s>", "▁", "ab"]),
    )
    def test_what_texts_begin_with(self, changes: dict[str, Any], expected: list[str]) -> None:
        self.assertEqual(self._pieces("ab</s>ab", **changes), expected)

    def test_begin_token_is_not_doubled(self) -> None:
        self.assertEqual(self._pieces("<s>ab"), ["<s>", "▁", "ab"])

    def test_scores_decide(self) -> None:
        self.assertEqual(self._pieces("abab"), ["<s>", "▁", "abab"])
        others = [*SCORES[:FIRST_PIECE], *reversed(SCORES[FIRST_PIECE:])]
        self.assertEqual(self._pieces("abab", scores=others), ["<s>", "▁a", "b", "ab"])
        # Equal scores, which some converters write: the order of the file.
        equal = [-1000.0] * len(TOKENS)
        self.assertEqual(self._pieces("abab", scores=equal), ["<s>", "▁", "abab"])

    def test_bytes(self) -> None:
        expected = ["<s>", "▁", "<0xE2>", "<0x82>", "<0xAC>", "a"]
        self.assertEqual(self._pieces("€a"), expected)
        stream = self._read().stream()
        ids = [TOKENS.index(piece) for piece in expected]
        self.assertEqual([stream.step(index) for index in ids], ["", "", "", "", "€", "a"])
        self.assertEqual(stream.step(TOKENS.index("<0xE2>")) + stream.finish(), "\ufffd")

    def test_repeated_and_unused(self) -> None:
        tokens = [*TOKENS, "ab", "[PAD266]"]
        changes = {"tokens": tokens, "scores": [*SCORES, -9.0, 0.0]}
        tokenizer = self._read(**changes, token_type=[*map(int, TYPES), Kind.NORMAL, Kind.UNUSED])
        self.assertEqual(tokenizer.decode([TOKENS.index("ab"), len(TOKENS)]), "abab")
        self.assertEqual(tokenizer.decode([len(TOKENS) + 1]), "")

    @parameterized.named_parameters(
        ("no_scores", {"scores": None}, "scores: expected a list of 265 numbers .*, but the key"),
        ("few_scores", {"scores": [0.5]}, r"scores: expected a list of 265 numbers .*, got \[0.5"),
        ("nan", {"scores": [float("nan")] * 265}, "scores: expected a list of 265 numbers"),
        ("texts", {"scores": ["0"] * 265}, "scores: expected a list of 265 numbers"),
        (
            "a_byte",
            {"tokens": [text.replace("<0xE2>", "x") for text in TOKENS]},
            "tokens: expected a token for every byte, got none for <0xE2>",
        ),
        (
            "overlong",
            {"tokens": [text.replace("abab", "ab" * 200) for text in TOKENS]},
            "tokens: expected tokens of at most 256 characters, got one of 400",
        ),
        ("charsmap", {"precompiled_charsmap": [1, 2]}, "precompiled_charsmap: expected False, got"),
        (
            "white_space",
            {"remove_extra_whitespaces": True},
            "remove_extra_whitespaces: expected False, got True",
        ),
        ("prefix", {"add_space_prefix": "yes"}, "add_space_prefix: expected true or false, got"),
        (
            "begin",
            {"bos_token_id": None, "add_bos_token": True},
            "bos_token_id: expected the id of the token that .*add_bos_token adds, but the key is",
        ),
    )
    def test_refusals(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(ModelError, f"tokenizer.ggml.{message}") as caught:
            self._read(**changes)
        self.assertLen(str(caught.exception).splitlines(), 1)

    def test_damaged(self) -> None:
        """Whatever a byte is changed to, the file is read or refused in one line."""
        path = self._file()
        with open(path, "rb") as file:
            whole = file.read()
        draw = random.Random(3)
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(draw.choice((1, 1, 3))):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            with open(path, "wb") as file:
                file.write(damaged)
            try:
                tokenizer = gguf_tokenizer.read_tokenizer(gguf.GgufFile(path))
                tokenizer.decode(tokenizer.encode("ab €"))
            except ModelError as error:
                self.assertLen(str(error).splitlines(), 1)


if __name__ == "__main__":
    absltest.main()
