"""Requests as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jax_tkg.command_line import CommandError
from jax_tkg.models.sampling import Sampling
from jax_tkg.models.tokenizer import Tokenizer
from jax_tkg.serving import Request

STANDARD_INPUT = "-"
"""Name of the file that is standard input."""

Messages = Sequence[dict[str, str]]

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_WHOLE_NUMBERS = ("top_k", "max_tokens", "seed")
KEYS = ("id", "prompt", "messages", "system", "stop", *_NUMBERS, *_WHOLE_NUMBERS)
"""Keys that a request may have."""


class LineError(CommandError):
    """A line is no request that can be served.

    Args:
      message: names the file and the line.
      line: its number, from 1 on.
      name: the request's "id", where it could be read.
    """

    def __init__(self, message: str, line: int, name: Any = None):
        super().__init__(message)
        self.line = line
        self.name = name


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a request has that does not say otherwise.

    Attributes:
      max_tokens: most tokens of the answer.
      sampling: how tokens are chosen.
      seed: of the first line; later lines have the numbers that follow.
      stops: texts before which the answer ends.
      system: system message of prompts, and of messages without one; or None.
    """

    max_tokens: int
    sampling: Sampling
    seed: int
    stops: Sequence[str]
    system: str | None


@dataclasses.dataclass(frozen=True)
class RequestLine:
    """One request of a file.

    Attributes:
      line: its number, from 1 on.
      name: its "id", any JSON value; None where it has none.
      request: for the running batch.
      stops: texts before which the answer ends.
    """

    line: int
    name: Any
    request: Request
    stops: Sequence[str]


def read_lines(file: str) -> list[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1 on.

    Args:
      file: its path, or `STANDARD_INPUT`.

    Raises:
      OSError: it cannot be read.
      CommandError: standard input is closed.
    """
    if file == STANDARD_INPUT:
        if sys.stdin is None:
            raise CommandError(
                "--requests: standard input: expected an open file, got a closed one"
            )
        content = sys.stdin.buffer.read()
    else:
        content = pathlib.Path(file).read_bytes()
    lines = enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    return [(number, line) for number, line in lines if line.strip()]


class PromptEncoder:
    """Makes tokens of prompts.

    Args:
      tokenizer: the model's.
      chat: whether a prompt is put into the tokenizer's chat template.
      limit: tokens that a prompt must not reach: the model's context length.
    """

    def __init__(self, tokenizer: Tokenizer, chat: bool, limit: int):
        self._tokenizer = tokenizer
        self._chat = chat
        self._limit = limit

    def __call__(self, prompt: str | Messages) -> list[int]:
        """The tokens of a prompt, or of the messages of a chat.

        Raises:
          ValueError: there is no chat template for the messages, or it refuses them; or there are
            no tokens or too many.
        """
        if isinstance(prompt, str) and self._chat:
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str):
            template = self._tokenizer.chat_template
            if not self._chat or template is None:
                raise ValueError(
                    "messages, system: expected a prompt alone with --nochat or a model without a "
                    "chat template"
                )
            prompt = template.prompt(prompt)
        tokens = self._tokenizer.encode(prompt)
        if not 1 <= len(tokens) < self._limit:
            raise ValueError(
                f"prompt: expected 1..{self._limit - 1} tokens (the model's context length is "
                f"{self._limit}), got {len(tokens)}"
            )
        return tokens


class LineParser:
    """Makes requests of lines.

    Args:
      file: name of the file, for messages.
      defaults: what a request has that does not say otherwise.
      encode: makes tokens of a prompt, or of the messages of a chat. A ValueError of it is about
        the line.
    """

    def __init__(
        self, file: str, defaults: Defaults, encode: Callable[[str | Messages], list[int]]
    ):
        self._file = "standard input" if file == STANDARD_INPUT else file
        self._defaults = defaults
        self._encode = encode

    def parse(self, line: int, content: bytes) -> RequestLine:
        """The request of a line.

        Raises:
          LineError: the line is no request; it says what was expected and what came.
        """
        name = None
        try:
            fields = _object(content)
            name = _name(fields.get("id"))
            return self._request(line, name, fields)
        except ValueError as error:
            message = " ".join(f"{self._file}:{line}: {error}".split())
            raise LineError(message, line, name) from None

    def _request(self, line: int, name: Any, fields: dict[str, Any]) -> RequestLine:
        for key in fields:
            if key not in KEYS:
                raise ValueError(f"expected the keys {', '.join(KEYS)}, got {_shown(key)}")
        defaults = self._defaults
        numbers = {
            key: _number(key, fields[key], whole=key in _WHOLE_NUMBERS)
            for key in (*_NUMBERS, *_WHOLE_NUMBERS)
            if key in fields
        }
        changes = {key: numbers[key] for key in (*_NUMBERS, "top_k") if key in numbers}
        request = Request(
            prompt=self._encode(_prompt(fields, defaults.system)),
            max_tokens=numbers.get("max_tokens", defaults.max_tokens),
            sampling=dataclasses.replace(defaults.sampling, **changes),
            seed=numbers.get("seed", (defaults.seed + line - 1) % 2**64),
        )
        return RequestLine(line, name, request, _stops(fields.get("stop", defaults.stops)))


def _object(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected text in UTF-8, got byte {content[error.start]:#04x} at {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"expected a JSON object, got {_shown(content.decode())} ({error.msg} at "
            f"character {error.pos + 1})"
        ) from None
    except RecursionError:
        raise ValueError("expected a JSON object, got one that is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {_shown(fields)}")
    return fields


def _name(name: Any) -> Any:
    """The value of "id", which the answer repeats."""
    try:
        json.dumps(name, allow_nan=False)
    except ValueError:
        raise ValueError(
            f"id: expected a JSON value, which has no NaN or infinity, got {_shown(name)}"
        ) from None
    return name


def _prompt(fields: dict[str, Any], system: str | None) -> str | Messages:
    """The text of the prompt, or messages, with the system message before them."""
    if ("prompt" in fields) == ("messages" in fields):
        raise ValueError("expected one of the keys prompt and messages, got both or none")
    if "messages" not in fields:
        prompt = _text("prompt", fields["prompt"])
        system = _text("system", fields["system"]) if "system" in fields else system
        if system is None:
            return prompt
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    if "system" in fields:
        raise ValueError("system: expected none with messages, which may have one, got one")
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: expected a list of messages, got {_shown(messages)}")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                f"messages: expected objects with role and content, got {_shown(message)}"
            )
        for key, text in message.items():
            _text(f"messages: {key}", text)
    if system is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _stops(stops: Any) -> Sequence[str]:
    texts = [stops] if isinstance(stops, str) else stops
    if not isinstance(texts, list | tuple) or not all(
        isinstance(text, str) and text for text in texts
    ):
        raise ValueError(f"stop: expected a text, or a list of texts, got {_shown(stops)}")
    return tuple(texts)


def _text(key: str, text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{key}: expected a text, got {_shown(text)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{key}: expected a text, got one with half a surrogate pair")
    return text


def _number(key: str, number: Any, whole: bool) -> Any:
    """An integer if it is to be whole, else a float; infinity for more than a float holds."""
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if whole and not (is_number and isinstance(number, int)):
        raise ValueError(f"{key}: expected a whole number, got {_shown(number)}")
    if not is_number:
        raise ValueError(f"{key}: expected a number, got {_shown(number)}")
    if whole:
        return number
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _shown(value: Any) -> str:
    """A JSON value in at most 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
