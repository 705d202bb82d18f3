"""Text to token ids and back."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

import tokenizers

from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.spelling import BYTE_LEVEL, Spelling


class Tokenizer:
    """A tokenizer with what generation needs to know of it.

    Args:
      backend: the tokenizer of the `tokenizers` package, special tokens added.
      begin_tokens: ids that every text begins with.
      stop_tokens: ids that end a text.
      chat_template: how to speak to the model in turns, or None.
      spelling: how the vocabulary's entries spell bytes.
      same_text: ids that the backend does not know, and for each one that has the same text.

    Attributes:
      begin_tokens: as given.
      stop_tokens: as given.
      chat_template: as given.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        begin_tokens: Sequence[int] = (),
        stop_tokens: Sequence[int] = (),
        chat_template: ChatTemplate | None = None,
        spelling: Spelling = BYTE_LEVEL,
        same_text: Mapping[int, int] | None = None,
    ):
        self._backend = backend
        self.begin_tokens = tuple(begin_tokens)
        self.stop_tokens = tuple(stop_tokens)
        self.chat_template = chat_template
        self._drops_space = spelling.drops_space
        added = backend.get_added_tokens_decoder()
        vocabulary = backend.get_vocab(False)
        self._bytes = {index: spelling.bytes_of(entry) for entry, index in vocabulary.items()}
        for index, token in added.items():
            self._bytes[index] = b"" if token.special else spelling.added_bytes_of(token.content)
        for index, other in (same_text or {}).items():
            self._bytes[index] = self._bytes[other]

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt.

        Special tokens written out in the text are recognized. `begin_tokens` are put before the
        text unless it begins with them, as the text of a chat template may. No end token is put
        after it, whatever the model's files say: the model is to continue the text.
        """
        ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        begin = list(self.begin_tokens)
        return ids if ids[: len(begin)] == begin else begin + ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens.

        Bytes that form no character come out as U+FFFD.

        Raises:
          ValueError: as `bytes_of`.
        """
        stream = self.stream()
        return stream.add(ids) + stream.finish()

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The bytes of token ids, without special tokens.

        Ids past the vocabulary's end have no bytes: a model's vocabulary may be padded to a rounder
        size than the tokenizer's, and such an id be drawn. The space that encoding puts before a
        text is among the bytes.

        Raises:
          ValueError: an id is negative.
        """
        for index in ids:
            if index < 0:
                raise ValueError(f"ids: expected token ids from 0 on, got {index}")
        return b"".join(self._bytes.get(index, b"") for index in ids)

    def stream(self) -> TokenStream:
        """A decoder that takes tokens one at a time."""
        return TokenStream(self, self._drops_space)


class TokenStream:
    """Text of tokens as they come; a character is held back until all its bytes are there.

    Args:
      tokenizer: the tokenizer.
      drops_space: whether a space at the start of the text is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, drops_space: bool = False):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = drops_space

    def step(self, token: int) -> str:
        """The text that became complete with this token; may be empty."""
        return self.add([token])

    def add(self, tokens: Sequence[int]) -> str:
        """The text that became complete with these tokens; may be empty."""
        text = self._decoder.decode(self._tokenizer.bytes_of(tokens))
        if text and self._drops_space:
            self._drops_space = False
            text = text.removeprefix(" ")
        return text

    def finish(self) -> str:
        """What is left at the end: bytes that form no character come out as U+FFFD."""
        return self._decoder.decode(b"", final=True)
