"""One fault: a text of the source and what replaces it."""

from __future__ import annotations

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One way to break the package.

    Attributes:
      name: what is broken.
      file: of the package, relative to `jax_tkg`.
      old: text that occurs once in the file.
      new: its replacement.
      tests: what must fail, as arguments of pytest relative to `tests`: files or test ids.
      survives: why no test can notice it; empty for a mutation that tests must notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    def path(self, root: pathlib.Path) -> pathlib.Path:
        """The file in a copy of the project."""
        return root / "jax_tkg" / self.file

    def applied(self, source: str) -> str:
        """The source with the fault.

        Raises:
          ValueError: the text to replace does not occur exactly once.
        """
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: the text to replace occurs {source.count(self.old)} times in "
                f"jax_tkg/{self.file}, expected 1: {self.old!r}"
            )
        return source.replace(self.old, self.new)
