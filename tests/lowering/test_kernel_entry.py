"""Generated entries: they run as the kernel does, and their files are written with care."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import inspect
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.call.arguments import Parameters
from jax_tkg.lowering import kernel_entry, launches
from jax_tkg.lowering.kernel_operands import kernel_operands
from tests import cases
from tests.kernels import launch as kernel_launch

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = cases.Shape(L=3)
SOURCE = f"def {kernel_entry.ENTRY_NAME}():\n    return 'generated'\n"


def _arguments(shape: cases.Shape = SHAPE) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


@pytest.mark.thorough
class SourceTest(parameterized.TestCase):
    """The generated entry runs in the simulator as the kernel itself does."""

    @parameterized.product(stacked=(False, True), quantized=(False, True))
    def test_runs(self, stacked: bool, quantized: bool) -> None:
        kinds = (("float8_e4m3",) * 3,) * 2 if quantized else ()
        if quantized and not stacked:
            kinds = (kinds[0], (None, None, None))
        shape = cases.Shape(L=2, quantized=kinds)
        arguments = _arguments(shape)
        operands, parameters = kernel_launch.canonical(
            cases.stack(arguments) if stacked else arguments, **cases.options(shape)
        )
        seen: list[Any] = []

        def simulate(tensors: dict[str, Any], launch: launches.Launch) -> Any:
            source = kernel_entry.entry_source(tensors, launch)
            entry = kernel_entry.load_entry(source)
            _, values = kernel_entry.flatten(jax.tree.map(np.asarray, tensors))
            result = kernel_launch.simulator.run(entry, [tuple(values)])
            seen.append(source)
            hidden, *caches = result.outputs[0]
            half = len(caches) // 2
            if stacked:
                return hidden, caches[0], caches[1]
            return hidden, tuple(caches[:half]), tuple(caches[half:])

        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict("os.environ", {kernel_entry.DIRECTORY_VARIABLE: folder}),
        ):
            out = jax_tkg.TransformerTkgOutput(
                *launches.run_launches(operands, parameters, simulate)
            )
            self.assertLen(list(pathlib.Path(folder).glob("*.py")), 1)
        hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
        cases.check(out, shape, arguments, hidden, K[0], V[0], written)
        self.assertLen(seen, 1)

    @pytest.mark.extended
    def test_equal_launches_share_a_file(self) -> None:
        operands, parameters = kernel_launch.canonical(_arguments(), **cases.options(SHAPE))
        tensors = kernel_operands(operands)
        launch = launches.Launch(Parameters(SHAPE.L, eps=1e-5), None, 0, SHAPE.L, False)
        del parameters
        self.assertEqual(
            kernel_entry.entry_source(tensors, launch), kernel_entry.entry_source(tensors, launch)
        )
        other = dataclasses.replace(launch, parameters=Parameters(SHAPE.L, eps=1e-6))
        self.assertNotEqual(
            kernel_entry.entry_source(tensors, launch), kernel_entry.entry_source(tensors, other)
        )


@pytest.mark.thorough
class FileTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "kernels"
        variables = {kernel_entry.DIRECTORY_VARIABLE: str(self.folder)}
        self.enterContext(mock.patch.dict("os.environ", variables))

    def _file(self, source: str = SOURCE) -> pathlib.Path:
        """Where the entry of `source` lies, found by loading it elsewhere first."""
        with tempfile.TemporaryDirectory() as elsewhere:
            variables = {kernel_entry.DIRECTORY_VARIABLE: elsewhere}
            with mock.patch.dict("os.environ", variables):
                kernel_entry.load_entry(source)
            (only,) = pathlib.Path(elsewhere).iterdir()
        return self.folder / only.name

    def test_private_folder_and_readable_source(self) -> None:
        entry = kernel_entry.load_entry(SOURCE)
        self.assertEqual(entry(), "generated")
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        self.assertEqual(list(self.folder.iterdir()), [self._file()])
        self.assertEqual(inspect.getsourcefile(entry), str(self._file()))
        self.assertEqual(inspect.getsource(entry), SOURCE)

    def test_equal_sources_are_one_function(self) -> None:
        first = kernel_entry.load_entry(SOURCE)
        self.assertIs(kernel_entry.load_entry(SOURCE), first)
        self.assertIsNot(kernel_entry.load_entry(SOURCE + "\n"), first)

    @parameterized.named_parameters(
        ("planted", f"def {kernel_entry.ENTRY_NAME}():\n    return 'planted'\n"),
        ("empty", ""),
        ("half", SOURCE[: len(SOURCE) // 2]),
        ("not_text", "\udcff"),
    )
    def test_other_contents_are_rewritten(self, contents: str) -> None:
        path = self._file()
        path.parent.mkdir(mode=0o700)
        path.write_text(contents, errors="surrogateescape")
        self.assertEqual(kernel_entry.load_entry(SOURCE)(), "generated")
        self.assertEqual(path.read_text(), SOURCE)
        # Also where this process has loaded the entry before.
        path.write_text(contents, errors="surrogateescape")
        self.assertEqual(kernel_entry.load_entry(SOURCE)(), "generated")
        self.assertEqual(path.read_text(), SOURCE)
        self.assertEqual(list(self.folder.iterdir()), [path])

    @parameterized.parameters(SOURCE, "mine")
    def test_symbolic_links_are_replaced(self, contents: str) -> None:
        path = self._file()
        path.parent.mkdir(mode=0o700)
        target = path.parent.parent / "target"
        target.write_text(contents)
        path.symlink_to(target)
        # The name of the temporary file of earlier releases, which could be guessed.
        path.with_suffix(f".{os.getpid()}").symlink_to(target)
        kernel_entry.load_entry(SOURCE)
        self.assertEqual(target.read_text(), contents)
        self.assertFalse(path.is_symlink())
        self.assertEqual(path.read_text(), SOURCE)

    def test_pipe_is_replaced(self) -> None:
        path = self._file()
        path.parent.mkdir(mode=0o700)
        os.mkfifo(path)
        kernel_entry.load_entry(SOURCE)
        self.assertEqual(path.read_text(), SOURCE)

    def test_threads(self) -> None:
        """Every round loads an entry that no thread has loaded before."""

        def load(turn: int) -> str:
            return kernel_entry.load_entry(SOURCE + f"# {turn // 8}\n")()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(set(pool.map(load, range(480))), {"generated"})
        self.assertLen(list(self.folder.iterdir()), 60)

    @pytest.mark.extended
    def test_processes(self) -> None:
        program = (
            "from jax_tkg.lowering import kernel_entry\n"
            "for turn in range(200):\n"
            f"    entry = kernel_entry.load_entry({SOURCE!r} + f'# {{turn}}\\n')\n"
            "    assert entry() == 'generated'\n"
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for _ in range(2)
        ]
        for process in running:
            _, errors = process.communicate()
            self.assertEqual(process.returncode, 0, errors)
        self.assertLen(list(self.folder.iterdir()), 200)

    def test_file_too_large_for_the_disk(self) -> None:
        """What could be written of it goes; a limit of the process stands for a full disk."""
        program = (
            "import resource, signal\n"
            "from jax_tkg.lowering import kernel_entry\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try:\n"
            f"    kernel_entry.load_entry({SOURCE!r} + '# long\\n' * 1000)\n"
            "except OSError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.assertRegex(done.stdout, "^JAX_TKG_KERNELS: expected .*File too large", done.stderr)
        self.assertEmpty(list(self.folder.iterdir()))

    def test_folder_that_cannot_be_made(self) -> None:
        self.folder.write_text("a file in its place")
        for folder in (self.folder, self.folder / "below"):
            variables = {kernel_entry.DIRECTORY_VARIABLE: str(folder)}
            with (
                mock.patch.dict("os.environ", variables),
                self.assertRaisesRegex(
                    OSError, f"JAX_TKG_KERNELS: expected .*{folder}.*; set JAX_TKG_KERNELS to"
                ),
            ):
                kernel_entry.load_entry(SOURCE)

    def test_home_that_cannot_be_written_to(self) -> None:
        self.folder.write_text("a file in its place")
        home = str(self.folder)
        with mock.patch.dict("os.environ", {"HOME": home, "XDG_CACHE_HOME": ""}):
            del os.environ[kernel_entry.DIRECTORY_VARIABLE]
            with self.assertRaisesRegex(OSError, f"{home}/.cache.*; set JAX_TKG_KERNELS to"):
                kernel_entry.load_entry(SOURCE)

    @parameterized.parameters(0o770, 0o702, 0o777)
    def test_folder_that_others_can_write_to(self, mode: int) -> None:
        self.folder.mkdir()
        self.folder.chmod(mode)
        with self.assertRaisesRegex(OSError, f"others can write to .mode {mode:o}.*; set JAX_TKG"):
            kernel_entry.load_entry(SOURCE)
        self.assertEmpty(list(self.folder.iterdir()))

    def test_folder_of_another_user(self) -> None:
        folder, owner = pathlib.Path("/"), 0
        if os.geteuid() == 0:
            folder, owner = self.folder, 65534
            folder.mkdir(mode=0o700)
            os.chown(folder, owner, -1)
        variables = {kernel_entry.DIRECTORY_VARIABLE: str(folder)}
        with (
            mock.patch.dict("os.environ", variables),
            self.assertRaisesRegex(OSError, f"belongs to user {owner}; set JAX_TKG_KERNELS to"),
        ):
            kernel_entry.load_entry(SOURCE)

    def test_path_stays_where_the_working_directory_changes(self) -> None:
        parent = self.folder.parent
        before = pathlib.Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(parent)
        with mock.patch.dict("os.environ", {kernel_entry.DIRECTORY_VARIABLE: "kernels"}):
            entry = kernel_entry.load_entry(SOURCE)
        self.assertEqual(entry.__code__.co_filename, str(self._file()))


if __name__ == "__main__":
    absltest.main()
