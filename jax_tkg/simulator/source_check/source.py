"""The source of a function or class that a kernel reaches, and what its names stand for."""

from __future__ import annotations

import ast
import builtins
import collections
import dataclasses
import enum
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

_MODULES = {"language": "nl", "isa": "nisa", "collectives": "ncc"}

DEVICE_LOOPS = {"dynamic_range", "fori_loop", "while_loop"}
"""Functions of nki.language that loop on the device."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The syntax tree of a function or class.

    Attributes:
      tree: a FunctionDef or ClassDef.
      file: path of the file.
      scope: the values of the names that it can see outside itself.
      is_kernel: whether it is the kernel under check, and not something that the kernel calls.
    """

    tree: ast.stmt
    file: str
    scope: dict[str, Any]
    is_kernel: bool = False

    @classmethod
    def of(cls, reached: Any, is_kernel: bool = False) -> Source | None:
        """The source of a function or class; None if there is none."""
        try:
            lines, first = inspect.getsourcelines(reached)
            file = inspect.getsourcefile(reached)
        except (OSError, TypeError):
            return None
        tree = ast.parse(textwrap.dedent("".join(lines)))
        # Line 1 of the snippet is line `first` of the file.
        ast.increment_lineno(tree, max(first, 1) - 1)
        if isinstance(reached, type):
            scope = dict(vars(sys.modules[reached.__module__]))
        else:
            scope = dict(reached.__globals__)
            if reached.__closure__:
                cells = zip(reached.__code__.co_freevars, reached.__closure__, strict=True)
                scope.update({name: cell.cell_contents for name, cell in cells if _filled(cell)})
        return cls(tree.body[0], str(file), scope, is_kernel)

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """The nodes that the compiler evaluates.

        Not among them: decorators, base classes, annotations of parameters and results, and the
        values of class attributes, which Python has evaluated before.
        """
        return tuple(_evaluated(self.tree))

    @functools.cached_property
    def _parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds `node`."""
        return self._parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around `node`, from the inside out."""
        above = self.parent(node)
        while above is not None:
            yield above
            above = self.parent(above)

    @functools.cached_property
    def _bound(self) -> dict[ast.AST | None, set[str]]:
        """Per function in it, the names of its parameters and of what is assigned or defined."""
        bound: dict[ast.AST | None, set[str]] = collections.defaultdict(set)
        for node in self.nodes:
            name = None
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name
            if name is not None:
                bound[self._function(node)].add(name)
        return bound

    def _function(self, node: ast.AST) -> ast.AST | None:
        """The innermost function around a node."""
        around = (above for above in self.ancestors(node) if isinstance(above, ast.FunctionDef))
        return next(around, None)

    def is_local(self, name: ast.Name) -> bool:
        """Whether a name is a parameter, or assigned or defined, in the functions around it."""
        function = self._function(name)
        while function is not None:
            if name.id in self._bound[function]:
                return True
            function = self._function(function)
        return False

    @functools.cached_property
    def tensors(self) -> frozenset[str]:
        """Names that are assigned nothing but new tensors of nki.language."""
        makers = {"nl.ndarray", "nl.zeros", "nl.ones", "nl.full", "nl.empty_like", "nl.zeros_like"}
        made: set[str] = set()
        others: set[str] = set()
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                value = node.value
                is_tensor = isinstance(value, ast.Call) and self.nki_name(value.func) in makers
                for target in node.targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                            whole = name is target
                            (made if is_tensor and whole else others).add(name.id)
        return frozenset(made - others)

    def value(self, node: ast.AST) -> Any:
        """What a dotted name stands for, or None."""
        if isinstance(node, ast.Name):
            return None if self.is_local(node) else self.scope.get(node.id)
        if isinstance(node, ast.Attribute):
            holder = self.value(node.value)
            if isinstance(holder, types.ModuleType | type):
                return getattr(holder, node.attr, None)
        return None

    def is_builtin(self, node: ast.AST) -> bool:
        """Whether a name is one of Python's own, not hidden by another of that name."""
        return (
            isinstance(node, ast.Name)
            and not self.is_local(node)
            and node.id not in self.scope
            and hasattr(builtins, node.id)
        )

    def nki_name(self, node: ast.expr) -> str:
        """The name with the usual abbreviation of its NKI module: "nl.add", "nisa.iota"."""
        if isinstance(node, ast.Attribute):
            holder = self.value(node.value)
            if isinstance(holder, types.ModuleType) and is_nki_module(holder.__name__):
                short = _MODULES.get(holder.__name__.split(".")[-1])
                if short is not None:
                    return f"{short}.{node.attr}"
        return ast.unparse(node)

    @functools.cached_property
    def own_methods(self) -> frozenset[str]:
        """Names of methods of the classes that it can see."""
        found: set[str] = set()
        if isinstance(self.tree, ast.ClassDef):
            found.update(node.name for node in self.tree.body if isinstance(node, ast.FunctionDef))
        for value in self.scope.values():
            if isinstance(value, type) and not is_nki(value) and not _is_standard(value):
                found.update(vars(value))
        return frozenset(found)

    @functools.cached_property
    def inner_functions(self) -> dict[str, ast.FunctionDef]:
        """The functions defined inside it, methods apart, by name."""
        return {
            node.name: node
            for node in self.nodes
            if isinstance(node, ast.FunctionDef)
            and node is not self.tree
            and not isinstance(self.parent(node), ast.ClassDef)
        }

    @functools.cached_property
    def loop_bodies(self) -> dict[ast.AST, str]:
        """Of these, the bodies of loops on the device, with "fori_loop" or "while_loop"."""
        found: dict[ast.AST, str] = {}
        if not self.inner_functions:
            return found
        for node in self.nodes:
            if not isinstance(node, ast.Call):
                continue
            called = self.nki_name(node.func).split(".")[-1]
            if called in ("fori_loop", "while_loop"):
                for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                    if isinstance(argument, ast.Name) and argument.id in self.inner_functions:
                        found[self.inner_functions[argument.id]] = called
        return found

    def reached(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of the functions and classes that it names, outside of nki itself."""
        for node in self.nodes:
            if isinstance(node, ast.Name | ast.Attribute):
                value = unwrap(self.value(node))
                is_class = isinstance(value, type) and not issubclass(value, enum.Enum)
                if (isinstance(value, types.FunctionType) or is_class) and not (
                    is_nki(value) or _is_standard(value)
                ):
                    yield ast.unparse(node), value


def unwrap(value: Any) -> Any:
    """The function of a decorated kernel."""
    # A module answers a missing name with a search for similar ones.
    while not isinstance(value, types.FunctionType | type | types.ModuleType):
        inner = getattr(value, "function", None) or getattr(value, "__wrapped__", None)
        if inner is None:
            return value
        value = inner
    return value


def is_nki_module(name: str) -> bool:
    """Whether a module of this name is NKI's or the simulator's."""
    return name.split(".")[0] in ("nki", "neuronxcc") or name.startswith("jax_tkg.simulator")


def is_nki(value: Any) -> bool:
    """Whether a function or class is NKI's or the simulator's."""
    return is_nki_module(value.__module__ or "")


def _is_standard(value: Any) -> bool:
    return (value.__module__ or "").split(".")[0] in sys.stdlib_module_names


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _evaluated(node: ast.AST, in_class: bool = False) -> Iterator[ast.AST]:
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("decorator_list", "bases", "returns") or (
            isinstance(node, ast.arg) and field == "annotation"
        ):
            continue
        in_field = in_class and isinstance(node, ast.Assign | ast.AnnAssign)
        if in_field and field not in ("target", "targets"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _evaluated(child, isinstance(node, ast.ClassDef))
