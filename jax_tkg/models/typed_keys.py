"""Values of a file's keys, each checked for its type and its range when it is read.

Every format comes down to keys and values: the members of a JSON object, the metadata of a GGUF
file. Reading them through `TypedKeys` gives every refusal the same form: file, key, what was
expected and what the file has.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from jax_tkg.models.errors import ModelError

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 2
_SHOWN.maxlist = _SHOWN.maxdict = 4
_SHOWN.maxstring = _SHOWN.maxother = 60


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `minimum` to `maximum`, both included; NaN and infinity are never in it.

    Attributes:
      minimum: the smallest number.
      maximum: the largest number, finite.
    """

    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum!r} to {self.maximum!r}"


def shown(value: Any) -> str:
    """A value of a file as messages show it: Python's notation, cut where it is long."""
    if isinstance(value, np.ndarray):
        value = value[: _SHOWN.maxlist + 1].tolist()
    return _SHOWN.repr(value)


def is_unicode(text: str) -> bool:
    """Whether a text lacks halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


class TypedKeys:
    """The keys of one file, or of an object inside it.

    A key whose value is None is absent: JSON files have `null` for what they do not say.

    Args:
      file: the file's path, for messages.
      values: the values by key, as they were parsed.
      prefix: put before the keys in messages, for an object inside the file.

    Attributes:
      file: as given.
    """

    def __init__(self, file: str, values: Mapping[str, Any], prefix: str = ""):
        self.file = file
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        """The keys that are there, in the file's order."""
        return (key for key, value in self._values.items() if value is not None)

    def states(self, key: str) -> bool:
        """Whether the file has the key, be its value None."""
        return key in self._values

    def raw(self, key: str) -> Any:
        """A value as it was parsed, unchecked; None where the key is absent."""
        return self._values.get(key)

    def error(self, key: str, expected: str) -> ModelError:
        """The error for a key whose value, or whose absence, is not what was expected."""
        value = self._values.get(key)
        got = "but the key is missing" if value is None else f"got {shown(value)}"
        return ModelError(f"{self.file}: {self._prefix}{key}: expected {expected}, {got}")

    def integer(self, key: str, limits: Range, default: int | None = None) -> int:
        """An integer.

        Args:
          key: its key.
          limits: the range it must be in.
          default: the value where the key is absent; None where it is required.

        Raises:
          ModelError: the key is absent and required, or its value no such integer.
        """
        return self._checked(key, f"an integer from {limits}", _is_integer(limits), default)

    def number(self, key: str, limits: Range, default: float | None = None) -> float:
        """A finite number as a float; integers pass, booleans do not. See `integer`."""
        return float(self._checked(key, f"a number from {limits}", _is_number(limits), default))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or False. See `integer`."""
        return self._checked(key, "true or false", lambda value: type(value) is bool, default)

    def string(
        self, key: str, choices: Collection[str] | None = None, default: str | None = None
    ) -> str:
        """A string, one of `choices` where they are given. See `integer`."""
        if choices is None:
            expected = "a string"
        else:
            expected = " or ".join(repr(choice) for choice in choices)

        def fits(value: Any) -> bool:
            return isinstance(value, str) and (choices is None or value in choices)

        return self._checked(key, expected, fits, default)

    def strings(self, key: str) -> list[str]:
        """A list of strings. See `integer`."""

        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)

        return self._checked(key, "a list of strings", fits)

    def integers(self, key: str, limits: Range) -> list[int]:
        """A list of integers, each in the range. See `integer`."""
        value = self._values.get(key)
        in_range = _is_integer(limits)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            value = value.tolist()
        if isinstance(value, list) and all(in_range(item) for item in value):
            return value
        raise self.error(key, f"a list of integers from {limits}")

    def numbers(self, key: str, limits: Range, count: int) -> list[float]:
        """A list of `count` finite numbers, each in the range. See `number`."""
        value = self._values.get(key)
        in_range = _is_number(limits)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
            value = value.tolist()
        if isinstance(value, list) and len(value) == count and all(map(in_range, value)):
            return [float(number) for number in value]
        raise self.error(key, f"a list of {count} numbers from {limits}")

    def flags(self, key: str, count: int) -> list[bool]:
        """A list of `count` values, each true, false, 1 or 0. See `integer`."""

        def fits(value: Any) -> bool:
            return (
                isinstance(value, list)
                and len(value) == count
                and all(type(item) in (bool, int) and item in (0, 1) for item in value)
            )

        return [bool(item) for item in self._checked(key, f"a list of {count} flags", fits)]

    def integer_or_integers(self, key: str, limits: Range) -> list[int]:
        """An integer, or a list of them: always returned as a list. See `integer`."""
        if _is_integer(limits)(self._values.get(key)):
            return [self._values[key]]
        try:
            return self.integers(key, limits)
        except ModelError:
            expected = f"an integer from {limits} or a list of them"
            raise self.error(key, expected) from None

    def is_neutral(self, key: str, neutral: Any) -> bool:
        """Whether a key is absent or has a value with which it changes nothing.

        Args:
          key: its key.
          neutral: such a value, or a tuple of them, which may be empty; 1 and 1.0 are the same,
            1 and True are not.
        """
        value = self._values.get(key)
        return value is None or any(_equal(value, one) for one in _each(neutral))

    def check_neutral(self, key: str, neutral: Any) -> None:
        """Checks that a key is neutral; see `is_neutral`.

        Raises:
          ModelError: it has another value.
        """
        if not self.is_neutral(key, neutral):
            allowed = " or ".join(repr(one) for one in _each(neutral))
            raise self.error(key, allowed or "no such key")

    def object(self, key: str, required: bool = False) -> TypedKeys:
        """The keys of an object inside the file; none where the key is absent.

        Args:
          key: its key.
          required: whether the key may not be absent.

        Raises:
          ModelError: the value is no object, or it is required and the key is absent.
        """
        value = self._values.get(key)
        if value is None and not required:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return TypedKeys(self.file, value, f"{self._prefix}{key}.")

    def _checked(self, key: str, expected: str, fits: Any, default: Any = None) -> Any:
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not fits(value):
            raise self.error(key, expected)
        return value


def _each(neutral: Any) -> tuple[Any, ...]:
    return neutral if isinstance(neutral, tuple) else (neutral,)


def _equal(value: Any, other: Any) -> bool:
    numbers = (int, float)
    if type(value) in numbers and type(other) in numbers:
        return value == other
    return type(value) is type(other) and value == other


def _is_integer(limits: Range) -> Any:
    return lambda value: type(value) is int and value in limits


def _is_number(limits: Range) -> Any:
    return lambda value: type(value) in (int, float) and value in limits
