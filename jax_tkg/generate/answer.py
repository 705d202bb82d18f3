"""One sequence's text on its way to standard output."""

from __future__ import annotations

from jax_tkg.command_line import say
from jax_tkg.models.tokenizer import Tokenizer


class Answer:
    """The text of one answer, written as its tokens come.

    Args:
      tokenizer: turns tokens into text.
      title: put above the text, which is then held back until it is complete; None to write each
        piece as it comes.

    Attributes:
      count: tokens taken so far.
      finished: the answer is complete and written.
    """

    def __init__(self, tokenizer: Tokenizer, title: str | None):
        self._stop_tokens = tokenizer.stop_tokens
        self._stream = tokenizer.stream()
        self._title = title
        self._text = ""
        self.count = 0
        self.finished = False

    def add(self, token: int) -> None:
        """Takes the next token; a stop token finishes the answer."""
        self.count += 1
        self._take(self._stream.step(token))
        if token in self._stop_tokens:
            self.finish()

    def finish(self) -> None:
        """Writes what is left; does nothing the second time."""
        if self.finished:
            return
        self.finished = True
        self._take(self._stream.finish())
        say("" if self._title is None else f"--- {self._title}\n{self._text}")

    def _take(self, piece: str) -> None:
        if self._title is None:
            say(piece, end="")
        self._text += piece
