"""Finds what NKI's compiler rejects in the source of a kernel, and in all that the kernel calls.

The simulator runs kernels as Python, so it would run anything; the compiler evaluates a subset.
`language_rules` names for each rule the document, the report or the source that it is known from.

    python -m jax_tkg.simulator.check_language package.module:kernel
"""

from __future__ import annotations

import ast
import dataclasses
import types
from collections.abc import Iterator, Sequence
from typing import Any

from jax_tkg.simulator.source_check import api_checks, syntax_checks
from jax_tkg.simulator.source_check.language_rules import RULES, Rule
from jax_tkg.simulator.source_check.source import Source, unwrap


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

    @property
    def is_note(self) -> bool:
        """Whether some version of the compiler accepts it, so that it fails no check."""
        return self.rule.note is not None

    def __str__(self) -> str:
        note = f"note, {self.rule.note}: " if self.is_note else ""
        return (
            f"{self.file}:{self.line}: {self.rule.name}: {self.found}: {note}{self.rule.remedy} "
            f"({self.rule.origin})"
        )


def check_language(kernel: Any) -> list[Finding]:
    """Checks a kernel and every function, method and class of Python source that it reaches.

    Args:
      kernel: a function, or a kernel decorated with `nki.jit`.

    Returns:
      The findings, by file and line, notes among them.

    Raises:
      TypeError: the kernel has no Python source.
    """
    function = unwrap(kernel)
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"kernel: expected a Python function, got {kernel!r}")
    pending: list[Any] = [function]
    seen: set[Any] = set()
    findings: list[Finding] = []
    sources: list[Source] = []
    while pending:
        reached = pending.pop()
        if reached in seen:
            continue
        seen.add(reached)
        source = Source.of(reached, is_kernel=reached is function)
        if source is None:
            continue
        sources.append(source)
        findings.extend(_findings(source))
        pending.extend(value for _, value in source.reached())
    findings.extend(_shared_names(sources))
    return sorted(set(findings), key=lambda finding: (finding.file, finding.line, finding.found))


def _findings(source: Source) -> Iterator[Finding]:
    for node in source.nodes:
        for checks in (syntax_checks.CHECKS, api_checks.CHECKS):
            check = checks.get(type(node).__name__)
            if check is not None:
                for name, found in check(node, source):
                    yield Finding(RULES[name], source.file, getattr(node, "lineno", 0), found)


def _shared_names(sources: Sequence[Source]) -> Iterator[Finding]:
    """Names of functions, classes and constants that are others' in other modules; one per file."""
    first: dict[str, tuple[Any, str]] = {}
    told: set[tuple[str, str]] = set()
    for source in sorted(sources, key=lambda source: (source.file, source.tree.lineno)):
        for node in source.nodes:
            if not isinstance(node, ast.Name):
                continue
            value = unwrap(source.value(node))
            if value is None or isinstance(value, types.ModuleType):
                continue
            known, file = first.setdefault(node.id, (value, source.file))
            again = (node.id, source.file) in told
            if file != source.file and not again and not _are_one(known, value):
                told.add((node.id, source.file))
                found = f"`{node.id}`, which is another in {file}"
                yield Finding(RULES["shared-name"], source.file, node.lineno, found)


def _are_one(one: Any, other: Any) -> bool:
    if one is other:
        return True
    values = (int, float, str, bool, tuple)
    return isinstance(one, values) and type(one) is type(other) and one == other
