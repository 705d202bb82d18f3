"""Conversations line by line, with a template and a model that are told what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

from absl.testing import absltest

from jax_tkg.generate import conversation


class _Template:
    """The contents, each with a bar after it."""

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"{message['content']}|" for message in messages)


def _talk(
    lines: Sequence[str], room: int, system: str | None = None
) -> tuple[list[str], list[Any]]:
    """The prompts that the model reads, and what is noted."""
    prompts = []

    def answer(tokens: list[int]) -> str:
        prompts.append(bytes(tokens).decode())
        return f"a{len(prompts)}"

    with (
        mock.patch("builtins.input", side_effect=[*lines, EOFError]),
        mock.patch.object(conversation, "note") as note,
    ):
        template: Any = _Template()
        conversation.talk(template, lambda text: list(text.encode()), answer, room, system)
    return prompts, [call.args[0] for call in note.call_args_list]


class TalkTest(absltest.TestCase):
    def test_the_oldest_turns_are_dropped_for_a_line(self) -> None:
        prompts, notes = _talk(["one", "  ", "two", "three"], room=16, system="s")
        self.assertEqual(prompts, ["s|one|", "s|one|a1|two|", "s|two|a2|three|"])
        self.assertEqual(notes, [""])

    def test_a_line_that_is_refused_leaves_the_conversation(self) -> None:
        prompts, notes = _talk(["one", "x" * 17, "two"], room=16)
        self.assertEqual(prompts, ["one|", "one|a1|two|"])
        self.assertEqual(notes, ["note: expected at most 16 tokens at once, got 18", ""])

    def test_bytes_that_are_no_text_leave_the_conversation(self) -> None:
        prompts, notes = _talk(["one", "tw\udcff", "three"], room=99)
        self.assertEqual(prompts, ["one|", "one|a1|three|"])
        self.assertEqual(notes, ["note: expected text in UTF-8", ""])


if __name__ == "__main__":
    absltest.main()
