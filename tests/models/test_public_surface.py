"""The models are built on what every user of the package has: its public modules and names."""

from __future__ import annotations

import ast
import pathlib

from absl.testing import absltest

import jax_tkg
from jax_tkg import models


class PublicSurfaceTest(absltest.TestCase):
    def test_imports(self) -> None:
        names = {f"jax_tkg.{name}" for name in jax_tkg.__all__}
        # Where a public name that is no module is defined.
        homes = set(jax_tkg._HOMES.values())
        for path in pathlib.Path(models.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    imported = [str(node.module)]
                    if node.module == "jax_tkg":
                        imported = [f"jax_tkg.{alias.name}" for alias in node.names]
                    if node.module in homes:
                        public = {alias.name for alias in node.names} <= set(jax_tkg.__all__)
                        self.assertTrue(public, f"{path.name}: {ast.unparse(node)}")
                        continue
                else:
                    continue
                for name in imported:
                    if name.split(".")[0] != "jax_tkg" or name.startswith("jax_tkg.models"):
                        continue
                    self.assertIn(name, names, f"{path.name}: {ast.unparse(node)}")


if __name__ == "__main__":
    absltest.main()
