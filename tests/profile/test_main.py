"""The command, as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
from absl import flags
from absl.testing import absltest

from jax_tkg import command_line
from jax_tkg.errors import UserError
from jax_tkg.profile import command

SMALL = "--dims=4,256,256,4,2,64"
TINY = "--dims=2,512,512,8,8,64"
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
        self.assertIn("--dims: expected 6 positive integers, got '1,2'", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_bad_flag(self):
        """In this process, in which a test takes seconds less; another exception is a traceback."""
        for given, words in (
            (("--config=/nowhere/config.json",), "/nowhere/config.json: expected a file, got no"),
            (("--tensor_parallel=7",), "tensor_parallel=7: expected a divisor"),
            (("--batch=257", "--tensor_parallel=1", SMALL), "expected at most 256 tokens"),
            (("--batch=1,x",), "--batch: expected positive integers, got '1,x'"),
            (
                (TINY, "--tensor_parallel=4", "--context=256", "--context_parallel=2"),
                "context_parallel: expected a divisor of the 1 ranks",
            ),
            ((TINY, "--quantized_mlp=float8_e4m3fn"), "quantized_mlp: expected float8_e4m3 or"),
            ((TINY, "--cache_dtype=float8_e4m3fn"), "cache_dtype: expected float8_e4m3 on"),
            (("--context=4", "--s_tkg=5"), "--context: expected at least the 5 new tokens"),
            (("--context=0",), "--context=0"),
            (("--context=-1",), "--context=-1"),
            (("--s_tkg=0",), "--s_tkg=0"),
            (("--s_tkg=9",), "--s_tkg=9"),
            (("--tensor_parallel=0",), "--tensor_parallel=0"),
            *(
                ((f"--{name}_us={time}",), f"--{name}_us={time}")
                for name in ("all_reduce", "host_gap", "loop_turn")
                for time in ("-5.0", "nan", "inf")
            ),
            *(
                ((f"--dims={sizes}",), f"--dims: expected 6 positive integers, got '{sizes}'")
                for sizes in ("a,b", "a,1,1,1,1,2", "0,512,512,8,8,64", "2,-512,512,8,8,64")
            ),
            (("--dims=2,512,512,8,3,64",), "--dims: expected query heads to be a multiple of"),
            (("--dims=2,512,512,8,8,63",), "--dims: expected an even head size of at most 256"),
            (("--dims=2,512,512,8,8,258",), "--dims: expected an even head size of at most 256"),
            (("--compare=nkilib", *AWS_FITS), "expected NKILIB to name a checkout"),
            (
                (TINY, "--config=/nowhere"),
                "--config: expected one of --model, --config and --dims, got --config and --dims",
            ),
            ((TINY, "--model=llama3_70b"), "--model: expected one of"),
            (("--config=/nowhere", "--model=llama3_70b"), "got --model and --config"),
        ):
            with self.subTest(words):
                with (
                    mock.patch.dict("os.environ", NKILIB="/nowhere"),
                    self.assertRaises(UserError) as caught,
                ):
                    command_line.call("jax_tkg.profile.command", "profile", given)
                self.assertIn(words, str(caught.exception))

    def test_output_files_are_checked_first(self):
        for flag, words in (
            ("--trace=/nowhere/a.json", "--trace: expected a file that can be written"),
            ("--plot=/nowhere/a.png", "--plot: expected a file that can be written"),
            ("--plot=a.svg", "--plot: expected a name that ends in .png"),
        ):
            with (
                self.subTest(flag),
                mock.patch.object(command, "record_launches", side_effect=AssertionError),
                self.assertRaisesRegex(UserError, words),
            ):
                command_line.call("jax_tkg.profile.command", "profile", (TINY, flag))

    def test_out_of_memory(self):
        with (
            mock.patch.object(command, "record_launches", side_effect=MemoryError("no room")),
            self.assertRaisesRegex(UserError, "--context, --batch: expected .*, got no room"),
        ):
            command_line.call("jax_tkg.profile.command", "profile", (TINY,))

    def test_bounds_are_included(self):
        values = flags.FlagValues()
        command.define_flags(values)
        least = ("--host_gap_us=0", "--loop_turn_us=0", "--all_reduce_us=0", "--s_tkg=8")
        values(["profile", *least, "--context=8", "--tensor_parallel=1"])
        self.assertEqual((values.all_reduce_us, values.s_tkg, values.context), (0.0, 8, 8))


if __name__ == "__main__":
    absltest.main()
