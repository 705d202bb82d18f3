"""Which modules of the package import which, read from their source."""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "jax_tkg"


def module_name(path: pathlib.Path) -> str:
    """The dotted name of a source file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Every module of the package with its file."""
    return {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def is_inside(module: str) -> bool:
    """Whether a module belongs to the package."""
    return module.split(".")[0] == PACKAGE


def imported(module: str) -> Iterator[str]:
    """The modules that a module imports; from outside of the package, their first names.

    All imports count, also those inside functions and under TYPE_CHECKING.
    """
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            source = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            names = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, name in names:
            if not is_inside(source):
                yield source.split(".")[0]
            elif f"{source}.{name}" in modules():
                yield f"{source}.{name}"
            else:
                assert source in modules(), f"{module} imports {source}, which is no module"
                yield source
