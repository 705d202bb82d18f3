"""Pages as their readers see them: code blocks, commands, headings, links."""

from __future__ import annotations

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def pages() -> list[pathlib.Path]:
    """The Markdown pages of the repository: those of its root, and those of the site."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def name_of(page: pathlib.Path) -> str:
    """A page's path inside the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a language, "" for those without one."""
    return [code for named, code in _FENCED.findall(page.read_text()) if named == language]


def without_code(page: pathlib.Path) -> str:
    """The page's text without its code blocks."""
    return _FENCED.sub("", page.read_text())


def run(page: pathlib.Path, **names: Any) -> dict[str, Any]:
    """Runs a page's Python, all blocks in order.

    Args:
      page: the page.
      names: what its reader has defined before.

    Returns:
      The names that are defined at the end.
    """
    scope: dict[str, Any] = {"__name__": "page", **names}
    for code in blocks(page, "python"):
        exec(compile(code, name_of(page), "exec"), scope)
    return scope


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    included = re.findall(r"^```\{include\} (\S+)", page.read_text(), re.MULTILINE)
    found = set().union(*(anchors(page.parent / name) for name in included))
    for heading in re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


def links(page: pathlib.Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page))
