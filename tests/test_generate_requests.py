"""`python -m jax_tkg.generate --requests`, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from jax_tkg import command_line
from jax_tkg.command_line import CommandError
from jax_tkg.generate import command
from tests import commands
from tests.models import files, tiny

pytestmark = pytest.mark.slow


def _run(*flags: str, **changes: Any) -> subprocess.CompletedProcess[bytes]:
    return commands.run("jax_tkg.generate", *flags, **changes)


class RequestsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.model = self.folder / "model.gguf"
        tiny.write_tiny(self.model)
        self.flags = (f"--model={self.model}", "--max_tokens=12")

    def test_each_answer_is_the_request_alone(self) -> None:
        """Two bad lines among them are reported; stop texts, settings and seeds are each one's."""
        flags = (*self.flags, "--nochat", "--temperature=2", "--repetition_penalty=1.1")
        prompts = ["the cat", "12 and in", "the cat", "in", "a"]
        alone = _run(*flags, "--json", *(f"--prompt={prompt}" for prompt in prompts), "--seed=5")
        self.assertEqual(alone.returncode, 0, alone.stderr)
        # By their seeds, which are those of the prompts' places.
        by_prompt: dict[str, list[Any]] = {prompt: [] for prompt in prompts}
        for answer in map(json.loads, alone.stdout.splitlines()):
            by_prompt[answer["prompt"]].append(answer)
        stop = by_prompt["12 and in"][0]["text"][3:6]
        lines = [
            '{"prompt": "the cat", "id": "first"}',
            json.dumps({"prompt": "12 and in", "stop": [stop, "never"]}),
            "{",
            '{"prompt": "in", "seed": 8, "max_tokens": 3}',
            '{"prompt": "in", "tempurature": 1}',
            '{"prompt": "a", "seed": 9}',
        ]
        content = "\n".join(lines).encode()
        done = _run(*flags, "--requests=-", "--slots=2", "--seed=5", stdin=content)
        self.assertEqual(done.returncode, 1, done.stderr)
        notes = done.stderr.decode().splitlines()
        self.assertLen(notes, 4)
        self.assertStartsWith(notes[0], "error: standard input:3: expected a JSON object, got")
        self.assertStartsWith(notes[1], "error: standard input:5: expected the keys id, prompt")
        self.assertRegex(notes[2], r"^4 answers: \d+ prompt tokens, \d+ tokens, [\d.]+ tokens/s; ")
        self.assertStartsWith(notes[3], "error: --requests: expected requests only, got 2 of 6")
        written = {line["line"]: line for line in map(json.loads, done.stdout.splitlines())}
        self.assertEqual(
            {3: notes[0], 5: notes[1]}, {n: "error: " + written[n]["error"] for n in (3, 5)}
        )
        first = written[1]
        self.assertEqual((first["id"], first["prompt_tokens"]), ("first", 6))
        self.assertIn(first["text"], [answer["text"] for answer in by_prompt["the cat"]])
        self.assertEqual(written[2]["text"], by_prompt["12 and in"][0]["text"].partition(stop)[0])
        self.assertEqual(written[2]["finish_reason"], "stop")
        self.assertEqual(written[4]["tokens"], by_prompt["in"][0]["tokens"][:3])
        self.assertEqual(written[6]["text"], by_prompt["a"][0]["text"])

    @pytest.mark.extended
    def test_interrupt(self) -> None:
        """Ctrl-C after the first answer: all that were complete have been written, each whole."""
        path = self.folder / "requests.jsonl"
        lengths = (2, *[110] * 11)
        path.write_text("".join(f'{{"prompt": "the cat", "max_tokens": {n}}}\n' for n in lengths))
        with subprocess.Popen(
            commands.command("jax_tkg.generate", *self.flags, f"--requests={path}", "--slots=2"),
            env=commands.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            output, complaint = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, complaint)
        answers = [json.loads(line) for line in (first + output).splitlines()]
        self.assertBetween(len(answers), 1, 11)
        note = f"note: interrupted; {len(answers)} of 12 answers are written"
        self.assertIn(note, complaint.decode())
        self.assertNotIn("Traceback", complaint.decode())


class BadFlagTest(parameterized.TestCase):
    @parameterized.parameters(
        (["--prompt=a"], "--prompt: expected none with --requests, got one"),
        (["--device_loop"], "--device_loop: expected none with --requests"),
        (["--prompt_lookup_num_tokens=7"], "expected 0 with --requests, got 7"),
        (["--seed=1", "--seed=2"], "--seed: expected 1 with --requests, got 2"),
        (["--slots=0"], "--slots=0"),
        (["--requests=/nowhere/at/all"], "No such file"),
        (["--temperature=-1"], "--temperature: expected"),
        (["--stop="], "--stop: expected a text, got an empty one"),
        (["--system=\udce9"], "--system: expected text in UTF-8, got byte 0xe9"),
        (["--implementation=nki"], "--implementation: expected 'nki' on platform neuron"),
        (["--nochat", "--system=a"], "--system: expected a chat"),
    )
    def test_one_line(self, flags: list[str], part: str) -> None:
        folder = files.folder(self)
        tiny.write_tiny(folder / "model.gguf")
        requests = folder / "requests.jsonl"
        requests.write_text('{"prompt": "the cat"}')
        given = [f"--model={folder / 'model.gguf'}", f"--requests={requests}", *flags]
        with (
            # It is the process's, which the other tests have as well.
            mock.patch.object(command, "use_compilation_cache"),
            self.assertRaises((CommandError, OSError)) as caught,
        ):
            command_line.call("jax_tkg.generate.command", "models", given)
        self.assertIn(part, str(caught.exception))


if __name__ == "__main__":
    absltest.main()
