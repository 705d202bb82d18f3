"""The parameters of a function, read from its source file. Importing it would need nki."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import pathlib


@dataclasses.dataclass(frozen=True)
class Signature:
    """Names of a function's parameters.

    Attributes:
      names: all, in order.
      required: those without a default.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]


def signature_in(path: pathlib.Path, function: str) -> Signature | None:
    """The signature of a function that a file defines, or None if it defines no such function."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            names = tuple(argument.arg for argument in node.args.args)
            return Signature(names, names[: len(names) - len(node.args.defaults)])
    return None


def source_file(module: str) -> pathlib.Path | None:
    """The file of a module, found without importing the packages that it is in."""
    package, *parts = module.split(".")
    specification = importlib.util.find_spec(package)
    if specification is None or not specification.submodule_search_locations:
        return None
    path = pathlib.Path(specification.submodule_search_locations[0], *parts).with_suffix(".py")
    return path if path.is_file() else None
