"""Running one of the package's commands: its flags, its messages, its exit code.

A command ends with exit code 0, a check that finds something with 1; or with one line on standard
error and

- 1 where the flags, the model or the installation are wrong, or the output cannot be written;
- 130 after Ctrl-C;
- 141, without a line, when whoever reads the output has closed the pipe, as `head` does. (Programs
  that the signal SIGPIPE ends have this exit code in a shell.)

This is the one place that knows that the packages of an extra may not be installed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from jax_tkg.errors import UserError

if TYPE_CHECKING:
    from absl import flags

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal SIGINT."""

XLA_LOG = "TF_CPP_MIN_LOG_LEVEL"
"""XLA's variable for which of its own messages are written. Programs from JAX's compilation cache
are reported as errors, 30 KB each, though they were compiled on the same processor (openxla/xla
issue 44565). What fails is raised as an exception in any case."""

FATAL_ONLY = "3"
"""Its value for no messages but those before XLA ends the process."""

PIPE_CLOSED = 141
"""Exit code when nobody reads the output any more: 128 and the number of the signal SIGPIPE."""


class CommandError(UserError):
    """A command cannot do what it was asked to; the message is one line."""


def run(module: str, extra: str) -> NoReturn:
    """Runs a command with the program's arguments and exits.

    Args:
      module: name of the command's module. It has a docstring that says what the command is and
        how it is called, `define_flags(values)`, which defines its flags in an absl FlagValues,
        and `main(values)`, which runs it.
      extra: the extra of the package that installs what the module imports.
    """
    exit_after(lambda: call(module, extra, sys.argv[1:]))


def exit_after(main: Callable[[], int | None]) -> NoReturn:
    """Calls a function and exits: with what it returns, or as this module's docstring says."""
    try:
        ended = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(ended)
    except KeyboardInterrupt:
        note("")
        code = INTERRUPTED
    except BrokenPipeError:
        code = PIPE_CLOSED
    except UserError as error:
        note("error: " + " ".join(str(error).split()))
        code = 1
    except OSError as error:
        where = error.filename or "output"
        note(f"error: {where}: {error.strerror or error}")
        code = 1
    # Without Python's own end: threads may still compile, for which it waits and in which JAX
    # crashes after Ctrl-C, and it would write again what could not be written.
    os._exit(code)


def say(text: str, end: str = "\n") -> None:
    """Writes to standard output at once; characters that its encoding lacks come out as "?".

    Raises:
      BrokenPipeError: nobody reads it any more.
      CommandError: it cannot be written, as on a full device.
    """
    if sys.stdout is None:
        raise CommandError("standard output: expected an open file, got a closed one")
    encoding = sys.stdout.encoding
    try:
        print(text.encode(encoding, "replace").decode(encoding), end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"standard output: {error.strerror}") from error


def check_output_file(flag: str, path: str, suffix: str = "") -> None:
    """Checks that a command that takes long can write a file at its end; writes nothing.

    Args:
      flag: that names the file, "--plot".
      path: of the file.
      suffix: what its name ends in.

    Raises:
      CommandError: it cannot; the message names the flag.
    """
    if not path.lower().endswith(suffix):
        raise CommandError(f"{flag}: expected a name that ends in {suffix}, got {path!r}")
    place = pathlib.Path(path)
    problem = 0
    try:
        place.stat()
        if place.is_dir():
            problem = errno.EISDIR
        elif not os.access(place, os.W_OK):
            problem = errno.EACCES
    except FileNotFoundError:
        folder = place.parent
        if not folder.is_dir():
            problem = errno.ENOENT
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = errno.EACCES
    except OSError as error:
        problem = error.errno or errno.EIO
    if problem:
        raise CommandError(
            f"{flag}: expected a file that can be written, got {path!r} ({os.strerror(problem)})"
        )


def note(line: str) -> None:
    """Writes a line to standard error, where that is possible."""
    if sys.stderr is not None:
        # Where it cannot be written there is nobody to tell.
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def call(module: str, extra: str, arguments: Sequence[str]) -> None:
    """Runs a command with the given arguments; see `run`.

    XLA writes no messages of its own unless `XLA_LOG` is set already.

    Raises:
      CommandError: a flag is wrong or a package is missing; or the command raises it.
    """
    # Before JAX is loaded, which reads it then.
    os.environ.setdefault(XLA_LOG, FATAL_ONLY)
    try:
        from absl import flags

        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == __name__.partition(".")[0]:
            raise
        raise CommandError(
            f"the package {missing!r} is not installed; this command needs the extra {extra!r}: "
            f'pip install "jax_tkg[{extra}]"'
        ) from error
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    command.define_flags(values)
    try:
        rest = values([module, *arguments])[1:]
    except flags.Error as error:
        raise CommandError(" ".join(str(error).split())) from None
    if values.help:
        say(_help(command, values))
        return
    if rest:
        raise CommandError(f"expected flags only, got {rest[0]!r}; see --help")
    command.main(values)


def _help(command: types.ModuleType, values: flags.FlagValues) -> str:
    """The command's docstring and its flags."""
    described = values.get_help(include_special_flags=False)
    # The flags are grouped by the module that defines them, which tells users nothing.
    lines = [line for line in described.splitlines() if line.startswith(" ")]
    return "\n".join([(command.__doc__ or "").strip(), "", "Flags:", *lines])
