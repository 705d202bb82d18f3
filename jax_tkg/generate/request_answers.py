"""Serving the requests of a file: each result is written as soon as it is complete."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import signal
import threading
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any

from jax_tkg.command_line import note, say
from jax_tkg.generate.answer import Answer
from jax_tkg.generate.request_lines import LineError, LineParser, RequestLine
from jax_tkg.models.tokenizer import Tokenizer
from jax_tkg.serving import RunningBatch


@dataclasses.dataclass
class Served:
    """What has been served.

    Attributes:
      answers: how many are written.
      prompt_tokens: of all requests whose answers are.
      tokens: of these answers.
    """

    answers: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


def parse_all(
    parser: LineParser,
    contents: Sequence[tuple[int, bytes]],
    threads: concurrent.futures.Executor,
) -> tuple[list[RequestLine], int]:
    """The requests of all lines; those that are none are reported on both outputs.

    Args:
      parser: of the lines.
      contents: of the lines, with their numbers.
      threads: parse. A chat template runs in a process of its own for each line.

    Returns:
      The requests, and how many lines are none.
    """
    lines, bad = [], 0
    for parsed in [threads.submit(parser.parse, *content) for content in contents]:
        try:
            lines.append(parsed.result())
        except LineError as error:
            bad += 1
            note(f"error: {error}")
            say(json.dumps({"line": error.line, "id": error.name, "error": str(error)}))
    return lines, bad


def serve(batch: RunningBatch, lines: Sequence[RequestLine], tokenizer: Tokenizer) -> Served:
    """Answers requests and writes a JSON object for each, in the order in which they end.

    Args:
      batch: idle.
      lines: the requests.
      tokenizer: the model's.

    Raises:
      ValueError: the vocabulary of the model lacks a token of its tokenizer; nothing is answered.
      KeyboardInterrupt: Ctrl-C. All answers that are complete have been written.
    """
    served, started = Served(), time.perf_counter()
    answers = {
        batch.submit(line.request): (line, _answer(line, tokenizer, started)) for line in lines
    }
    try:
        while not batch.idle:
            events = batch.step()
            with interrupts_deferred():
                for event in events:
                    line, answer = answers[event.request]
                    if answer.finished:
                        continue
                    if event.token is None:
                        note(f"note: line {line.line}: the model's scores are NaN; the answer ends")
                        answer.finish_reason = "error"
                    else:
                        answer.add(event.token)
                    if event.finish_reason is not None:
                        answer.finish()
                    elif answer.finished:
                        batch.cancel(event.request)
                    if answer.finished:
                        served.answers += 1
                        served.prompt_tokens += len(line.request.prompt)
                        served.tokens += answer.count
    except KeyboardInterrupt:
        note(f"note: interrupted; {served.answers} of {len(lines)} answers are written")
        raise
    return served


def _answer(line: RequestLine, tokenizer: Tokenizer, started: float) -> Answer:
    def details() -> dict[str, Any]:
        return {
            "line": line.line,
            "id": line.name,
            "prompt_tokens": len(line.request.prompt),
            "seconds": round(time.perf_counter() - started, 6),
        }

    return Answer(tokenizer, None, line.stops, details)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Ctrl-C takes effect at the end; at once where this is not Python's main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def press(number: int, frame: types.FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
