"""The site has a page for every public function."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import types

from absl.testing import absltest

import jax_tkg
from scripts.package_imports import imported, modules
from tests.pages import markdown

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _module(parts: list[str]) -> pathlib.Path:
    """The file that a module's dotted name stands for, were it one."""
    return ROOT.joinpath(*parts).with_suffix(".py")


def _documented(directive: str) -> set[str]:
    """The names that the pages give to a directive of Sphinx."""
    return {
        name
        for page in (markdown.DOCS / "api").glob("*.rst")
        for name in re.findall(rf"^\.\. {directive}:: (\S+)", page.read_text(), re.MULTILINE)
    }


def _defined(module: pathlib.Path) -> set[str]:
    """What a module defines itself; what it imports has its page elsewhere."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        names |= {getattr(target, "id", getattr(target, "name", "")) for target in targets}
    return names


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

    def test_references_name_where_things_are(self) -> None:
        """A name in single backquotes is a link in the site, which has it under its own module."""
        count = 0
        for path in sorted(ROOT.glob("jax_tkg/**/*.py")):
            for name in re.findall(r"(?<!`)`(jax_tkg(?:\.\w+)+)`(?!`)", path.read_text()):
                parts = name.split(".")
                ends = [n for n in range(1, len(parts)) if _module(parts[:n]).is_file()]
                if not ends or _module(parts).is_file() or ROOT.joinpath(*parts).is_dir():
                    continue
                module, attribute = _module(parts[: ends[-1]]), parts[ends[-1]]
                self.assertIn(attribute, _defined(module), f"{path}: `{name}`")
                count += 1
        self.assertGreater(count, 50)

    def test_modules_exist(self) -> None:
        for name in _documented("automodule"):
            self.assertTrue(importlib.import_module(name).__doc__, name)


if __name__ == "__main__":
    absltest.main()
