"""Drafts of what a sequence says next, looked up in the sequence itself (Saxena 2023).

Answers that quote, summarize or correct their prompt repeat its phrases. Where the last tokens have
occurred before, what followed them then is the draft.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST_MATCH = 2
"""Tokens that have to occur again, at least."""

LONGEST_MATCH = 8
"""Tokens that are compared, at most."""


class PromptLookup:
    """The drafts of one sequence.

    How many tokens must match before there is a draft follows the drafts before: each that failed
    asks for one more, each that held for one less.

    Args:
      tokens: the prompt.
      worthwhile: tokens of a draft that must hold for it to be worth its verification.
    """

    def __init__(self, tokens: Iterable[int], worthwhile: int = 1):
        self._worthwhile = worthwhile
        self._needed = SHORTEST_MATCH
        self._tokens: list[int] = []
        # Where the last occurrence of each pair of tokens is followed by another token.
        self._followed: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Appends a token of the sequence."""
        before = tuple(self._tokens[-SHORTEST_MATCH:])
        if len(before) == SHORTEST_MATCH:
            self._followed[before] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """The next tokens as they followed before: `count` of them, or none.

        A text that repeats itself to its end goes on repeating itself.
        """
        start = self._followed.get(tuple(self._tokens[-SHORTEST_MATCH:]))
        if start is None or count < 1 or self._match(start) < self._needed:
            return []
        text = list(self._tokens)
        for index in range(start, start + count):
            text.append(text[index])
        return text[len(self._tokens) :]

    def verified(self, held: int) -> None:
        """Learns how many tokens of the last draft held."""
        if held >= self._worthwhile:
            self._needed = max(SHORTEST_MATCH, self._needed - 1)
        else:
            self._needed = min(LONGEST_MATCH, self._needed + 1)

    def _match(self, start: int) -> int:
        """How many tokens before `start` equal the last ones."""
        tokens = self._tokens
        longest = min(LONGEST_MATCH, start)
        for length in range(longest):
            if tokens[start - 1 - length] != tokens[-1 - length]:
                return length
        return longest
