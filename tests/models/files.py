"""Temporary folders for test cases run by pytest, which parses no absl flags."""

from __future__ import annotations

import pathlib
import tempfile
import unittest


def folder(test: unittest.TestCase) -> pathlib.Path:
    """A folder that is removed when the test ends."""
    temporary = tempfile.TemporaryDirectory()
    test.addCleanup(temporary.cleanup)
    return pathlib.Path(temporary.name)
