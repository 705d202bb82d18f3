"""A program that renders one chat template within limits on memory, processor time and output.

A template is code that comes with a model. Jinja's sandbox denies it files and Python's internals,
but does not stop nested loops or `7 ** 10**9`. A separate process can be ended.
`jax_tkg.models.chat` runs this file by its path, so that nothing of the package is imported.

The program reads one JSON object from standard input, with "source", "variables" and the limits
"seconds", "bytes" and "characters", and writes one to standard output: {"text": ...} or
{"error": ...}.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes the special characters of HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it renders its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parses the block into a call block, which has its own scope of variables."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return caller()


def _template(source: str) -> jinja2.Template:
    """Compiles the template with the filters and functions that transformers provides."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _joined(pieces: Iterable[str], limit: int) -> str:
    kept, characters = [], 0
    for piece in pieces:
        characters += len(piece)
        if characters > limit:
            raise jinja2.TemplateError(f"it wrote more than {limit} characters")
        kept.append(piece)
    return "".join(kept)


def _limit_process(seconds: int, size: int) -> None:
    """Limits this process's processor time and memory, where the system supports it.

    Windows has no such limits, and macOS does not enforce the one on memory. On every system the
    caller ends the process after a time.
    """
    if importlib.util.find_spec("resource") is None:
        return
    import resource

    limits = {resource.RLIMIT_CPU: seconds}
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = size
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        unlimited = hard == resource.RLIM_INFINITY
        resource.setrlimit(kind, (limit if unlimited else min(limit, hard), hard))


def _describe(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, RecursionError):
        return "it is nested or calls itself too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    message = str(error)
    if isinstance(error, jinja2.TemplateError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    _limit_process(request["seconds"], request["bytes"])
    try:
        pieces = _template(request["source"]).generate(request["variables"])
        answer = {"text": _joined(pieces, request["characters"])}
    # A template is a program: it may fail in any of Python's ways.
    except Exception as error:
        answer = {"error": _describe(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
