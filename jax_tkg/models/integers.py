"""Numbers that callers give, of Python, NumPy or JAX, as numbers of Python."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def as_integer(name: str, value: Any) -> int:
    """An integer of Python.

    Raises:
      TypeError: the value is no integer. A float or a bool is none.
    """
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: expected an integer, got {_shown(value)}")


def as_number(name: str, value: Any) -> float:
    """A float of Python; infinite for an integer that no float holds.

    Raises:
      TypeError: the value is no number. A bool or a text is none.
    """
    try:
        if not isinstance(value, bool | np.bool_ | str | bytes):
            return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except TypeError:
        pass
    raise TypeError(f"{name}: expected a number, got {_shown(value)}")


def as_integers(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Integers of Python.

    Raises:
      TypeError: the values are no sequence, or one of them is no integer.
    """
    try:
        entries = tuple(values)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of integers, got {_shown(values)}") from None
    return tuple(as_integer(f"{name}[{index}]", entry) for index, entry in enumerate(entries))


def _shown(value: Any) -> str:
    """A value in one short line."""
    return " ".join(reprlib.repr(value).split())
