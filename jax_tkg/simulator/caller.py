"""The kernel statement that is executing: the source line that errors and records refer to."""

import os
import sys

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
