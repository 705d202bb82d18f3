"""Progress bars on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich import console as rich_console
from rich import progress as rich_progress

Bar = Callable[[int, int], None]
"""Shows how much is done, and of how much."""


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str], Bar]]:
    """A function that makes a bar with a title; nothing is shown where there is no terminal."""
    console = rich_console.Console(stderr=True)
    shown = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def bar(title: str) -> Bar:
        task = shown.add_task(title, total=None)
        return lambda done, total: shown.update(task, completed=done, total=total)

    with shown:
        yield bar
