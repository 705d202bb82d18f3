"""What a call refuses when it is traced, as an error of the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jax_tkg.command_line import CommandError
from jax_tkg.models.errors import ModelError, one_line


@contextlib.contextmanager
def trace_errors() -> Iterator[None]:
    """Makes a CommandError of a ValueError, whose message names the argument that is wrong."""
    try:
        yield
    except ModelError:
        raise
    except ValueError as error:
        flag = "--" if str(error).startswith("implementation:") else ""
        raise CommandError(flag + one_line(error)) from error
