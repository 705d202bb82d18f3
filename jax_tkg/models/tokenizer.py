"""Text to token ids and back, for byte-level BPE vocabularies."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

import tokenizers

from jax_tkg.models.chat import ChatTemplate


def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Bytes that are printable in Latin-1 stand for themselves; the others are numbered from U+0100
    (Radford et al. 2019, the encoder published with GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update((chr(0x100 + index), byte) for index, byte in enumerate(others))
    return characters


_BYTE_OF_CHARACTER = _alphabet()


class Tokenizer:
    """A byte-level BPE tokenizer with what generation needs to know of it.

    Args:
      backend: the tokenizer of the `tokenizers` package, special tokens added.
      begin_token: id that every text begins with, or None.
      stop_tokens: ids that end a text.
      chat_template: how to speak to the model in turns, or None.
      same_text: ids that the backend does not know, and for each one that has the same text.

    Attributes:
      begin_token: as given.
      stop_tokens: as given.
      chat_template: as given.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        begin_token: int | None = None,
        stop_tokens: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
        same_text: Mapping[int, int] | None = None,
    ):
        self._backend = backend
        self.begin_token = begin_token
        self.stop_tokens = tuple(stop_tokens)
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self._bytes = {index: _bytes_of(token) for token, index in backend.get_vocab(False).items()}
        for index, token in added.items():
            self._bytes[index] = b"" if token.special else token.content.encode()
        for index, other in (same_text or {}).items():
            self._bytes[index] = self._bytes[other]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written out in it are recognized."""
        ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        if self.begin_token is not None and ids[:1] != [self.begin_token]:
            ids = [self.begin_token, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens.

        Bytes that form no character come out as U+FFFD.

        Raises:
          ValueError: as `bytes_of`.
        """
        return self.bytes_of(ids).decode("utf-8", "replace")

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The bytes of token ids, without special tokens.

        Ids past the vocabulary's end have no bytes: a model's vocabulary may be padded to a rounder
        size than the tokenizer's, and such an id be drawn.

        Raises:
          ValueError: an id is negative.
        """
        for index in ids:
            if index < 0:
                raise ValueError(f"ids: expected token ids from 0 on, got {index}")
        return b"".join(self._bytes.get(index, b"") for index in ids)

    def stream(self) -> TokenStream:
        """A decoder that takes tokens one at a time."""
        return TokenStream(self)


def _bytes_of(token: str) -> bytes:
    """A vocabulary entry as bytes; one that is not in the byte alphabet is text itself."""
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()


class TokenStream:
    """Text of tokens as they come; a character is held back until all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token: int) -> str:
        """The text that became complete with this token; may be empty."""
        return self._decoder.decode(self._tokenizer.bytes_of([token]))

    def finish(self) -> str:
        """What is left at the end: bytes that form no character come out as U+FFFD."""
        return self._decoder.decode(b"", final=True)
