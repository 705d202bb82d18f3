"""The two front ends: one reads the kernel's source from its file, the other runs the function."""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
from collections.abc import Callable
from typing import Any

from nki.framework.kernel import Kernel

FRONTENDS = ("parser", "tracer")


def chosen() -> str:
    """What NKI_COMPILER_FRONTEND says, by default the parser."""
    name = os.environ.get("NKI_COMPILER_FRONTEND") or FRONTENDS[0]
    if name not in FRONTENDS:
        raise ValueError(f"NKI_COMPILER_FRONTEND: expected one of {FRONTENDS}, got {name!r}")
    return name


def check_cores(lnc: int) -> None:
    """Refuses a launch of other cores than those that are compiled for, as from NKI 0.7 on."""
    named = os.environ.get("NEURON_LOGICAL_NC_CONFIG") or "1"
    if named != str(lnc):
        raise ValueError(f"the kernel has an LNC of {lnc}, but the compiler one of {named}")


def target() -> str:
    """The machine to compile for. Where nothing says which, the real package asks neuron-ls."""
    return os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE") or "trn3"


def function_to_compile(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function as a front end sees it: the parser trusts the file, not what is in memory."""
    if name == "tracer":
        return function
    path = inspect.getsourcefile(function)
    if path is None or not os.path.isfile(path):
        raise OSError(f"the source of {function.__name__} is in no file: {path}")
    source = pathlib.Path(path).read_text()
    tree = ast.parse(source, path)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if defined.count(function.__name__) != 1:
        raise SyntaxError(f"{path}: expected one function {function.__name__}, found {defined}")
    scope = {"__name__": function.__module__, "__file__": path}
    exec(compile(tree, path, "exec", dont_inherit=True), scope)
    found = scope[function.__name__]
    return found.func if isinstance(found, Kernel) else found
