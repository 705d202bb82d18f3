"""One sequence's text on its way to standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from jax_tkg.command_line import say
from jax_tkg.models.tokenizer import Tokenizer


class StopTexts:
    """Cuts a stream of text before the first of some texts that is complete.

    Of several that are complete at once, the longest counts. The pieces in which the text comes do
    not.

    Args:
      texts: none of them empty.
    """

    def __init__(self, texts: Sequence[str]):
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def take(self, piece: str, is_last: bool = False) -> str:
        """The text that is certain now; what may be the beginning of a stop text is held back."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(text.find(stop), len(stop)) for stop in self._texts]
        found = [(place + size, place) for place, size in places if place >= 0]
        self.found = bool(found)
        if found:
            _, end = min(found)
        elif is_last:
            end = len(text)
        else:
            end = len(text) - max(
                (
                    size
                    for stop in self._texts
                    for size in range(1, len(stop))
                    if text.endswith(stop[:size])
                ),
                default=0,
            )
        self._held = "" if self.found else text[end:]
        return text[:end]


class Answer:
    """The text of one answer, written as its tokens come.

    Args:
      tokenizer: turns tokens into text.
      title: put above the text, which is then held back until it is complete; None to write each
        piece as it comes.
      stops: texts before which the answer ends.
      details: makes what the answer's JSON object has beside text, tokens and finish reason, when
        it is complete; None to write text.

    Attributes:
      text: so far.
      tokens: taken so far.
      finished: the answer is complete and written.
      finish_reason: "stop" (a stop token or text came), "length" or "error".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        title: str | None = None,
        stops: Sequence[str] = (),
        details: Callable[[], dict[str, Any]] | None = None,
    ):
        self._stop_tokens = tokenizer.stop_tokens
        self._stream = tokenizer.stream()
        self._title = title
        self._stops = StopTexts(stops)
        self._details = details
        self.text = ""
        self.tokens: list[int] = []
        self.finished = False
        self.finish_reason = "length"

    @property
    def count(self) -> int:
        """Tokens taken so far."""
        return len(self.tokens)

    def add(self, token: int) -> None:
        """Takes the next token; a stop token, or the end of a stop text, finishes the answer."""
        self.tokens.append(token)
        self._take(self._stops.take(self._stream.step(token)))
        if self._stops.found or token in self._stop_tokens:
            self.finish_reason = "stop"
            self.finish()

    def finish(self) -> None:
        """Writes what is left; does nothing the second time."""
        if self.finished:
            return
        self.finished = True
        self._take(self._stops.take(self._stream.finish(), is_last=True))
        if self._details is not None:
            answer = {
                "text": self.text,
                "tokens": self.tokens,
                "finish_reason": self.finish_reason,
                **self._details(),
            }
            say(json.dumps(answer))
        else:
            say("" if self._title is None else f"--- {self._title}\n{self.text}")

    def _take(self, piece: str) -> None:
        if self._title is None and self._details is None:
            say(piece, end="")
        self.text += piece
