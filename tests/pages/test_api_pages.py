"""The site has a page for every public function."""

from __future__ import annotations

import importlib
import re
import types

from absl.testing import absltest

import jax_tkg
from scripts.package_imports import imported, modules
from tests.pages import markdown


def _documented(directive: str) -> set[str]:
    """The names that the pages give to a directive of Sphinx."""
    return {
        name
        for page in (markdown.DOCS / "api").glob("*.rst")
        for name in re.findall(rf"^\.\. {directive}:: (\S+)", page.read_text(), re.MULTILINE)
    }


class ApiPagesTest(absltest.TestCase):
    def test_public_names(self) -> None:
        # The room of models has no functions of its own.
        for name in sorted({*jax_tkg.__all__} - {"models"}):
            is_module = isinstance(getattr(jax_tkg, name), types.ModuleType)
            found = _documented("automodule" if is_module else "auto(?:function|class)")
            self.assertIn(f"jax_tkg.{name}", found)

    def test_models_that_programs_use(self) -> None:
        """What the package's own commands and the pages import from `jax_tkg.models`."""
        used = {
            name
            for module in modules()
            if module.startswith("jax_tkg.generate")
            for name in imported(module)
        }
        for page in markdown.pages():
            for code in markdown.blocks(page, "python"):
                used |= {f"jax_tkg.{name}" for name in re.findall(r"jax_tkg\.(models\.\w+)", code)}
        found = _documented("automodule")
        for name in sorted(used):
            if name.startswith("jax_tkg.models."):
                self.assertIn(name, found)

    def test_modules_exist(self) -> None:
        for name in _documented("automodule"):
            self.assertTrue(importlib.import_module(name).__doc__, name)


if __name__ == "__main__":
    absltest.main()
