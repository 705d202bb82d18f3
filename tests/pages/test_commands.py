"""The commands on the pages exist, and have the flags that they are given there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from absl.testing import absltest, parameterized

from jax_tkg.console import COMMANDS
from tests.pages import markdown

_SOURCES = {
    "jax_tkg.generate": ("jax_tkg/generate/command_flags.py",),
    "jax_tkg.profile": ("jax_tkg/profile/command.py",),
    "jax_tkg.simulator": ("jax_tkg/simulator/commands/*.py",),
}
"""Where a command's flags are defined, if not in its module."""


def _commands() -> Iterator[tuple[str, str]]:
    for page in markdown.pages():
        for language in ("", "bash"):
            for block in markdown.blocks(page, language):
                for line in block.replace("\\\n", " ").splitlines():
                    yield markdown.name_of(page), line.split("  #")[0].strip()


def _modules(name: str) -> list[str]:
    """The text of the source files of a module or command."""
    path = name.replace(".", "/")
    patterns = _SOURCES.get(name, (f"{path}.py", f"{path}/*.py"))
    return [file.read_text() for pattern in patterns for file in markdown.ROOT.glob(pattern)]


class CommandsTest(parameterized.TestCase):
    def test_modules_and_flags(self) -> None:
        seen = 0
        for page, line in _commands():
            match = re.search(r"(?:python\d? -m|jax-tkg) ([\w.-]+)(.*)", line)
            if match is None or match[1] in ("pytest", "pip", "build", "ensurepip", "COMMAND"):
                continue
            name, rest = match.groups()
            if "jax-tkg" in match[0]:
                self.assertIn(name, COMMANDS, f"{page}: {line}")
                name = f"jax_tkg.{name.replace('-', '_')}".replace(
                    "jax_tkg.check", "jax_tkg.simulator"
                )
            sources = _modules(name)
            self.assertNotEmpty(sources, f"{page}: {line}")
            for word in shlex.split(rest):
                if word.startswith("--"):
                    flag = word[2:].partition("=")[0].removeprefix("no")
                    defined = any(f'"{flag}"' in text or f'"--{flag}"' in text for text in sources)
                    self.assertTrue(defined, f"{page}: {line}: {word}")
                    seen += 1
        self.assertGreater(seen, 30)

    def test_make(self) -> None:
        makefile = (markdown.ROOT / "Makefile").read_text()
        for page, line in _commands():
            match = re.match(r"(?:\w+=\S+ )*make ([\w-]+)", line)
            if match is not None:
                self.assertRegex(makefile, rf"(?m)^{match[1]}:", f"{page}: {line}")


if __name__ == "__main__":
    absltest.main()
