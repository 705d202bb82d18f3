"""Text to token ids and back."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Mapping, Sequence

import tokenizers

from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.spelling import BYTE_LEVEL, Spelling


@contextlib.contextmanager
def package_faults(where: str, expected: str) -> Iterator[None]:
    """Turns faults of the `tokenizers` package, which lie in a model's files, into `ModelError`.

    It raises plain Exception for most of them, and panics at others, which is no Exception.

    Args:
      where: the file, for the message.
      expected: what was to come of it.
    """
    try:
        yield
    except (TypeError, UnicodeError):
        # Of the caller's arguments.
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{where}: expected {expected}, got the error {one_line(error)!r}"
        ) from error


class Tokenizer:
    """A tokenizer with what generation needs beside it.

    Args:
      backend: the tokenizer of the `tokenizers` package, special tokens added.
      begin_tokens: ids that every text begins with.
      stop_tokens: ids that end a text.
      chat_template: the template of a conversation, or None.
      spelling: how the vocabulary's entries spell bytes.
      same_text: for ids that the backend lacks, an id with the same text.
      origin: the file that holds the tokenizer, for error messages.

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
        origin: str = "tokenizer",
    ):
        self._backend = backend
        self._origin = origin
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

        Special tokens written out in the text are recognized. `begin_tokens` are prepended unless
        the text begins with them, as a chat template's text may. No end token is appended, even if
        the model's files ask for one, because the model is to continue the text.

        Raises:
          ModelError: the tokenizer's file is damaged in a way that only some texts show.
        """
        with package_faults(self._origin, "the tokens of a text"):
            ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        begin = list(self.begin_tokens)
        return ids if ids[: len(begin)] == begin else begin + ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens.

        Bytes that form no character become U+FFFD.

        Raises:
          ValueError: an id is negative.
        """
        stream = self.stream()
        return stream.add(ids) + stream.finish()

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The bytes of token ids, without special tokens.

        Ids past the end of the vocabulary have no bytes: a model's vocabulary may be padded beyond
        the tokenizer's, and such an id may be drawn. The space that encoding adds before a text is
        included.

        Raises:
          ValueError: an id is negative.
        """
        for index in ids:
            if index < 0:
                raise ValueError(f"ids: expected token ids from 0 on, got {index}")
        return b"".join(self._bytes.get(index, b"") for index in ids)

    def stream(self) -> TokenStream:
        """A decoder that takes tokens as they come."""
        return TokenStream(self, self._drops_space)


class TokenStream:
    """Decodes tokens as they come, holding a character back until all its bytes have arrived.

    Args:
      tokenizer: the tokenizer.
      drops_space: whether to drop a space at the start of the text.
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
        """The rest of the text: bytes that form no character become U+FFFD."""
        return self._decoder.decode(b"", final=True)
