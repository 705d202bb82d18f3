"""The command line, as its users run it: in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from absl.testing import absltest, parameterized

from tests.models import files, tiny

pytestmark = pytest.mark.slow

RATES = re.compile(
    r"prompt: (\d+) tokens, [\d.]+ tokens/s; decode: (\d+) tokens, [\d.]+ tokens/s; "
    r"besides [\d.]+ s to compile\n\Z"
)


def _run(*flags: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    # As bytes: a random model writes bytes that no decoding should have to accept twice.
    return subprocess.run(
        [sys.executable, "-m", "jax_tkg.generate", *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        check=False,
        timeout=600,
    )


class TextTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.model = files.folder(self) / "model.gguf"
        tiny.write_tiny(self.model)

    def _write(self, *flags: str) -> tuple[bytes, int, int]:
        """What it writes, and the tokens it says it read and wrote."""
        done = _run(f"--model={self.model}", "--max_tokens=12", *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        rates = RATES.search(done.stderr.decode())
        assert rates is not None, done.stderr
        return done.stdout, int(rates[1]), int(rates[2])

    def test_text_and_rates(self) -> None:
        text, read, written = self._write("--prompt=the cat", "--nochat")
        self.assertTrue(text.endswith(b"\n"))
        self.assertGreater(len(text), 5)
        # t, he, space, c, a, t: "he" is the one merge of the vocabulary that applies.
        self.assertEqual(read, 6)
        self.assertBetween(written, 1, 12)

    @parameterized.parameters("--tensor_parallel=2", "--device_loop", "--top_p=0.5")
    def test_same_text(self, flag: str) -> None:
        plain = self._write("--prompt=the cat")
        self.assertEqual(self._write("--prompt=the cat", flag), plain)

    def test_batch_writes_what_each_prompt_alone_does(self) -> None:
        one, *_ = self._write("--prompt=the cat")
        other, *_ = self._write("--prompt=12 and in")
        both, *_ = self._write("--prompt=the cat", "--prompt=12 and in")
        # Each is written when it is complete, whichever comes first.
        answers = [b"--- the cat\n" + one, b"--- 12 and in\n" + other]
        self.assertIn(both, (b"".join(answers), b"".join(answers[::-1])))

    def test_seed(self) -> None:
        flags = ("--prompt=the cat", "--temperature=2")
        first = self._write(*flags, "--seed=1")
        self.assertEqual(self._write(*flags, "--seed=1"), first)
        self.assertNotEqual(self._write(*flags, "--seed=2"), first)

    @parameterized.parameters("bf16", "f16")
    def test_dtypes(self, dtype: str) -> None:
        text, *_ = self._write("--prompt=the cat", f"--dtype={dtype}")
        self.assertGreater(len(text), 5)

    @parameterized.named_parameters(
        ("no_tokens", ["--max_tokens=0"], "--max_tokens: expected at least 1, got 0"),
        ("temperature", ["--temperature=-1"], "--temperature"),
        ("top_p", ["--top_p=1.5"], "--top_p"),
        ("ranks", ["--tensor_parallel=4"], "--tensor_parallel"),
        ("argument", ["more"], "expected flags only, got 'more'"),
        ("system", ["--nochat", "--system=You are a cat."], "--system"),
        ("long_prompt", ["--prompt=" + "cat " * 600], "fewer than 512 tokens"),
        ("empty_prompt", ["--prompt="], "--prompt: expected a text"),
    )
    def test_bad_flag(self, flags: list[str], part: str) -> None:
        done = _run(f"--model={self.model}", "--prompt=the cat", *flags)
        _assert_one_line(self, done, part)

    def test_no_prompt(self) -> None:
        done = _run(f"--model={self.model}")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(b"--prompt", done.stdout + done.stderr)


def _assert_one_line(
    test: absltest.TestCase, done: subprocess.CompletedProcess[bytes], *parts: str
) -> None:
    message = done.stderr.decode()
    test.assertEqual(done.returncode, 1, message)
    test.assertEqual(done.stdout, b"")
    test.assertEqual(message.count("\n"), 1, message)
    test.assertTrue(message.startswith("error: "), message)
    for part in parts:
        test.assertIn(part, message)


class BadModelTest(parameterized.TestCase):
    """One line on stderr and exit code 1."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.model = self.folder / "model.gguf"

    def _fails(self, *parts: str) -> None:
        done = _run(f"--model={self.model}", "--prompt=the cat")
        _assert_one_line(self, done, str(self.model), *parts)

    def test_absent(self) -> None:
        self._fails("no such file")

    def test_truncated(self) -> None:
        tiny.write_tiny(self.model)
        whole = self.model.read_bytes()
        self.model.write_bytes(whole[: len(whole) // 2])
        self._fails("blk.")

    def test_truncated_header(self) -> None:
        tiny.write_tiny(self.model)
        self.model.write_bytes(self.model.read_bytes()[:100])
        self._fails()

    def test_no_model_at_all(self) -> None:
        self.model.write_bytes(b"GIF89a" + bytes(1000))
        self._fails("GGUF")

    def test_architecture(self) -> None:
        tiny.write(self.model, tiny.Tiny().tensors(), tiny.Tiny().metadata(), architecture="mamba")
        self._fails("llama", "mamba")

    def test_no_default_model(self) -> None:
        done = _run("--prompt=the cat", JAX_TKG_MODELS=str(self.folder))
        _assert_one_line(self, done, "fetch_model.py")


INTERRUPTED = """
from unittest import mock
from jax_tkg import generate, simulator

with mock.patch.object(simulator, "run", side_effect=KeyboardInterrupt):
    generate.run()
"""


class InterruptTest(absltest.TestCase):
    def test_while_the_simulator_runs(self) -> None:
        model = files.folder(self) / "model.gguf"
        tiny.write_tiny(model)
        flags = [f"--model={model}", "--prompt=the cat", "--implementation=simulate"]
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, *flags],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=False,
        )
        self.assertEqual(done.returncode, 130, done.stderr)


class DisplayTest(absltest.TestCase):
    def test_progress_on_a_terminal(self) -> None:
        """Bars for loading and reading are drawn, on stderr only."""
        model = files.folder(self) / "model.gguf"
        tiny.write_tiny(model)
        terminal, follower = os.openpty()
        flags = [f"--model={model}", "--prompt=the cat", "--max_tokens=2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "jax_tkg.generate", *flags],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=follower,
        )
        os.close(follower)
        drawn = _read_all(terminal)
        output, _ = process.communicate(timeout=600)
        self.assertEqual(process.returncode, 0, drawn)
        self.assertIn("Loading layers", drawn)
        self.assertIn("Reading the prompt", drawn)
        self.assertNotIn(b"Loading", output)


def _read_all(terminal: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            # Linux's way to say that the other end is closed.
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


if __name__ == "__main__":
    absltest.main()
