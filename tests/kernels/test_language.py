"""The kernel stays within what NKI's compiler evaluates, in every file."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

import pytest
from absl.testing import absltest

import jax_tkg.kernels
from jax_tkg.kernels.transformer import transformer_tkg
from jax_tkg.simulator.source_check import findings as checker

LOOP_BODY = ["loop-body `body`"]
"""The inner function given to nl.fori_loop, which NKI 0.6 allows."""


def _found(function: Any) -> list[str]:
    return [f"{f.rule.name} {f.found}" for f in checker.check_language(function)]


@pytest.mark.thorough
class LanguageTest(absltest.TestCase):
    def test_only_the_loop_body(self) -> None:
        self.assertEqual(_found(transformer_tkg), LOOP_BODY)
        self.assertTrue(checker.check_language(transformer_tkg)[0].is_note)

    def test_every_file_is_reached(self) -> None:
        """Every function of every module, for the kernel might not call all of them."""
        folder = pathlib.Path(jax_tkg.kernels.__file__).parent
        names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        self.assertGreater(len(names), 10)
        for name in names:
            module = importlib.import_module(f"jax_tkg.kernels.{name}")
            for function in vars(module).values():
                own = getattr(function, "__module__", None) == module.__name__
                if own and callable(function) and not isinstance(function, type):
                    with self.subTest(f"{name}.{getattr(function, '__name__', function)}"):
                        self.assertIn(_found(function), ([], LOOP_BODY))


if __name__ == "__main__":
    absltest.main()
