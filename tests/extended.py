"""The mark `extended_except`: all cases of a parameterized test are `extended` but those named.

Cases are named as absl does: by their numbers ("0"), or by their names where they have some.
`*` stands for any text.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import pytest


def _case(test: str, function: object) -> str:
    """What absl appended to the name of a method: a number, or a name."""
    method = getattr(function, "__wrapped__", function)
    return test.removeprefix(getattr(method, "__name__", test)).removeprefix("_")


def _cases(cls: type, function: object) -> list[str]:
    """The cases of the method that `function` is one case of."""
    method = getattr(function, "__wrapped__", function)
    every = ((name, getattr(cls, name)) for name in dir(cls) if name.startswith("test"))
    return [_case(name, each) for name, each in every if getattr(each, "__wrapped__", 0) is method]


def add_marks(items: Iterable[pytest.Item]) -> None:
    """Marks the cases that `extended_except` does not name.

    Raises:
      pytest.UsageError: a mark names a case that its test does not have.
    """
    for item in items:
        mark = item.get_closest_marker("extended_except")
        if mark is None:
            continue
        cls = getattr(item, "cls", None)
        function = getattr(cls, item.name, None)
        cases = _cases(cls, function) if cls is not None else []
        for kept in mark.args:
            if not fnmatch.filter(cases, kept):
                raise pytest.UsageError(
                    f"{item.nodeid}: extended_except: expected one of the cases "
                    f"{', '.join(cases) or '(none)'}, got {kept!r}"
                )
        case = _case(item.name, function)
        if not any(fnmatch.fnmatchcase(case, kept) for kept in mark.args):
            item.add_marker(pytest.mark.extended)
