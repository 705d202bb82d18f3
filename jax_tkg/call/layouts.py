"""Shapes written in dimension letters, such as "[H, (q + 2k)*d]": evaluated, printed and solved."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from fractions import Fraction
from types import CodeType
from typing import Any

_LETTER = re.compile(r"[A-Za-z_]+")
_IMPLICIT_PRODUCT = re.compile(r"(\d)(?=[A-Za-z(])")


@dataclasses.dataclass(frozen=True)
class Axis:
    """The size of one axis as an expression that is linear in each of its letters.

    Attributes:
      text: the expression, such as "(q + 2k)*d".
    """

    text: str

    @functools.cached_property
    def expression(self) -> str:
        """The text with products written out: "(q + 2*k)*d"."""
        return _IMPLICIT_PRODUCT.sub(r"\1*", self.text)

    @functools.cached_property
    def letters(self) -> frozenset[str]:
        """The letters that the size depends on."""
        return frozenset(_LETTER.findall(self.expression))

    @functools.cached_property
    def _code(self) -> CodeType:
        return compile(self.expression, "<axis>", "eval")

    def evaluate(self, sizes: Mapping[str, Any]) -> Fraction:
        """The size, given a number for each letter."""
        exact = {letter: Fraction(sizes[letter]) for letter in self.letters}
        # The expressions are constants of the operand table; no builtins are needed.
        return Fraction(eval(self._code, {"__builtins__": {}}, exact))

    def solve(self, letter: str, sizes: Mapping[str, int], size: int) -> int | None:
        """The value of `letter` that gives the axis `size`, the other letters being known.

        Returns:
          None where no non-negative integer does.
        """
        at_zero, at_one = (self.evaluate({**sizes, letter: value}) for value in (0, 1))
        if at_one == at_zero:
            return None
        value = (size - at_zero) / (at_one - at_zero)
        return int(value) if value >= 0 and value.denominator == 1 else None

    def with_sizes(self, sizes: Mapping[str, int]) -> str:
        """The expression with numbers in place of letters: "(4 + 2*2)*64"."""
        return _LETTER.sub(lambda match: str(sizes[match[0]]), self.expression)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A shape in dimension letters.

    Attributes:
      text: the shape, such as "[B, k, d, S_max]".
    """

    text: str

    @functools.cached_property
    def axes(self) -> tuple[Axis, ...]:
        """One expression per axis."""
        return tuple(Axis(part.strip()) for part in self.text.strip("[]").split(","))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape, given a size for each letter."""
        return tuple(int(axis.evaluate(sizes)) for axis in self.axes)

    def with_sizes(self, sizes: Mapping[str, int]) -> str:
        """The text with numbers in place of letters: "[128, (4 + 2*2)*64]"."""
        return f"[{', '.join(axis.with_sizes(sizes) for axis in self.axes)}]"

    def axis_with(self, *letters: str) -> int | None:
        """The first axis whose size depends on one of the letters, or None."""
        for index, axis in enumerate(self.axes):
            if axis.letters.intersection(letters):
                return index
        return None
