"""docs/tour.ipynb runs, and shows a text, a timeline and a roofline."""

from __future__ import annotations

import os

import pytest
from absl.testing import absltest

from jax_tkg.models import default_model
from tests import commands
from tests.models import files
from tests.pages import markdown

NOTEBOOK = markdown.DOCS / "tour.ipynb"


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.model
class NotebookTest(absltest.TestCase):
    def test_runs(self) -> None:
        import nbclient
        import nbformat

        models = str(default_model.default_model().resolve().parent)
        environment = commands.environment(**{default_model.DIRECTORY_VARIABLE: models})
        before = dict(os.environ)
        self.addCleanup(os.environ.update, before)
        # The kernel inherits them.
        os.environ.update(environment)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        client = nbclient.NotebookClient(
            notebook,
            timeout=1200,
            kernel_name="python3",
            resources={"metadata": {"path": str(files.folder(self))}},
        )
        client.execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        text = "".join(output.get("text", "") for output in outputs)
        self.assertIn("Paris", text)
        self.assertRegex(text, r"largest difference: \d\.\de-0[4-9]")
        self.assertRegex(text, r"1\.\d\d of the HBM bound")
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        self.assertLen(pictures, 2)

    def test_pictures_are_stored(self) -> None:
        """Whoever reads the notebook on a site sees what it shows, of the code as it is."""
        import nbformat

        notebook = nbformat.read(NOTEBOOK, as_version=4)
        shown = [
            output
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        self.assertLen(shown, 2)


if __name__ == "__main__":
    absltest.main()
