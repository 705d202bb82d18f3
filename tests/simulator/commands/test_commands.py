"""The commands as a stranger to the repository calls them, on a kernel of theirs, without JAX."""

import json
import pathlib
import subprocess
import tempfile

import numpy as np
from absl.testing import parameterized

from tests import commands

_KERNELS = pathlib.Path(__file__).with_name("strangers_kernel.py")
_KERNEL = f"{_KERNELS}:softmax_of_product"
_RANKS = 4


class CommandsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def _call(self, *words: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
        hidden = commands.without(str(self.folder), ["jax", "jaxlib", "absl"])
        return commands.run("jax_tkg.simulator", *words, **hidden, **changes)

    def _fails(self, *words: str, **changes: str) -> str:
        done = self._call(*words, **changes)
        self.assertEqual(done.returncode, 1, done.stdout)
        line = commands.last_line(done)
        self.assertStartsWith(line, "error: ")
        return line

    def test_run(self) -> None:
        draw = np.random.default_rng(0)
        files, partial = [], np.zeros((128, 96))
        for rank in range(_RANKS):
            lhs, rhs = (draw.standard_normal((256, n)).astype(np.float32) for n in (128, 96))
            partial += lhs.astype(np.float64).T @ rhs
            files.append(self.folder / f"rank{rank}.npz")
            np.savez(files[-1], lhs=lhs, rhs=rhs)
        output = self.folder / "results.npz"
        done = self._call(
            *("run", _KERNEL, "scale=0.1", "groups=[[0,1,2,3]]", f"--ranks={_RANKS}"),
            *(f"--inputs={file}" for file in files),
            f"--output={output}",
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, rb"rank 3 output: float32 \[128, 96\], min \S+, max 0")
        expected = np.exp(0.1 * (partial - partial.max(axis=1, keepdims=True)))
        expected /= expected.sum(axis=1, keepdims=True)
        results = np.load(output)
        self.assertEqual(sorted(results), [f"rank{rank}.output" for rank in range(_RANKS)])
        for rank in range(_RANKS):
            np.testing.assert_allclose(results[f"rank{rank}.output"], expected, rtol=1e-4)

    def test_profile(self) -> None:
        trace = self.folder / "trace.json"
        done = self._call(
            *("profile", _KERNEL, "lhs=bfloat16[256,128]*0.1", "rhs=bfloat16[256,96]"),
            *("groups=[[0,1,2,3]]", "--ranks=4", "--lnc=2", "--races=ignore", f"--trace={trace}"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        report = done.stdout.decode()
        for part in ("modeled on trn2", "core 1 busy", "critical path", "strangers_kernel.py:"):
            self.assertIn(part, report)
        names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
        self.assertContainsSubset({"nc_matmul", "all_reduce", "dma_copy"}, names)

    def test_check(self) -> None:
        done = self._call("check", _KERNEL)
        self.assertEqual((done.returncode, done.stdout), (0, b"0 findings\n"), done.stderr)
        done = self._call("check", f"{_KERNELS}:unfit_for_the_compiler")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stdout, rb"strangers_kernel.py:\d+: comprehension")

    def test_broken_rule(self) -> None:
        line = self._fails("run", f"{_KERNELS}:too_wide", "x=float32[128,128]")
        self.assertRegex(
            line,
            r"nc_matmul: .* at most 512, got 600; moving is <sbuf tensor 'moving_tile' "
            r"\[128, 600\] float32> \(\S*strangers_kernel.py:\d+\)$",
        )

    def test_misspelled_instruction(self) -> None:
        line = self._fails("run", f"{_KERNELS}:misspelled", "x=float32[128,8]")
        self.assertRegex(
            line,
            r"'nki.isa' has no attribute 'tensor_tensr'; did you mean 'tensor_tensor'\? "
            r"\(\S*strangers_kernel.py:\d+\)$",
        )

    @parameterized.parameters(
        (["run"], "are required: module:kernel"),
        (["rum"], "invalid choice: 'rum'"),
        (["run", "kernels"], "expected module:kernel or file.py:kernel, got 'kernels'"),
        (["run", "nowhere:kernel"], "there is no module 'nowhere'"),
        (["run", "/nowhere.py:kernel"], "/nowhere.py: no such file"),
        (["run", f"{_KERNELS}:softmax_of_produkt"], "did you mean 'softmax_of_product'?"),
        (["run", _KERNEL, "lhs=float32[128,128]"], "argument 'rhs' is missing"),
        (["run", _KERNEL, "lsh=float32[128,128]"], "no such parameter; did you mean 'lhs'?"),
        (["run", _KERNEL, "lhs=float23[128]"], "got float23[128]; did you mean 'float32'?"),
        (["run", _KERNEL, "lhs=float32[0]"], "expected positive sizes"),
        (["run", _KERNEL, "lhs=bfloat16"], "expected an array of this name in --inputs"),
        (["run", _KERNEL, "lhs"], "expected name=value"),
        (["run", _KERNEL, "--inputs=/nowhere.npz"], "/nowhere.npz: No such file"),
        (["run", _KERNEL, "--ranks=0"], "--ranks: expected 1 or more"),
        (["profile", _KERNEL, "--rank=1"], "--rank: expected 0..0, got 1"),
        (["run", _KERNEL, "--output=/nowhere/a.npz"], "--output: expected a file that can be"),
        (["profile", _KERNEL, "--trace=/nowhere/a"], "--trace: expected a file that can be"),
        (["profile", _KERNEL, "--plot=a.svg"], "--plot: expected a name that ends in .png"),
        (["check"], "expected module:kernel, got none"),
    )
    def test_wrong_words(self, words: list[str], message: str) -> None:
        from jax_tkg import command_line
        from jax_tkg.simulator.commands.main import main

        with self.assertRaises((command_line.CommandError, OSError)) as caught:
            main(words)
        self.assertIn(message.partition(": No")[0], str(caught.exception))

    def test_variables_of_aws(self) -> None:
        words = ("run", f"{_KERNELS}:unfit_for_the_compiler", "x=float32[128,8]")
        self.assertIn("NKI_PRECISE_FP=0: expected 1", self._fails(*words, NKI_PRECISE_FP="0"))
        line = self._fails(*words, NEURON_PLATFORM_TARGET_OVERRIDE="trn9")
        self.assertIn("target 'trn9' is unknown", line)
