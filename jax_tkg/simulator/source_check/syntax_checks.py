"""Python's constructs that the compiler rejects, whatever the kernel calls."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterator
from typing import Any

from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.source_check.source import Source

Found = Iterator[tuple[str, str]]
"""(rule, what stands there)."""

LARGEST_INTEGER = 2**31 - 1

_STATEMENTS = {
    "Try": "try",
    "TryStar": "try",
    "Raise": "raise",
    "Delete": "del",
    "Match": "match",
    "TypeAlias": "type",
    "Yield": "yield",
    "YieldFrom": "yield",
    "Await": "await",
    "AsyncFor": "async for",
    "AsyncWith": "async with",
    "AsyncFunctionDef": "async def",
}
_BUILTINS = {
    "abs",
    "bool",
    "dict",
    "divmod",
    "float",
    "int",
    "isinstance",
    "len",
    "list",
    "max",
    "min",
    "print",
    "range",
    "slice",
    "str",
    "tuple",
    "type",
}
_RANGES = {"range", "affine_range", "sequential_range", "static_range"}
_STRING_METHODS = {name for name in dir(str) if not name.startswith("_")} - {
    # Of lists, of dictionaries or of tensors as well.
    "count",
    "index",
    "find",
    "replace",
    "partition",
    "translate",
    "expandtabs",
}
_INTEGER_METHODS = {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "to_bytes"}
_DECORATORS = {"jit", "staticmethod", "dataclass"}


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _check_statement(node: ast.AST, source: Source) -> Found:
    yield "statement", f"`{_STATEMENTS[type(node).__name__]}`"


def _check_compare(node: ast.Compare, source: Source) -> Found:
    for operator in node.ops:
        if isinstance(operator, ast.Is | ast.IsNot):
            yield "identity", _shown(node)


def _check_function(node: ast.FunctionDef, source: Source) -> Found:
    if node.args.kwonlyargs:
        names = ", ".join(argument.arg for argument in node.args.kwonlyargs)
        yield "keyword-only", f"`{names}` of {node.name}"
    for sign, starred in (("*", node.args.vararg), ("**", node.args.kwarg)):
        if starred is not None:
            yield "star-parameter", f"`{sign}{starred.arg}` of {node.name}"
    yield from _check_decorators(node)
    if source.is_kernel and node is source.tree:
        yield from _check_list_arguments(node)
    if source.inner_functions.get(node.name) is node:
        rule = "loop-body" if node in source.loop_bodies else "inner-function"
        yield rule, f"`{node.name}`"


def _check_list_arguments(node: ast.FunctionDef) -> Found:
    for argument in node.args.args:
        annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
        if annotation.split("[")[0].split(".")[-1] in ("list", "List"):
            yield "list-argument", f"parameter `{argument.arg}: {annotation}`"
    for default in node.args.defaults:
        if isinstance(default, ast.List):
            yield "list-argument", f"default {_shown(default)}"


def _check_decorators(node: ast.FunctionDef | ast.ClassDef) -> Found:
    for decorator in node.decorator_list:
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(name).split(".")[-1] not in _DECORATORS:
            yield "decorator", f"`@{ast.unparse(decorator)}` of {node.name}"


def _check_class(node: ast.ClassDef, source: Source) -> Found:
    if node is not source.tree:
        yield "inner-class", f"`class {node.name}`"
    bases = [ast.unparse(base) for base in node.bases]
    last = [base.split(".")[-1] for base in bases]
    if last not in (["NKIObject"], ["Enum"], ["IntEnum"]):
        yield "base-class", f"`class {node.name}({', '.join(bases)})`"
    yield from _check_decorators(node)
    for keyword in node.keywords:
        yield "class-body", f"`{ast.unparse(keyword)}` of class {node.name}"
    for statement in node.body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        fields = isinstance(statement, ast.Assign | ast.AnnAssign)
        if not (is_text or fields or isinstance(statement, ast.FunctionDef | ast.Pass)):
            yield "class-body", f"{_shown(statement)} in class {node.name}"


def _check_dict(node: ast.Dict, source: Source) -> Found:
    for key in node.keys:
        if key is None:
            yield "star-argument", _shown(node)
        elif not isinstance(key, ast.Constant):
            yield "dictionary-name", _shown(key)
        elif not isinstance(key.value, str):
            yield "dictionary-key", _shown(key)


def _check_set(node: ast.Set, source: Source) -> Found:
    yield "value", _shown(node)


def _check_comprehension(node: ast.AST, source: Source) -> Found:
    yield "comprehension", _shown(node)


def _check_lambda(node: ast.Lambda, source: Source) -> Found:
    yield "lambda", _shown(node)


def _check_walrus(node: ast.NamedExpr, source: Source) -> Found:
    yield "walrus", _shown(node)


def _check_starred(node: ast.Starred, source: Source) -> Found:
    yield "star-argument", _shown(node)


def _check_operator(node: ast.BinOp | ast.AugAssign, source: Source) -> Found:
    if isinstance(node.op, ast.MatMult):
        yield "matrix-operator", _shown(node)


def _check_constant(node: ast.Constant, source: Source) -> Found:
    if isinstance(node.value, bytes | complex):
        yield "value", f"`{node.value!r}`"
    elif _is_too_large(node.value):
        yield "large-integer", f"`{node.value!r}`"


def _is_too_large(value: Any) -> bool:
    return type(value) is int and not -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER


def _check_format(node: ast.FormattedValue, source: Source) -> Found:
    if node.format_spec is not None:
        yield "format-specification", _shown(ast.JoinedStr([node]))


def _check_with(node: ast.With, source: Source) -> Found:
    for item in node.items:
        context = item.context_expr
        is_call = isinstance(context, ast.Call)
        if not (isinstance(context, ast.Call) and _last_name(context) == "no_reorder"):
            yield "statement", f"`with {ast.unparse(context)}`"
        elif is_call and (context.args or context.keywords or item.optional_vars is not None):
            yield "statement", f"`with {ast.unparse(item)}`"


def _last_name(call: ast.Call) -> str:
    return ast.unparse(call.func).split(".")[-1]


def _check_outer(node: ast.Global | ast.Nonlocal, source: Source) -> Found:
    yield "outer-state", f"`{type(node).__name__.lower()} {', '.join(node.names)}`"


def _check_import(node: ast.Import | ast.ImportFrom, source: Source) -> Found:
    yield "inner-import", _shown(node)


def _check_for(node: ast.For, source: Source) -> Found:
    if not isinstance(node.target, ast.Name):
        yield "loop-target", f"`for {ast.unparse(node.target).strip('()')} in ...`"
    yield from _check_else(node, "for")
    yield from _early_attributes(node.iter)


def _check_while(node: ast.While, source: Source) -> Found:
    yield from _check_else(node, "while")
    yield from _early_attributes(node.test)


def _check_else(node: ast.For | ast.While, keyword: str) -> Found:
    if node.orelse:
        yield "loop-else", f"`else` of `{keyword}`"


def _check_if(node: ast.If, source: Source) -> Found:
    yield from _early_attributes(node.test)


def _check_conditional(node: ast.IfExp, source: Source) -> Found:
    for branch in (node.body, node.orelse):
        yield from _early_attributes(branch)


def _check_boolean(node: ast.BoolOp, source: Source) -> Found:
    for operand in node.values[1:]:
        yield from _early_attributes(operand)


def _early_attributes(expression: ast.expr) -> Found:
    """The attributes that the compiler reads from a temporary, assigned before the statement."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Name | ast.Attribute):
            yield "early-attribute", _shown(node)


def _check_assignment(node: ast.Assign, source: Source) -> Found:
    mutated = [t for t in node.targets if isinstance(t, ast.Attribute | ast.Subscript)]
    if len(mutated) > 1:
        yield "chained-assignment", _shown(node)
    for target in node.targets:
        yield from _check_target(target, source)


def _check_other_assignment(node: ast.AugAssign | ast.AnnAssign, source: Source) -> Found:
    if isinstance(node, ast.AugAssign):
        yield from _check_operator(node, source)
    yield from _check_target(node.target, source)


def _check_target(target: ast.expr, source: Source) -> Found:
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Attribute):
        yield "nested-assignment", _shown(target)
    if isinstance(target, ast.Subscript):
        several = isinstance(target.slice, ast.Tuple | ast.Slice)
        several |= isinstance(target.slice, ast.Constant) and target.slice.value is Ellipsis
        named = isinstance(target.value, ast.Name) and target.value.id in source.tensors
        if several or named:
            yield "tile-assignment", _shown(target)
    if isinstance(target, ast.List) or (isinstance(target, ast.Tuple) and not _unpacks(target)):
        yield "unpack-target", _shown(target)


def _unpacks(target: ast.Tuple) -> bool:
    """Whether it consists of names, or of such tuples; stars have a rule of their own."""
    return all(
        _unpacks(entry)
        if isinstance(entry, ast.Tuple)
        else isinstance(entry, ast.Name | ast.Starred)
        for entry in target.elts
    )


def _check_name(node: ast.Name, source: Source) -> Found:
    if not isinstance(node.ctx, ast.Load):
        return
    if source.is_builtin(node):
        if node.id == "sorted":
            yield "sort", "`sorted`"
        elif node.id not in _BUILTINS:
            yield "builtin", f"`{node.id}`"
    if _is_too_large(source.value(node)):
        yield "large-integer", f"`{node.id}`, which is {source.value(node)}"


def _check_attribute(node: ast.Attribute, source: Source) -> Found:
    if _is_too_large(source.value(node)):
        yield "large-integer", f"{_shown(node)}, which is {source.value(node)}"
    function = source.tree
    if source.is_kernel and isinstance(function, ast.FunctionDef):
        holder = node.value
        if (
            isinstance(node.ctx, ast.Load)
            and isinstance(holder, ast.Attribute)
            and isinstance(holder.value, ast.Name)
            and holder.value.id in {argument.arg for argument in function.args.args}
            and not hasattr(NkiTensor, node.attr)
        ):
            yield "nested-argument", _shown(node)


def _check_call(node: ast.Call, source: Source) -> Found:
    if any(keyword.arg is None for keyword in node.keywords):
        yield "star-argument", _shown(node)
    name = _last_name(node)
    if isinstance(node.func, ast.Name):
        plain = source.is_builtin(node.func)
        if plain and name in ("min", "max") and (len(node.args) not in (1, 2) or node.keywords):
            yield "many-values", _shown(node)
        if name in source.inner_functions:
            yield "inner-call", _shown(node)
    is_range = source.is_builtin(node.func) or source.nki_name(node.func) == f"nl.{name}"
    if name in _RANGES and is_range:
        above = source.parent(node)
        if not (isinstance(above, ast.For) and above.iter is node):
            yield "range-value", _shown(node)
    if isinstance(node.func, ast.Attribute):
        yield from _check_method(node, node.func, source)


def _check_method(node: ast.Call, function: ast.Attribute, source: Source) -> Found:
    name = function.attr
    receiver = function.value
    literal = receiver.value if isinstance(receiver, ast.Constant) else None
    if isinstance(source.value(receiver), types.ModuleType | type) or name in source.own_methods:
        return
    if name == "sort":
        yield "sort", _shown(node)
    if name == "insert":
        yield "list-insert", _shown(node)
    if name == "pop" and len(node.args) == 1 and _is_integer(node.args[0]):
        yield "list-pop", _shown(node)
    is_string = isinstance(literal, str) or isinstance(receiver, ast.JoinedStr)
    if is_string or name in _STRING_METHODS:
        yield "string-method", _shown(node)
    if name in _INTEGER_METHODS or (isinstance(literal, int) and not isinstance(literal, bool)):
        yield "integer-method", _shown(node)


def _is_integer(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


CHECKS: dict[str, Callable[[Any, Source], Found]] = {
    **dict.fromkeys(_STATEMENTS, _check_statement),
    "Compare": _check_compare,
    "FunctionDef": _check_function,
    "ClassDef": _check_class,
    "Dict": _check_dict,
    "Set": _check_set,
    "ListComp": _check_comprehension,
    "SetComp": _check_comprehension,
    "DictComp": _check_comprehension,
    "GeneratorExp": _check_comprehension,
    "Lambda": _check_lambda,
    "NamedExpr": _check_walrus,
    "Starred": _check_starred,
    "BinOp": _check_operator,
    "AugAssign": _check_other_assignment,
    "Constant": _check_constant,
    "FormattedValue": _check_format,
    "With": _check_with,
    "Global": _check_outer,
    "Nonlocal": _check_outer,
    "Import": _check_import,
    "ImportFrom": _check_import,
    "For": _check_for,
    "While": _check_while,
    "If": _check_if,
    "IfExp": _check_conditional,
    "BoolOp": _check_boolean,
    "Assign": _check_assignment,
    "AnnAssign": _check_other_assignment,
    "Name": _check_name,
    "Attribute": _check_attribute,
    "Call": _check_call,
}
"""By kind of node."""
