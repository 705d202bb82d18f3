"""Chat templates: the text that a conversation becomes before it is tokenized."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jax_tkg.models.errors import ModelError
from jax_tkg.models.typed_keys import is_unicode

MAX_SECONDS = 10
"""Longest time that rendering a template may take, in seconds."""

MAX_BYTES = 2**30
"""Most memory that the process that renders a template may take."""

MAX_CHARACTERS = 2**24
"""Longest text that a template may write; no model's context is as long."""

_PROGRAM = pathlib.Path(__file__).with_name("render_template.py")

_NAMED_DEFAULT = "default"


class ChatTemplate:
    """A checkpoint's Jinja template, rendered in a sandbox and in a process of its own.

    The template sees the variables that transformers gives it: `messages`, `add_generation_prompt`,
    the special tokens, and `tools` and `documents`, which are None.

    Args:
      sources: the template, or several by name, of which "default" is rendered.
      special_tokens: the variables for special tokens, such as "bos_token": the text of each, or a
        list of texts.
      origin: the file that holds the template, for error messages.
    """

    def __init__(
        self,
        sources: str | Mapping[str, str],
        special_tokens: Mapping[str, str | list[str]],
        origin: str,
    ):
        self._sources = {_NAMED_DEFAULT: sources} if isinstance(sources, str) else dict(sources)
        self._special_tokens = dict(special_tokens)
        self._origin = origin

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that asks the model for the next message.

        Args:
          messages: each with a "role" ("system", "user" or "assistant") and its "content".

        Raises:
          ModelError: the template is damaged, rejects the messages, writes an empty text, or
            exceeds a limit; or there are several templates and none is named "default".
        """
        if _NAMED_DEFAULT not in self._sources:
            names = ", ".join(map(repr, self._sources))
            raise self._error(f"expected one named 'default', got {names}")
        variables = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        answer = self._rendered(self._sources[_NAMED_DEFAULT], variables)
        if "error" in answer:
            raise self._failed(answer["error"])
        text = answer["text"]
        if not text:
            raise self._error("expected a text, got an empty one")
        if not is_unicode(text):
            raise self._error("expected a text, got one with half a surrogate pair")
        return text

    def _rendered(self, source: str, variables: dict[str, Any]) -> dict[str, str]:
        """Runs `render_template` as a program and returns its answer."""
        request = {
            "source": source,
            "variables": variables,
            # More than the wait below: this limit ends a process whose parent is gone.
            "seconds": MAX_SECONDS + 1,
            "bytes": MAX_BYTES,
            "characters": MAX_CHARACTERS,
        }
        # -P keeps the program's own folder off sys.path, where modules would shadow the standard
        # library's.
        done = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        with done:
            try:
                output, complaint = done.communicate(json.dumps(request).encode(), MAX_SECONDS)
            except subprocess.TimeoutExpired:
                done.kill()
                raise self._failed(f"it took more than {MAX_SECONDS} s") from None
        if done.returncode:
            last = complaint.decode(errors="replace").strip().splitlines()[-1:]
            raise self._failed(" ".join([f"its process ended with {done.returncode}:", *last]))
        return json.loads(output)

    def _failed(self, reason: str) -> ModelError:
        return self._error(f"expected the text of a conversation, got an error: {reason}")

    def _error(self, reason: str) -> ModelError:
        return ModelError(f"{self._origin}: chat template: {reason}")
