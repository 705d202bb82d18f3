"""Chat templates: the text that a conversation becomes before it is tokenised."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from jax_tkg.models.errors import ModelError, one_line


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes characters that are special in HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """A checkpoint's Jinja template, run in a sandbox.

    Args:
      source: the template.
      special_tokens: names that templates use for the text of special tokens, such as
        "bos_token".
      origin: where the template comes from, for errors.

    Raises:
      ModelError: the template cannot be parsed.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], origin: str):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = special_tokens
        self._origin = origin
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise self._error(error) from error

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """The text that asks the model for the next message.

        Args:
          messages: each with a "role" ("system", "user" or "assistant") and its "content".

        Raises:
          ModelError: the template does not accept the messages.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._special_tokens
            )
        # A template is a program: it may fail in any of Python's ways.
        except Exception as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> ModelError:
        return ModelError(f"{self._origin}: chat template: {one_line(error)}")
