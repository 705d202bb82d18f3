"""Finds what NKI's compiler rejects in the source of a kernel, and in all that the kernel calls.

The simulator runs kernels as Python, so it would run anything; the compiler evaluates a subset.
Only what AWS's documentation says is reported; `language_rules` names the document of each rule.

    python -m jax_tkg.simulator.check_language package.module:kernel
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

from jax_tkg.simulator.source_check.language_rules import RULES, Rule

_ENUM_PARAMETERS = {
    "engine",
    "dge_mode",
    "oob_mode",
    "reduce_cmd",
    "perf_mode",
    "dma_engine",
}
_REMOVED_PARAMETERS = {
    "dma_copy": {"dst_rmw_op", "unique_indices"},
    "register_move": {"imm"},
    "sendrecv": {"use_gpsimd_dma"},
    "nc_matmul": {"psumAccumulateFlag"},
    "collective_permute_implicit_current_processing_rank_id": {"num_channels"},
    "jit": {"platform_target", "mode"},
}
_MODULES = {"language": "nl", "isa": "nisa", "collectives": "ncc"}
_DEVICE_LOOPS = {"dynamic_range", "fori_loop", "while_loop"}
_REMOVED_FUNCTIONS = {"tensor_copy_dynamic_src", "tensor_copy_dynamic_dst"}
_STATEMENTS = {
    "Try": "try",
    "TryStar": "try",
    "Raise": "raise",
    "Delete": "del",
    "Match": "match",
    "Yield": "yield",
    "YieldFrom": "yield",
    "Await": "await",
    "AsyncFor": "async for",
    "AsyncWith": "async with",
    "AsyncFunctionDef": "async def",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One place that the compiler rejects.

    Attributes:
      rule: which rule.
      file: path of the source file.
      line: line number.
      found: what stands there.
    """

    rule: Rule
    file: str
    line: int
    found: str

    def __str__(self) -> str:
        return (
            f"{self.file}:{self.line}: {self.rule.name}: {self.found}: {self.rule.remedy} "
            f"({'implied by ' if self.rule.implied else ''}{self.rule.source})"
        )


def check_language(kernel: Any) -> list[Finding]:
    """Checks a kernel and every function, method and class of Python source that it reaches.

    Args:
      kernel: a function, or a kernel decorated with `nki.jit`.

    Returns:
      The findings, by file and line.

    Raises:
      TypeError: the kernel has no Python source.
    """
    function = _unwrap(kernel)
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"kernel: expected a Python function, got {kernel!r}")
    pending: list[Any] = [function]
    seen: set[Any] = set()
    findings: list[Finding] = []
    while pending:
        reached = pending.pop()
        if reached in seen:
            continue
        seen.add(reached)
        source = _Source.of(reached)
        if source is None:
            continue
        findings.extend(_findings(source, is_kernel=reached is function))
        pending.extend(_reached(source))
    return sorted(set(findings), key=lambda finding: (finding.file, finding.line, finding.found))


def _unwrap(value: Any) -> Any:
    """The function of a decorated kernel."""
    while not isinstance(value, types.FunctionType | type):
        inner = getattr(value, "function", None) or getattr(value, "__wrapped__", None)
        if inner is None:
            return value
        value = inner
    return value


@dataclasses.dataclass(frozen=True)
class _Source:
    """A function's or class's syntax tree, and the names it can see."""

    tree: ast.AST
    file: str
    scope: dict[str, Any]

    @classmethod
    def of(cls, reached: Any) -> _Source | None:
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
        return cls(tree.body[0], str(file), scope)


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _reached(source: _Source) -> Iterator[Any]:
    """Functions and classes of Python source that are named in it, outside of nki itself."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Attribute):
            value = _unwrap(_value(node, source.scope))
            is_class = isinstance(value, type) and not issubclass(value, enum.Enum)
            if (isinstance(value, types.FunctionType) or is_class) and not _is_nki(value):
                yield value


def _is_nki(value: Any) -> bool:
    module = value.__module__ or ""
    return _is_nki_module(module) or module.split(".")[0] in sys.stdlib_module_names


def _value(node: ast.AST, scope: dict[str, Any]) -> Any:
    """What a dotted name stands for, or None."""
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        holder = _value(node.value, scope)
        if isinstance(holder, types.ModuleType | type):
            return getattr(holder, node.attr, None)
    return None


def _findings(source: _Source, is_kernel: bool) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        for name, found in _node_findings(node, source, is_kernel and node is source.tree):
            yield Finding(RULES[name], source.file, getattr(node, "lineno", 0), found)


def _node_findings(node: ast.AST, source: _Source, is_kernel: bool) -> Iterator[tuple[str, str]]:
    """(rule, what was found) for one node of the tree."""
    kind = type(node).__name__
    if kind in _STATEMENTS:
        yield "statement", f"`{_STATEMENTS[kind]}`"
    check = _CHECKS.get(kind)
    if check is not None:
        yield from check(node, source)
    if is_kernel and isinstance(node, ast.FunctionDef):
        yield from _kernel_signature(node)


def _check_compare(node: ast.Compare, source: _Source) -> Iterator[tuple[str, str]]:
    for operator in node.ops:
        if isinstance(operator, ast.Is | ast.IsNot):
            yield "identity", f"`{ast.unparse(node)}`"


def _check_function(node: ast.FunctionDef, source: _Source) -> Iterator[tuple[str, str]]:
    if node.args.kwonlyargs:
        names = ", ".join(argument.arg for argument in node.args.kwonlyargs)
        yield "keyword-only", f"`{names}` of {node.name}"


def _kernel_signature(node: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    for argument in node.args.args:
        annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
        if annotation.split("[")[0].split(".")[-1] in ("list", "List"):
            yield "list-argument", f"parameter `{argument.arg}: {annotation}`"
    for default in node.args.defaults:
        if isinstance(default, ast.List):
            yield "list-argument", f"default `{ast.unparse(default)}`"


def _check_class(node: ast.ClassDef, source: _Source) -> Iterator[tuple[str, str]]:
    bases = [ast.unparse(base) for base in node.bases]
    last = [base.split(".")[-1] for base in bases]
    if last not in (["NKIObject"], ["Enum"], ["IntEnum"]):
        yield "base-class", f"`class {node.name}({', '.join(bases)})`"


def _check_dict(node: ast.Dict, source: _Source) -> Iterator[tuple[str, str]]:
    for key in node.keys:
        if isinstance(key, ast.Constant) and not isinstance(key.value, str):
            yield "dictionary-key", f"`{ast.unparse(key)}`"


def _check_set(node: ast.AST, source: _Source) -> Iterator[tuple[str, str]]:
    yield "value", f"`{ast.unparse(node)}`"


def _check_constant(node: ast.Constant, source: _Source) -> Iterator[tuple[str, str]]:
    if isinstance(node.value, bytes | complex):
        yield "value", f"`{node.value!r}`"


def _check_with(node: ast.With, source: _Source) -> Iterator[tuple[str, str]]:
    for item in node.items:
        if not ast.unparse(item.context_expr).split("(")[0].endswith("no_reorder"):
            yield "statement", f"`with {ast.unparse(item.context_expr)}`"
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call):
                called = ast.unparse(inner.func)
                if called.split(".")[-1] in _DEVICE_LOOPS:
                    yield "loop-in-no-reorder", f"`{called}`"


def _check_outer(node: ast.Global | ast.Nonlocal, source: _Source) -> Iterator[tuple[str, str]]:
    keyword = type(node).__name__.lower()
    yield "outer-state", f"`{keyword} {', '.join(node.names)}`"


def _check_attribute(node: ast.Attribute, source: _Source) -> Iterator[tuple[str, str]]:
    if node.attr in _REMOVED_FUNCTIONS:
        yield "removed-function", f"`{ast.unparse(node)}`"
    if ast.unparse(node) in ("neuronxcc.nki", "neuronxcc.nki.language", "neuronxcc.nki.isa"):
        yield "old-namespace", f"`{ast.unparse(node)}`"


def _check_name(node: ast.Name, source: _Source) -> Iterator[tuple[str, str]]:
    value = source.scope.get(node.id)
    module = value.__name__ if isinstance(value, types.ModuleType) else ""
    if module.startswith("neuronxcc.nki"):
        yield "old-namespace", f"`{node.id}`, which is {module}"


def _check_import(node: ast.Import | ast.ImportFrom, source: _Source) -> Iterator[tuple[str, str]]:
    names = [alias.name for alias in node.names]
    module = getattr(node, "module", None) or ""
    if any(name.startswith("neuronxcc.nki") for name in (module, *names)):
        yield "old-namespace", f"`{ast.unparse(node)}`"


def _check_call(node: ast.Call, source: _Source) -> Iterator[tuple[str, str]]:
    called = _nki_name(node.func, source)
    name = called.split(".")[-1]
    is_nki = called.split(".")[0] in _MODULES.values()
    keywords = {keyword.arg for keyword in node.keywords}
    if is_nki and "mask" in keywords:
        yield "mask-parameter", f"`mask` of {called}"
    if called == "nisa.nc_matmul" and "is_moving_zero" in keywords:
        yield "renamed-parameter", "`is_moving_zero` of nc_matmul"
    if called == "nl.arange":
        yield "index-grid", f"`{ast.unparse(node)}`"
    seeds = [*node.args, *(k.value for k in node.keywords if k.arg == "seed")]
    if called == "nl.random_seed" and any(_is_number(seed, source) for seed in seeds):
        yield "scalar-seed", f"`{ast.unparse(node)}`"
    for keyword in node.keywords:
        yield from _check_keyword(name, keyword, source)
    if name == "affine_select" and len(node.args) > 3:
        yield "affine-select-offset", f"{len(node.args)} positional arguments"
    if called in ("nl.divide", "nl.fmod", "nl.mod"):
        yield "no-such-instruction", f"`{called}`"
    if called == "nl.power" and any(isinstance(value, ast.Constant) for value in node.args):
        yield "scalar-power", f"`{ast.unparse(node)}`"
    transposed = len(node.args) > 2 or any(k.arg == "transpose_x" for k in node.keywords)
    if called == "nl.matmul" and not transposed:
        yield "plain-matmul", f"`{ast.unparse(node)}`"
    if name == "dynamic_range":
        yield "dynamic-range", f"`{ast.unparse(node)}`"
    if name == "fori_loop":
        yield from _check_loop(node, source)


def _check_keyword(name: str, keyword: ast.keyword, source: _Source) -> Iterator[tuple[str, str]]:
    value = keyword.value
    shown = f"`{keyword.arg}={ast.unparse(value)}` of {name}"
    if keyword.arg in _ENUM_PARAMETERS and _is_number(value, source) and name != "jit":
        yield "raw-enum", shown
    if keyword.arg == "buffer" and isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield "string-buffer", shown
    if keyword.arg == "buffer" and ast.unparse(value) == "nl.hbm":
        yield "hbm-output", shown
    if keyword.arg in _REMOVED_PARAMETERS.get(name, set()):
        yield "removed-parameter", shown


def _is_number(node: ast.AST, source: _Source) -> bool:
    """Whether it is a number, written out or by the name of a constant of the module."""
    value = node.value if isinstance(node, ast.Constant) else _value(node, source.scope)
    return isinstance(value, int | float) and not isinstance(value, enum.Enum | bool)


def _nki_name(node: ast.expr, source: _Source) -> str:
    """The called name, with the usual abbreviation of its NKI module: "nl.add", "nisa.iota"."""
    if isinstance(node, ast.Attribute):
        holder = _value(node.value, source.scope)
        if isinstance(holder, types.ModuleType) and _is_nki_module(holder.__name__):
            short = _MODULES.get(holder.__name__.split(".")[-1])
            if short is not None:
                return f"{short}.{node.attr}"
    return ast.unparse(node)


def _is_nki_module(name: str) -> bool:
    return name.split(".")[0] in ("nki", "neuronxcc") or name.startswith("jax_tkg.simulator")


def _check_loop(node: ast.Call, source: _Source) -> Iterator[tuple[str, str]]:
    steps = [keyword.value for keyword in node.keywords if keyword.arg == "step"]
    if len(node.args) > 3:
        steps.append(node.args[3])
    for step in steps:
        try:
            value = ast.literal_eval(step)
        except ValueError:
            continue
        if value < 1:
            yield "loop-step", f"`step={value}`"
    body = node.args[2] if len(node.args) > 2 else None
    if isinstance(body, ast.Name):
        for definition in ast.walk(source.tree):
            if isinstance(definition, ast.FunctionDef) and definition.name == body.id:
                for inner in ast.walk(definition):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        yield "loop-result", f"`{ast.unparse(inner)}` in {body.id}"


_CHECKS: dict[str, Callable[[Any, _Source], Iterator[tuple[str, str]]]] = {
    "Compare": _check_compare,
    "FunctionDef": _check_function,
    "ClassDef": _check_class,
    "Dict": _check_dict,
    "Set": _check_set,
    "SetComp": _check_set,
    "Constant": _check_constant,
    "With": _check_with,
    "Global": _check_outer,
    "Nonlocal": _check_outer,
    "Attribute": _check_attribute,
    "Name": _check_name,
    "Import": _check_import,
    "ImportFrom": _check_import,
    "Call": _check_call,
}
