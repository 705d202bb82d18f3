"""All commands under one name: `jax-tkg COMMAND`, or `python -m jax_tkg COMMAND`.

A command's own page is `jax-tkg COMMAND --help`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jax_tkg import command_line
from jax_tkg.command_line import CommandError


def run() -> NoReturn:
    """Runs the command that the program's arguments name, and exits."""
    command_line.exit_after(lambda: main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs a command.

    Returns:
      Its exit code.

    Raises:
      CommandError: there is no such command; or the command raises it.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = [f"  {name:12} {about}" for name, (about, _) in COMMANDS.items()]
        command_line.say("\n".join([(__doc__ or "").strip(), "", "Commands:", *lines]))
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise CommandError(
            f"expected a command, {', '.join(COMMANDS)}, got {name!r}; see jax-tkg --help"
        )
    _, command = COMMANDS[name]
    return command(rest) or 0


def _generate(arguments: Sequence[str]) -> None:
    command_line.call("jax_tkg.generate.command", "models", arguments)


def _profile(arguments: Sequence[str]) -> None:
    command_line.call("jax_tkg.profile.command", "profile", arguments)


def _check(arguments: Sequence[str]) -> int:
    from jax_tkg.simulator.commands import main as simulator

    return simulator.main(["check", *arguments])


def _doctor(arguments: Sequence[str]) -> int:
    from jax_tkg import doctor

    return doctor.main(arguments)


def _fetch_model(arguments: Sequence[str]) -> None:
    from jax_tkg import fetch_model

    if arguments:
        if arguments[0] not in ("-h", "--help"):
            raise CommandError(f"expected no arguments, got {arguments[0]!r}")
        command_line.say((fetch_model.__doc__ or "").strip())
        return
    fetch_model.main()


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int | None]]] = {
    "generate": ("A model writes text, or talks.", _generate),
    "profile": ("Modeled speed of one layer of a model on Trainium.", _profile),
    "check": ("What AWS's compiler rejects in a kernel.", _check),
    "doctor": ("What is installed, what a call lowers to, and what to do next.", _doctor),
    "fetch-model": ("Downloads the model of the demo.", _fetch_model),
}
"""What each command is for, and what runs it."""
