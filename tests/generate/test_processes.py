"""One command run by two real processes."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys

import pytest
from absl import flags as absl_flags
from absl.testing import absltest, parameterized

from jax_tkg.command_line import CommandError
from jax_tkg.generate import command, processes
from tests import commands
from tests.models import files, tiny

pytestmark = pytest.mark.slow


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ProcessesTest(parameterized.TestCase):
    model: pathlib.Path

    def setUp(self) -> None:
        super().setUp()
        self.model = files.folder(self) / "model.gguf"
        tiny.write_tiny(self.model, tiny.Tiny(context_length=4096))

    def _start(self, *flags: str, own: tuple[str, str] = ("", "")) -> list[subprocess.Popen]:
        """Two processes, each with a flag of its own where it has one."""
        coordinator = f"--coordinator=127.0.0.1:{_free_port()}"
        shared = (f"--model={self.model}", "--prompt=the cat", "--tensor_parallel=2", coordinator)
        return [
            subprocess.Popen(
                commands.command(
                    "jax_tkg.generate",
                    *shared,
                    "--num_processes=2",
                    f"--process_id={index}",
                    *flags,
                    *([flag] if flag else []),
                ),
                env=commands.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for index, flag in enumerate(own)
        ]

    @pytest.mark.extended
    def test_the_text_of_one_process(self) -> None:
        """Sampled, in a batch; the first process alone writes."""
        flags = ("--prompt=12 and in", "--temperature=1", "--seed=3", "--max_tokens=12")
        both = self._start(*flags)
        outputs = [process.communicate(timeout=600) for process in both]
        self.assertEqual([process.returncode for process in both], [0, 0], outputs)
        alone = commands.run(
            "jax_tkg.generate", f"--model={self.model}", "--prompt=the cat", *flags
        )
        self.assertEqual(outputs[0][0], alone.stdout, outputs)
        self.assertIn(b"decode: ", outputs[0][1])
        self.assertEqual(outputs[1], (b"", b""))

    @parameterized.parameters(0, 1)
    @pytest.mark.extended
    def test_a_process_that_dies_ends_the_other(self, dying: int) -> None:
        both = self._start("--max_tokens=4000", "--stop=never")
        assert both[0].stdout is not None
        both[0].stdout.read(1)
        both[dying].kill()
        other = both[1 - dying]
        # A minute, and what a busy machine adds.
        _, errors = other.communicate(timeout=120)
        both[dying].communicate()
        self.assertNotEqual(other.returncode, 0, errors)
        self.assertNotEmpty(errors)

    def test_other_flags(self) -> None:
        both = self._start(own=("--max_tokens=3", "--max_tokens=4"))
        for process in both:
            output, errors = process.communicate(timeout=600)
            self.assertEqual((process.returncode, output), (1, b""), errors)
            self.assertIn(b"error: --num_processes: expected the same flags", errors)


WAITING = """
from jax_tkg import command_line
from jax_tkg.generate import processes

processes.JOIN_SECONDS = 1
command_line.run("jax_tkg.generate.command", extra="models")
"""


class MeetingTest(absltest.TestCase):
    def test_the_others_do_not_come(self) -> None:
        address = f"127.0.0.1:{_free_port()}"
        flags = ("--tensor_parallel=2", "--num_processes=2", "--process_id=0", "--prompt=x")
        done = subprocess.run(
            [sys.executable, "-c", WAITING, *flags, f"--coordinator={address}"],
            env=commands.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=600,
        )
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        expected = f"error: --coordinator: expected 2 processes to meet at {address} within 1 s"
        self.assertEqual(commands.last_line(done), f"{expected}, got fewer")


class FlagsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("coordinator", ["--num_processes=2"], "--coordinator: expected with --num_processes"),
        (
            "number",
            ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id: expected 0..1, got 2",
        ),
        (
            "ranks",
            ["--coordinator=a:1", "--num_processes=2", "--process_id=0", "--tensor_parallel=3"],
            "--tensor_parallel: expected a multiple of the 2 processes, got 3",
        ),
        (
            "address",
            ["--coordinator=a", "--num_processes=2", "--process_id=0"],
            "--coordinator: expected HOST:PORT, got 'a'",
        ),
    )
    def test_bad_flags(self, flags: list[str], message: str) -> None:
        values = absl_flags.FlagValues()
        command.define_flags(values)
        values(["generate", "--prompt=the cat", *flags])
        with self.assertRaisesRegex(CommandError, message), processes.joined(values):
            self.fail("joined")


if __name__ == "__main__":
    absltest.main()
