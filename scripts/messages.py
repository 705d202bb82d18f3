"""The messages that the package raises, read from its source, and those that a page explains.

In both, "…" stands for what differs: names, numbers, lists.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"

ELSEWHERE = ("simulator", "kernels")
"""Rooms whose messages are about a kernel: docs/simulator_rules.md lists them."""

SECTIONS = {
    "Arguments of transformer_tkg": ("call",),
    "What a call lowers to": ("lowering", "hardware.py"),
    "Models": ("models",),
    "Commands": (
        *("command_line.py", "console.py", "doctor.py", "fetch_model.py", "generate", "profile"),
        "user_cache.py",
    ),
    "Helpers": None,
}
"""The page's sections, and the rooms whose messages each explains; None: all that are left."""

ANY = "…"

_INTERNAL = ("AssertionError", "TemplateError", "KeyError", "NotImplementedError")
"""Exceptions that no user meets: they are caught, or say that the package is wrong."""


def _text(node: ast.expr) -> str | None:
    """A message with placeholders; None for what is no literal."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else ANY for v in node.values)
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp):
        left, right = _text(node.left), _text(node.right)
        return f"{left or ANY}{right or ANY}" if left or right else None
    return None


def _raised(call: ast.Call) -> str | None:
    """The message of an exception that is made here, or None where it is made elsewhere."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if not name[:1].isupper() and not name.endswith(("error", "_failed")):
        return None
    if name in _INTERNAL or not call.args:
        return None
    texts = [_text(argument) for argument in call.args]
    if name == "ConfigError":
        return f"{texts[0] or ANY}: {texts[1] or ANY}"
    if name == "error":
        # Of a key in a file: the file and the key come before, what the file has comes after.
        return f"{ANY}: {ANY}: expected {texts[-1] or ANY}, got {ANY}"
    if name == "_error":
        return f"{ANY}: chat template: {texts[-1]}"
    if name == "_failed":
        return f"{ANY}: chat template: expected {ANY}, got {ANY}"
    return texts[-1]


def section_of(where: pathlib.PurePath) -> str:
    """The section of the page that explains the messages of a source file of the package."""
    rest = "Helpers"
    for section, rooms in SECTIONS.items():
        if rooms is not None and where.parts[0] in rooms:
            return section
    return rest


def raised() -> Iterator[tuple[str, str, str]]:
    """Every message: its section, file and line, and the message; without those of `ELSEWHERE`."""
    package = ROOT / "jax_tkg"
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package)
        if where.parts[0] in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                message = _raised(node.exc)
                # What is left without letters passes on another's message.
                if message is not None and re.search("[a-z]", message):
                    yield section_of(where), f"{where}:{node.lineno}", message


def explained() -> Iterator[tuple[str, str]]:
    """The messages in the tables of the page, each with its section."""
    for text in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        section, _, body = text.partition("\n")
        if section in SECTIONS:
            for row in re.findall(r"^\| `(.*?[^\\])` \| ", body, re.MULTILINE):
                yield section, row.replace("\\`", "`")


def pattern(row: str) -> re.Pattern[str]:
    """What a row of the page stands for."""
    return re.compile(".*".join(map(re.escape, row.split(ANY))), re.DOTALL)
