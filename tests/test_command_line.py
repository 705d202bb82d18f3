"""How commands end: help, missing packages, wrong flags, closed pipes, full devices, Ctrl-C."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from jax_tkg import command_line
from tests import commands
from tests.models import files

EXTRA_PACKAGES = ("absl", "gguf", "jinja2", "matplotlib", "rich", "safetensors", "tokenizers")
"""What `pip install .` without an extra does not install."""

COMMANDS = ("jax_tkg.generate", "jax_tkg.profile")


@pytest.mark.thorough
class FlagsTest(parameterized.TestCase):
    @parameterized.product(module=COMMANDS, flag=("--help", "-h"))
    @pytest.mark.extended_except("0")
    def test_help(self, module: str, flag: str) -> None:
        done = commands.run(module, flag)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"python -m {module} --", done.stdout.decode())
        self.assertIn("--model:", done.stdout.decode())
        self.assertIn("--tensor_parallel:", done.stdout.decode())

    @parameterized.parameters(
        (["--modle=x"], "Unknown command line flag 'modle'. Did you mean: model ?"),
        (["--tensor_parallel=two"], "--tensor_parallel=two"),
        (["--model"], "--model"),
        (["more"], "expected flags only, got 'more'"),
    )
    def test_wrong_flag(self, flags: list[str], message: str) -> None:
        """Told by this process, in which it takes seconds less."""
        for module, extra in (("jax_tkg.generate", "models"), ("jax_tkg.profile", "profile")):
            with self.assertRaises(command_line.CommandError) as caught:
                command_line.call(f"{module}.command", extra, flags)
            self.assertIn(message, str(caught.exception))

    def test_wrong_flag_is_one_line(self) -> None:
        done = commands.run("jax_tkg.generate", "--modle=x")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, b"")
        self.assertStartsWith(commands.last_line(done), "error: ")
        self.assertIn("Did you mean: model ?", commands.last_line(done))

    @parameterized.parameters(({}, "3"), ({command_line.XLA_LOG: "0"}, "0"))
    def test_xla_is_silent_unless_told_otherwise(
        self, variables: dict[str, str], expected: str
    ) -> None:
        body = (
            "import os\nfrom jax_tkg import command_line\n"
            "command_line.call('jax_tkg.generate.command', 'models', ['--help'])\n"
            f"print(os.environ['{command_line.XLA_LOG}'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", body],
            env=commands.environment(**variables),
            capture_output=True,
            check=True,
        )
        self.assertEqual(done.stdout.decode().split()[-1], expected)

    def test_commands_can_be_imported_together(self) -> None:
        imports = "import jax_tkg.generate.command, jax_tkg.profile.command"
        done = subprocess.run([sys.executable, "-c", imports], env=commands.environment())
        self.assertEqual(done.returncode, 0)


class PlainInstallationTest(parameterized.TestCase):
    """After `pip install .`, without an extra."""

    def _run(self, module: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        hidden = commands.without(str(files.folder(self)), EXTRA_PACKAGES)
        return commands.run(module, *flags, **hidden)

    @parameterized.parameters(("jax_tkg.generate", "models"), ("jax_tkg.profile", "profile"))
    def test_the_extra_is_named(self, module: str, extra: str) -> None:
        done = self._run(module, "--help")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, b"")
        line = commands.last_line(done)
        self.assertIn("the package 'absl' is not installed", line)
        self.assertEndsWith(line, f'pip install "jax_tkg[{extra}]"')

    def test_one_package_of_the_extra(self) -> None:
        hidden = commands.without(str(files.folder(self)), ["tokenizers"])
        done = commands.run("jax_tkg.generate", **hidden)
        self.assertEqual(done.returncode, 1)
        self.assertIn("the package 'tokenizers' is not installed", commands.last_line(done))

    def test_what_needs_no_extra(self) -> None:
        folder = str(files.folder(self))
        done = self._run("benchmarks.neuron_checklist")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"No Neuron device here", done.stdout)
        hidden = commands.without(folder, (*EXTRA_PACKAGES, "pip"))
        done = commands.run("jax_tkg.fetch_model", JAX_TKG_MODELS=folder, **hidden)
        self.assertEqual(done.returncode, 1)
        self.assertIn("expected pip to download it with", commands.last_line(done))


class OutputFileTest(parameterized.TestCase):
    def test_what_can_be_written(self) -> None:
        """Neither file is changed or made."""
        with tempfile.TemporaryDirectory() as folder:
            old, new = pathlib.Path(folder) / "old.png", pathlib.Path(folder) / "new.PNG"
            old.write_text("kept")
            for path in (old, new):
                command_line.check_output_file("--plot", str(path), ".png")
            command_line.check_output_file("--trace", "/dev/null")
            self.assertEqual([*pathlib.Path(folder).iterdir()], [old])
            self.assertEqual(old.read_text(), "kept")

    @parameterized.parameters(
        ("nowhere/a.json", "No such file or directory"),
        ("", "Is a directory"),
        (".", "Is a directory"),
        ("file/a.json", "Not a directory"),
        ("a" * 300, "File name too long"),
    )
    def test_what_cannot(self, name: str, problem: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "file").write_text("")
            path = f"{folder}/{name}" if name else name
            expected = f"--trace: expected a file that can be written, got {path!r} ({problem})"
            with self.assertRaises(command_line.CommandError) as caught:
                command_line.check_output_file("--trace", path)
            self.assertEqual(str(caught.exception), expected)

    @parameterized.parameters("file", "folder")
    def test_without_permission(self, kind: str) -> None:
        """Root, which may run this test, may write anywhere."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "a.json"
            if kind == "file":
                path.write_text("")
            with (
                mock.patch.object(command_line.os, "access", return_value=False),
                self.assertRaisesRegex(command_line.CommandError, "Permission denied"),
            ):
                command_line.check_output_file("--trace", str(path))

    def test_other_suffix(self) -> None:
        with self.assertRaisesRegex(
            command_line.CommandError, r"^--plot: expected a name that ends in .png, got 'a.svg'$"
        ):
            command_line.check_output_file("--plot", "a.svg", ".png")


@pytest.mark.thorough
class EndTest(parameterized.TestCase):
    """With a command that only writes."""

    def _command(self, body: str) -> list[str]:
        program = f"""
import signal, os, threading, time
from jax_tkg import command_line
from jax_tkg.command_line import CommandError, note, say
def main():
    {body}
command_line.exit_after(main)
"""
        return [sys.executable, "-c", program]

    def _run(self, body: str, shell: str = "", **variables: str) -> tuple[int, bytes, bytes]:
        """Exit code and what it wrote; `shell` redirects or pipes its output."""
        done = subprocess.run(
            ["bash", "-c", f'set -o pipefail; "$0" "$@" {shell}', *self._command(body)],
            env=commands.environment(**variables),
            capture_output=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    @parameterized.parameters("", "2>/dev/full", "2>&-")
    def test_success(self, shell: str) -> None:
        self.assertEqual(self._run("note('a'); say('b')", shell)[:2], (0, b"b\n"))

    @parameterized.parameters("CommandError('a\\nb')", "OSError(28, 'a b')")
    def test_error(self, error: str) -> None:
        code, output, complaint = self._run(f"raise {error}")
        self.assertEqual((code, output), (1, b""))
        self.assertRegex(complaint, rb"^error: .*a b\n$")

    def test_file_that_cannot_be_written(self) -> None:
        code, _, complaint = self._run("open('/nowhere/trace', 'w')")
        self.assertEqual(
            (code, complaint), (1, b"error: /nowhere/trace: No such file or directory\n")
        )

    @parameterized.parameters("| head -c 3", "2>&1 | head -c 3")
    def test_closed_pipe(self, shell: str) -> None:
        code, output, complaint = self._run("while True: say('abcdef')", shell)
        self.assertEqual((code, output, complaint), (141, b"abc", b""))

    def test_full_device(self) -> None:
        code, _, complaint = self._run("say('abc')", ">/dev/full")
        self.assertEqual(code, 1)
        self.assertEqual(complaint, b"error: standard output: No space left on device\n")

    def test_closed_output(self) -> None:
        code, _, complaint = self._run("say('abc')", ">&-")
        self.assertEqual(code, 1)
        self.assertStartsWith(complaint, b"error: standard output: ")

    @parameterized.parameters(
        ("latin-1", b"\xe9?\n"), ("ascii", b"??\n"), ("utf-8", b"\xc3\xa9\xe2\x82\xac\n")
    )
    def test_encodings(self, encoding: str, expected: bytes) -> None:
        code, output, _ = self._run("say('\\u00e9\\u20ac')", PYTHONIOENCODING=encoding)
        self.assertEqual((code, output), (0, expected))

    def test_interrupt(self) -> None:
        """A thread that still works is not waited for."""
        body = "threading.Thread(target=time.sleep, args=(999,)).start(); signal.raise_signal(2)"
        code, output, complaint = self._run(body)
        self.assertEqual((code, output, complaint), (130, b"", b"\n"))


if __name__ == "__main__":
    absltest.main()
