"""The command, as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest

from jax_tkg import command_line
from jax_tkg.errors import UserError

SMALL = "--dims=4,256,256,4,2,64"
AWS_FITS = ("--dims=4,512,256,4,1,64", "--tensor_parallel=1", "--context=256")


def _run(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jax_tkg.profile", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )


@pytest.mark.thorough
class CommandTest(absltest.TestCase):
    def test_profile_and_trace(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "trace.json"
            flags = ("--tensor_parallel=2", "--context=130", "--loads", "--batch=1,2")
            done = _run(SMALL, *flags, f"--trace={path}")
            self.assertEqual(done.returncode, 0, done.stderr)
            names = {row["name"] for row in json.loads(path.read_text())["traceEvents"]}
        self.assertIn("modeled latency of a token", done.stdout)
        self.assertIn("on other machines, modeled:", done.stdout)
        self.assertRegex(done.stdout, r"host gap of 0 us assumed\)\n.*tokens/s\n +1 .*\n.*\n +2 ")
        self.assertRegex(done.stdout, r"W_qkvs +read +65536 .* sync, hardware +kernels")
        self.assertIn("all-reduce over 2 ranks with a latency of 17.5 us", done.stdout)
        self.assertLessEqual({"dma_copy", "nc_matmul", "all_reduce"}, names)

    def test_one_clear_line(self):
        done = _run("--dims=1,2")
        self.assertEqual(done.returncode, 1)
        self.assertIn("--dims: expected 6 numbers, got 2", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_bad_flag(self):
        """In this process, in which a test takes seconds less; another exception is a traceback."""
        for flags, words in (
            (("--config=/nowhere/config.json",), "/nowhere/config.json: expected a file, got no"),
            (("--tensor_parallel=7",), "tensor_parallel=7: expected a divisor"),
            (("--batch=257", "--tensor_parallel=1", SMALL), "expected at most 256 tokens"),
            (("--batch=1,x",), "--batch: expected positive integers, got '1,x'"),
            (("--compare=nkilib", *AWS_FITS), "expected NKILIB to name a checkout"),
        ):
            with (
                self.subTest(words),
                mock.patch.dict("os.environ", NKILIB="/nowhere"),
                self.assertRaises(UserError) as caught,
            ):
                command_line.call("jax_tkg.profile.command", "profile", flags)
            self.assertIn(words, str(caught.exception))


if __name__ == "__main__":
    absltest.main()
