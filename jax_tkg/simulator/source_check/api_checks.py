"""Calls of NKI's functions that the compiler rejects."""

from __future__ import annotations

import ast
import enum
import types
from collections.abc import Callable, Iterator
from typing import Any

from jax_tkg.simulator.source_check.source import DEVICE_LOOPS, Source
from jax_tkg.simulator.source_check.syntax_checks import Found

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
_REMOVED_FUNCTIONS = {"tensor_copy_dynamic_src", "tensor_copy_dynamic_dst"}


def _check_with(node: ast.With, source: Source) -> Found:
    for item in node.items:
        if not ast.unparse(item.context_expr).split("(")[0].endswith("no_reorder"):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call):
                called = ast.unparse(inner.func)
                if called.split(".")[-1] in DEVICE_LOOPS:
                    yield "loop-in-no-reorder", f"`{called}`"


def _check_attribute(node: ast.Attribute, source: Source) -> Found:
    if node.attr in _REMOVED_FUNCTIONS:
        yield "removed-function", f"`{ast.unparse(node)}`"
    if ast.unparse(node) in ("neuronxcc.nki", "neuronxcc.nki.language", "neuronxcc.nki.isa"):
        yield "old-namespace", f"`{ast.unparse(node)}`"


def _check_name(node: ast.Name, source: Source) -> Found:
    value = source.scope.get(node.id)
    module = value.__name__ if isinstance(value, types.ModuleType) else ""
    if module.startswith("neuronxcc.nki"):
        yield "old-namespace", f"`{node.id}`, which is {module}"
    if not isinstance(node.ctx, ast.Load) and _is_loop_variable(node, source):
        yield "loop-variable", f"assignment to `{node.id}`"


def _check_import(node: ast.Import | ast.ImportFrom, source: Source) -> Found:
    names = [alias.name for alias in node.names]
    module = getattr(node, "module", None) or ""
    if any(name.startswith("neuronxcc.nki") for name in (module, *names)):
        yield "old-namespace", f"`{ast.unparse(node)}`"


def _check_call(node: ast.Call, source: Source) -> Found:
    called = source.nki_name(node.func)
    name = called.split(".")[-1]
    is_nki = called.split(".")[0] in ("nl", "nisa", "ncc")
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
        yield from _check_step(node)
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    is_select = isinstance(node.func, ast.Attribute) and node.func.attr == "select"
    if is_select and any(_is_loop_variable(value, source) for value in given):
        yield "register-select", f"`{ast.unparse(node)}`"


def _check_keyword(name: str, keyword: ast.keyword, source: Source) -> Found:
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


def _is_number(node: ast.AST, source: Source) -> bool:
    """Whether it is a number, written out or by the name of a constant of the module."""
    value = node.value if isinstance(node, ast.Constant) else source.value(node)
    return isinstance(value, int | float) and not isinstance(value, enum.Enum | bool)


def _check_step(node: ast.Call) -> Found:
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


def _loop_body(node: ast.AST, source: Source) -> ast.FunctionDef | None:
    """The body of a fori_loop that a node is in."""
    if source.loop_bodies:
        for around in source.ancestors(node):
            if (
                isinstance(around, ast.FunctionDef)
                and source.loop_bodies.get(around) == "fori_loop"
            ):
                return around
    return None


def _check_return(node: ast.Return, source: Source) -> Found:
    body = _loop_body(node, source)
    if body is not None and node.value is not None:
        yield "loop-result", f"`{ast.unparse(node)}` in {body.name}"


def _check_arithmetic(node: ast.BinOp | ast.UnaryOp | ast.Compare, source: Source) -> Found:
    if any(_is_loop_variable(child, source) for child in ast.iter_child_nodes(node)):
        yield "loop-variable", f"`{ast.unparse(node)}`"


def _is_loop_variable(node: ast.AST, source: Source) -> bool:
    """Whether it is the name that a fori_loop gives its body."""
    if not isinstance(node, ast.Name):
        return False
    body = _loop_body(node, source)
    return body is not None and node.id in {argument.arg for argument in body.args.args[:1]}


CHECKS: dict[str, Callable[[Any, Source], Iterator[tuple[str, str]]]] = {
    "With": _check_with,
    "Attribute": _check_attribute,
    "Name": _check_name,
    "Import": _check_import,
    "ImportFrom": _check_import,
    "Call": _check_call,
    "Return": _check_return,
    "BinOp": _check_arithmetic,
    "UnaryOp": _check_arithmetic,
    "Compare": _check_arithmetic,
}
"""By kind of node."""
