"""The kernel statement that is executing: the source line that errors and records refer to."""

import functools
import os
import pathlib
import sys
import types
from typing import NamedTuple

import numpy as np

_NUMPY = os.path.dirname(np.__file__) + os.sep

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def caller() -> tuple[str, int]:
    """Returns the file and line of the innermost frame outside the simulator.

    While a kernel runs, that is the kernel's statement. Without such a frame, the result is
    ("<unknown>", 0).
    """
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_PACKAGE):
            return filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "<unknown>", 0


def running_functions() -> tuple[tuple[str, str], ...]:
    """The functions outside the simulator that are executing, innermost first.

    Returns:
      Of each the name of its file, without folders and ending, and its own name.
    """
    frame = sys._getframe(1)
    codes = []
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            codes.append(code)
        frame = frame.f_back  # type: ignore[assignment]
    return _names(tuple(codes))


@functools.lru_cache(maxsize=4096)
def _names(codes: tuple[types.CodeType, ...]) -> tuple[tuple[str, str], ...]:
    """One tuple for all instructions of a function, which are many."""
    return tuple((pathlib.PurePath(code.co_filename).stem, code.co_name) for code in codes)


class Call(NamedTuple):
    """A call from a kernel into the simulator.

    Attributes:
      file, line: of the kernel's statement.
      called: the frame of the simulator's function.
    """

    file: str
    line: int
    called: types.FrameType


def failed_call(error: BaseException) -> Call | None:
    """The kernel's call in which the simulator raised an error.

    None where the kernel itself raised it.
    """
    found: Call | None = None
    statement: tuple[str, int] | None = None
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            if statement is not None and found is None:
                found = Call(*statement, traceback.tb_frame)
        elif not file.startswith(_NUMPY):
            # A statement of the kernel, perhaps in a function that the simulator called.
            found, statement = None, (file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found
