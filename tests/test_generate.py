"""The command line, as its users run it: in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg import command_line
from jax_tkg.errors import UserError
from jax_tkg.generate import command
from tests import commands
from tests.models import files, tiny, tiny_folder, tokenizer_files

pytestmark = pytest.mark.slow

RATES = re.compile(
    r"prompt: (\d+) tokens, [\d.]+ tokens/s; decode: (\d+) tokens, [\d.]+ tokens/s; "
    r"besides [\d.]+ s to load and compile\n\Z"
)


def _run(*flags: str | bytes, **changes: Any) -> subprocess.CompletedProcess[bytes]:
    return commands.run("jax_tkg.generate", *flags, **changes)


def _refusal(*flags: str | bytes, **changes: str) -> str:
    """Why the command refuses its flags or its model, told by this process in its place.

    An exception of another kind would end the command with a traceback; with `_run` a test takes
    seconds more.
    """
    given = [os.fsdecode(flag) for flag in flags]
    with (
        # It would be that of all tests in this process.
        mock.patch.object(command, "use_compilation_cache"),
        mock.patch.dict(os.environ, changes),
        pytest.raises(UserError) as caught,
    ):
        command_line.call("jax_tkg.generate.command", "models", given)
    return str(caught.value)


class TextTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.model = files.folder(self) / "model.gguf"
        tiny.write_tiny(self.model)

    def _write(self, *flags: str) -> tuple[bytes, int, int]:
        """What it writes, and the tokens it says it read and wrote."""
        return _written(self.model, *flags)

    @staticmethod
    @functools.cache
    def _plain(prompt: str) -> tuple[bytes, int, int]:
        """What it writes of a prompt without other flags, for all tests of this process."""
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / "model.gguf"
            tiny.write_tiny(model)
            return _written(model, f"--prompt={prompt}")

    def test_text_and_rates(self) -> None:
        text, read, written = self._write("--prompt=the cat", "--nochat")
        self.assertTrue(text.endswith(b"\n"))
        self.assertGreater(len(text), 5)
        # t, he, space, c, a, t: "he" is the one merge of the vocabulary that applies.
        self.assertEqual(read, 6)
        self.assertBetween(written, 1, 12)

    @parameterized.parameters(
        "--tensor_parallel=6",
        "--device_loop",
        "--top_p=0.5",
        "--prompt_lookup_num_tokens=4",
        "--tensor_parallel=6 --context_parallel=3",
    )
    @pytest.mark.extended
    def test_same_text(self, flags: str) -> None:
        written = self._write("--prompt=the cat", *flags.split())
        self.assertEqual(written, self._plain("the cat"))

    @pytest.mark.extended
    def test_batch_writes_what_each_prompt_alone_does(self) -> None:
        one, *_ = self._plain("the cat")
        other, *_ = self._plain("12 and in")
        both, *_ = self._write("--prompt=the cat", "--prompt=12 and in")
        # Each is written when it is complete, whichever comes first.
        answers = [b"--- the cat\n" + one, b"--- 12 and in\n" + other]
        self.assertIn(both, (b"".join(answers), b"".join(answers[::-1])))

    @pytest.mark.extended
    def test_answers_end_with_the_context_length(self) -> None:
        """Each alone, and it is said which ones."""
        tiny.write_tiny(self.model, tiny.Tiny(context_length=40), tokenizer__ggml__eos_token_id=0)
        flags = (f"--model={self.model}", "--nochat", "--max_tokens=25")
        long, short = "a" * 30, "b" * 8
        alone = _run(*flags, f"--prompt={short}")
        self.assertNotIn(b"note:", alone.stderr)
        both = _run(*flags, f"--prompt={long}", f"--prompt={short}")
        self.assertEqual(both.returncode, 0, both.stderr)
        self.assertIn(f"--- {short}\n".encode() + alone.stdout, both.stdout)
        note = (
            "note: answer 1 ends where prompt and answer reach the model's context length, 40 tok"
        )
        self.assertIn(note.encode(), both.stderr)
        self.assertNotIn(b"answer 2", both.stderr)
        # 10 tokens of the first answer and 25 of the second.
        self.assertIn(b"decode: 35 tokens", both.stderr)

    def _padded_folder(self, size: int) -> pathlib.Path:
        """A model whose vocabulary has `size` ids, whatever the tokenizer's has."""
        folder, shape = files.folder(self), tiny.Tiny(tied=False)
        draw = np.random.default_rng(0)
        changed = {
            name: draw.standard_normal((size, shape.hidden_size)).astype(np.float32)
            for name in ("model.embed_tokens.weight", "lm_head.weight")
        }
        tiny_folder.write(folder, shape, changed=changed, vocab_size=size)
        tokenizer_files.write(folder)
        return folder

    @pytest.mark.extended
    def test_ids_that_the_tokenizer_lacks(self) -> None:
        """A padded vocabulary: most of what is drawn has no text."""
        folder = self._padded_folder(len(tiny.VOCABULARY) + 5000)
        done = _run(f"--model={folder}", "--prompt=the cat", "--nochat", "--max_tokens=20")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"decode: 20 tokens", done.stderr)
        self.assertLess(len(done.stdout), 20)

    @pytest.mark.extended
    def test_ids_that_the_model_lacks(self) -> None:
        folder = self._padded_folder(50)
        done = _run(f"--model={folder}", "--prompt=the cat", "--nochat")
        _assert_one_line(self, done, "expected token ids 0..49")

    @pytest.mark.extended
    def test_seed(self) -> None:
        """Of four equal prompts, two with the same seed, one with a seed of 64 bits."""
        flags = ("--prompt=the cat", "--temperature=2", "--json")
        seeds = [f"--seed={seed}" for seed in (1, 2, 1, 2**64 - 2**32 + 1)]
        texts, alone = (
            [json.loads(line)["text"] for line in self._write(*given)[0].splitlines()]
            for given in ((*flags, *flags[:1] * 3, *seeds), (*flags, "--seed=1"))
        )
        self.assertLen(set(texts), 3)
        self.assertEqual([texts.count(text) for text in alone], [2])

    def test_requests(self) -> None:
        """JSON, a seed of its own, a prompt from standard input, and stop texts."""
        flags = (f"--model={self.model}", "--max_tokens=12", "--temperature=2", "--nochat")
        sampled = (*flags, "--top_k=50", "--min_p=0.001", "--repetition_penalty=1.1")
        done = _run(
            *sampled,
            "--json",
            "--prompt=12 and in",
            "--prompt=-",
            "--seed=7",
            "--seed=1",
            stdin=b"the cat\n",
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = {each["prompt"]: each for each in map(json.loads, done.stdout.splitlines())}
        self.assertCountEqual(answers, ["12 and in", "the cat"])
        answer = answers["the cat"]
        self.assertEqual(answer["prompt_tokens"], 6)
        self.assertLen(answer["tokens"], 12)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertCountEqual(answer["seconds"], ["load", "prompt", "decode"])
        self.assertGreater(answer["seconds"]["decode"], 0)
        # Alone it is the same, up to the stop text.
        stop = answer["text"][3:6]
        before = answer["text"].partition(stop)[0]
        done = _run(*sampled, "--prompt=the cat", "--seed=1", f"--stop={stop}", "--stop=never")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.decode(), f"{before}\n")

    @pytest.mark.extended
    def test_conversation(self) -> None:
        """On a terminal, without a prompt: two questions, then Ctrl-D."""
        tiny.write_tiny(
            self.model,
            tokenizer__chat_template="{% for m in messages %}{{ m.content }} {% endfor %}",
        )
        terminal, follower = os.openpty()
        os.write(terminal, b"the cat\n\n12\n\x04")
        done = subprocess.run(
            commands.command("jax_tkg.generate", f"--model={self.model}", "--max_tokens=3"),
            env=commands.environment(TERM="dumb"),
            stdin=follower,
            capture_output=True,
            check=False,
            timeout=600,
        )
        os.close(follower)
        os.close(terminal)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count(b"> "), 4)
        rates = RATES.search(done.stderr.decode())
        assert rates is not None, done.stderr
        # "the cat " has 7 tokens; the second turn reads these, the first answer, and " 12 ".
        self.assertGreaterEqual(int(rates[1]), 7 + 7 + 1 + 3)
        self.assertBetween(int(rates[2]), 2, 6)

    @parameterized.parameters("bf16", "f16")
    @pytest.mark.extended
    def test_dtypes(self, dtype: str) -> None:
        text, *_ = self._write("--prompt=the cat", f"--dtype={dtype}")
        self.assertGreater(len(text), 5)

    @parameterized.named_parameters(
        ("no_tokens", ["--max_tokens=0"], "--max_tokens: expected at least 1, got 0"),
        ("temperature", ["--temperature=-1"], "--temperature"),
        ("top_p", ["--top_p=1.5"], "--top_p"),
        ("top_k", ["--top_k=-1"], "--top_k: expected a whole number >= 0, got -1"),
        ("seeds", ["--seed=1", "--seed=2"], "--seed: expected 1 or 1 (one for each prompt), got 2"),
        ("two_inputs", ["--prompt=-", "--prompt=-"], "--prompt: expected - once"),
        ("ranks", ["--tensor_parallel=4"], "--tensor_parallel"),
        (
            "context",
            ["--tensor_parallel=6", "--context_parallel=2"],
            "--context_parallel: expected a divisor of the 3 devices that have a KV head in common",
        ),
        ("seed", ["--seed=18446744073709551616"], "--seed=18446744073709551616"),
        ("negative_seed", ["--seed=-1"], "--seed=-1"),
        ("system_bytes", [b"--system=\xe9"], "--system: expected text in UTF-8, got byte 0xe9"),
        ("stop_bytes", [b"--stop=\xe9"], "--stop: expected text in UTF-8, got byte 0xe9"),
        ("slots", ["--slots=3"], "--slots: expected --requests with it, got 3 alone"),
        ("nki", ["--implementation=nki"], "--implementation: expected 'nki' on platform neuron"),
        ("nkilib", ["--implementation=nkilib"], "expected"),
        ("system", ["--nochat", "--system=You are a cat."], "--system"),
        ("long_prompt", ["--prompt=" + "cat " * 600], "fewer than 512 tokens"),
        ("empty_prompt", ["--prompt="], "--prompt: expected a text"),
    )
    def test_bad_flag(self, flags: list[str | bytes], part: str) -> None:
        message = _refusal(f"--model={self.model}", "--prompt=the cat", *flags, NKILIB="/nowhere")
        self.assertIn(part, message)

    def test_bytes_that_are_no_text(self) -> None:
        done = _run(f"--model={self.model}", b"--prompt=ab\xff")
        _assert_one_line(self, done, "--prompt: expected text in UTF-8, got byte 0xff after 2 ch")

    @parameterized.parameters(
        ("--stop=", "--stop: expected a text, got an empty one"),
        (b"--system=\xe9", "--system: expected text in UTF-8, got byte 0xe9 after 0 characters"),
        ("--slots=3", "--slots: expected --requests with it, got 3 alone"),
    )
    @pytest.mark.extended_except("0")
    def test_bad_flag_of_a_conversation(self, flag: str | bytes, message: str) -> None:
        """On a terminal, before anything is said."""
        terminal, follower = os.openpty()
        done = subprocess.run(
            [*commands.command("jax_tkg.generate", f"--model={self.model}"), flag],
            env=commands.environment(TERM="dumb"),
            stdin=follower,
            capture_output=True,
            check=False,
            timeout=600,
        )
        os.close(follower)
        os.close(terminal)
        _assert_one_line(self, done, message)

    def test_no_prompt(self) -> None:
        done = _run(f"--model={self.model}")
        _assert_one_line(self, done, "--prompt: expected at least one")

    @parameterized.parameters("--chat", "--nochat")
    @pytest.mark.extended_except("0")
    def test_no_tokens(self, flag: str) -> None:
        """A template that makes nothing, and a prompt of which nothing is left."""
        tiny.write_tiny(self.model, tokenizer__chat_template="{% if false %}x{% endif %}")
        done = _run(f"--model={self.model}", "--prompt=the cat", flag)
        if flag == "--chat":
            _assert_one_line(self, done, "chat template: expected a text, got an empty one")
        else:
            self.assertEqual(done.returncode, 0, done.stderr)


def _written(model: pathlib.Path, *flags: str) -> tuple[bytes, int, int]:
    done = _run(f"--model={model}", "--max_tokens=12", *flags)
    assert done.returncode == 0, done.stderr
    rates = RATES.search(done.stderr.decode())
    assert rates is not None, done.stderr
    return done.stdout, int(rates[1]), int(rates[2])


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
    """A message that names the file and what is wrong with it; as one line on stderr."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.model = self.folder / "model.gguf"

    def _fails(self, *parts: str) -> None:
        message = _refusal(f"--model={self.model}", "--prompt=the cat")
        for part in (str(self.model), *parts):
            self.assertIn(part, message)

    def test_absent(self) -> None:
        done = _run(f"--model={self.model}", "--prompt=the cat")
        _assert_one_line(self, done, str(self.model), "no such file")

    def test_truncated(self) -> None:
        tiny.write_tiny(self.model)
        whole = self.model.read_bytes()
        self.model.write_bytes(whole[: len(whole) // 2])
        done = _run(f"--model={self.model}", "--prompt=the cat")
        _assert_one_line(self, done, str(self.model), "blk.")

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
        message = _refusal("--prompt=the cat", JAX_TKG_MODELS=str(self.folder))
        self.assertIn("jax_tkg.fetch_model", message)


class OutputTest(absltest.TestCase):
    """Where the text goes."""

    def setUp(self) -> None:
        super().setUp()
        self.model = files.folder(self) / "model.gguf"
        tiny.write_tiny(self.model)
        self.flags = (f"--model={self.model}", "--prompt=the cat", "--max_tokens=20")

    def test_closed_pipe(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = _run(*self.flags, stdout=writer)
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (141, b""))

    @pytest.mark.extended
    def test_full_device(self) -> None:
        with open("/dev/full", "wb") as full:
            done = _run(*self.flags, stdout=full)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr, b"error: standard output: No space left on device\n")

    @pytest.mark.extended
    def test_another_encoding(self) -> None:
        """The same text, with a question mark for each character that the encoding lacks."""
        text = _run(*self.flags).stdout.decode()
        done = _run(*self.flags, PYTHONIOENCODING="ascii")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, text.encode("ascii", "replace"))

    @pytest.mark.extended
    def test_progress_on_a_terminal(self) -> None:
        """Bars for loading and reading are drawn, on stderr only."""
        with _OnTerminal(*self.flags) as process:
            output = process.stdout.read()
        drawn = process.drawn()
        self.assertEqual(process.returncode, 0, drawn)
        self.assertIn("Loading layers", drawn)
        self.assertIn("Compiling", drawn)
        self.assertIn("Reading the prompt", drawn)
        self.assertNotIn(b"Loading", output)


SIMULATOR_INTERRUPTED = """
from unittest import mock
from jax_tkg import command_line, simulator

with mock.patch.object(simulator, "run", side_effect=KeyboardInterrupt):
    command_line.run("jax_tkg.generate.command", extra="models")
"""


class InterruptTest(parameterized.TestCase):
    """Ctrl-C ends it with exit code 130 and without a traceback, whatever it does."""

    def setUp(self) -> None:
        super().setUp()
        self.model = files.folder(self) / "model.gguf"
        tiny.write_tiny(self.model)

    def _start(self, *flags: str) -> _OnTerminal:
        return _OnTerminal(f"--model={self.model}", "--prompt=the cat", "--max_tokens=500", *flags)

    def _assert_ends(self, process: _OnTerminal) -> None:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        drawn = process.drawn()
        self.assertEqual(process.returncode, 130, drawn)
        self.assertNotIn("Traceback", drawn)
        self.assertNotIn("Fatal", drawn)

    @parameterized.parameters("Loading layers", "Compiling")
    @pytest.mark.extended_except("1")
    def test_before_the_text(self, title: str) -> None:
        with self._start("--compilation_cache=off") as process:
            while title not in process.drawn():
                self.assertIsNone(process.poll(), process.drawn())
                time.sleep(0.01)
            self._assert_ends(process)

    @parameterized.parameters(1, 10, 100)
    @pytest.mark.extended
    def test_while_text_streams(self, size: int) -> None:
        with self._start() as process:
            process.stdout.read(size)
            self._assert_ends(process)

    @pytest.mark.extended
    def test_while_the_simulator_runs(self) -> None:
        flags = (f"--model={self.model}", "--prompt=the cat", "--implementation=simulate")
        done = subprocess.run(
            [sys.executable, "-c", SIMULATOR_INTERRUPTED, *flags],
            env=commands.environment(),
            capture_output=True,
            check=False,
            timeout=600,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (130, b"", b"\n"))


class _OnTerminal(subprocess.Popen):
    """The command with a terminal as its standard error."""

    def __init__(self, *flags: str):
        self._terminal, follower = os.openpty()
        super().__init__(
            commands.command("jax_tkg.generate", *flags),
            env=commands.environment(TERM="xterm"),
            stdout=subprocess.PIPE,
            stderr=follower,
        )
        os.close(follower)
        self._drawn = bytearray()
        # A terminal that nobody reads stops who writes to it.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._terminal, 4096)
            except OSError:
                # Linux's way to say that the other end is closed.
                break
            if not piece:
                break
            self._drawn += piece
        os.close(self._terminal)

    def drawn(self) -> str:
        """What was written to the terminal: so far, or all where the process has ended."""
        if self.poll() is not None:
            self._reader.join()
        return self._drawn.decode(errors="replace")


if __name__ == "__main__":
    absltest.main()
