"""Talking to a model on a terminal, line by line, with what was said before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from jax_tkg.command_line import note
from jax_tkg.models.chat import ChatTemplate

Turn = Callable[[list[int]], str]
"""Writes the answer to the tokens of a conversation, and returns its text."""


def talk(
    template: ChatTemplate,
    encode: Callable[[str], list[int]],
    answer: Turn,
    room: int,
    system: str | None = None,
) -> None:
    """Asks for lines and writes answers until the input ends (Ctrl-D).

    Args:
      template: of the model.
      encode: text to tokens.
      answer: writes an answer.
      room: most tokens of a conversation; the oldest question and answer are dropped for it.
      system: system message.

    Raises:
      ModelError: the template does not take the conversation.
    """
    with contextlib.suppress(ImportError):
        # Editing and recalling lines, where Python has it.
        import readline  # noqa: F401
    first = [] if system is None else [{"role": "system", "content": system}]
    turns: list[dict[str, str]] = []
    while True:
        try:
            said = input("> ")
        except EOFError:
            note("")
            return
        if not said.strip():
            continue
        if any("\ud800" <= character <= "\udfff" for character in said):
            # How Python hands over bytes of the terminal that are not of its encoding.
            note("note: expected text in UTF-8")
            continue
        # What is dropped for a line stays until it is known that the line fits alone.
        kept = [*turns, {"role": "user", "content": said}]
        tokens = encode(template.prompt(first + kept))
        while len(tokens) > room and len(kept) > 1:
            del kept[:2]
            tokens = encode(template.prompt(first + kept))
        if len(tokens) > room:
            note(f"note: expected at most {room} tokens at once, got {len(tokens)}")
            continue
        turns = [*kept, {"role": "assistant", "content": answer(tokens)}]
