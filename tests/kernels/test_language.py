"""The kernel stays within what NKI's compiler evaluates, in every file."""

from __future__ import annotations

import importlib
import pathlib

from absl.testing import absltest

import jax_tkg.kernels
from jax_tkg.kernels.transformer import transformer_tkg
from jax_tkg.simulator.source_check import check_language as checker


class LanguageTest(absltest.TestCase):
    def test_no_findings(self) -> None:
        self.assertEqual(list(map(str, checker.check_language(transformer_tkg))), [])

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
                    self.assertEqual(list(map(str, checker.check_language(function))), [])


if __name__ == "__main__":
    absltest.main()
