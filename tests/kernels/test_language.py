"""The kernel stays within what NKI's compiler evaluates, in every file."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import types
from typing import Any
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

import jax_tkg.kernels
from jax_tkg.kernels.transformer import transformer_tkg
from jax_tkg.simulator.language import NKIObject
from jax_tkg.simulator.source_check import findings as checker
from tests import cases
from tests.kernels import launch

LOOP_BODY = ["loop-body `body`"]
"""The inner function given to nl.fori_loop, which NKI 0.6 allows."""


def _shown(findings: list[checker.Finding]) -> list[str]:
    return [f"{finding.rule.name} {finding.found}" for finding in findings]


@pytest.mark.thorough
class LanguageTest(absltest.TestCase):
    def test_only_the_loop_body(self) -> None:
        """In the kernel, and in every function of every module: it might not call all of them."""
        reached: set[Any] = set()
        source_of = checker.Source.of

        def recorded(value: Any, **options: Any) -> Any:
            reached.add(value)
            return source_of(value, **options)

        with mock.patch.object(checker.Source, "of", recorded):
            found = checker.check_language(transformer_tkg)
            self.assertEqual(_shown(found), LOOP_BODY)
            self.assertTrue(found[0].is_note)
            self.assertGreater(len(reached), 100)
            for module in _modules():
                for function in vars(module).values():
                    own = getattr(function, "__module__", None) == module.__name__
                    is_function = callable(function) and not isinstance(function, type)
                    if own and is_function and checker.unwrap(function) not in reached:
                        with self.subTest(f"{module.__name__}.{function.__name__}"):
                            self.assertIn(_shown(checker.check_language(function)), ([], LOOP_BODY))


class ComparisonTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("lists", cases.Shape(L=2), False),
        ("loop", cases.Shape(L=2), True),
        ("experts", dataclasses.replace(cases.EXPERTS, L=1), False),
    )
    def test_objects_are_compared_with_none_only(self, shape: cases.Shape, stacked: bool) -> None:
        """NKI 0.7 compares objects of a kernel's classes in another way than the releases before
        it (announcement of changes to NKI specialization)."""
        others = []

        def compared(mine: Any, other: Any) -> Any:
            others.append(other)
            return NotImplemented

        with mock.patch.object(NKIObject, "__eq__", compared):
            launch.check(shape, cores=2, stacked=stacked)
        self.assertGreater(len(others), 100)
        self.assertEqual({type(other) for other in others}, {type(None)})


def _modules() -> list[types.ModuleType]:
    folder = pathlib.Path(jax_tkg.kernels.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert len(names) > 10
    return [importlib.import_module(f"jax_tkg.kernels.{name}") for name in names]


if __name__ == "__main__":
    absltest.main()
