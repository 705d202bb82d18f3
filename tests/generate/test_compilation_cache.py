"""What one run of the command compiles, the next one loads."""

from __future__ import annotations

import contextlib
import io
import pathlib
import warnings
from unittest import mock

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax.experimental.compilation_cache import compilation_cache

from jax_tkg.generate import compilation_cache as compilation_cache_module
from jax_tkg.generate.compilation_cache import use_compilation_cache
from jax_tkg.models.executables import Executables
from tests import commands
from tests.models import files, tiny

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


def _programs(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.rglob("*-cache")}


def _whole(x: jax.Array) -> jax.Array:
    return x * 17


def _cut_off(x: jax.Array) -> jax.Array:
    return x * 19


@pytest.mark.slow
@pytest.mark.extended
class SecondRunTest(absltest.TestCase):
    def test_compiles_nothing_and_writes_the_same_text(self) -> None:
        home = files.folder(self)
        model, compiled = home / "model.gguf", home / "jax_tkg" / "compiled"
        tiny.write_tiny(model)
        flags = (f"--model={model}", "--prompt=the cat", "--max_tokens=12")
        variables = {"XDG_CACHE_HOME": str(home), "JAX_COMPILATION_CACHE_DIR": ""}
        first = commands.run("jax_tkg.generate", *flags, **variables)
        self.assertEqual(first.returncode, 0, first.stderr)
        programs = _programs(compiled)
        self.assertTrue(any("step" in name for name in programs), programs)
        second = commands.run("jax_tkg.generate", *flags, **variables)
        self.assertEqual((second.returncode, second.stdout), (0, first.stdout))
        # Beside the rates nothing: XLA takes tuning of the processor for features that it lacks.
        self.assertLen(second.stderr.splitlines(), 1, second.stderr)
        # A program that is compiled is written.
        self.assertEqual(_programs(compiled), programs)


class FolderTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        before = {name: getattr(jax.config, name) for name in SETTINGS}

        def restore() -> None:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()

        self.addCleanup(restore)
        compilation_cache.reset_cache()
        self.folder = files.folder(self)

    def _noted(self, named: str | None) -> str:
        """What is written on standard error."""
        with contextlib.redirect_stderr(io.StringIO()) as written:
            use_compilation_cache(named)
        return written.getvalue()

    def test_loaded_program_updates_in_place(self) -> None:
        """Donation survives the cache."""
        self.assertEqual(self._noted(str(self.folder / "named")), "")

        def add(weight: jax.Array, state: jax.Array) -> jax.Array:
            return state.at[3].add(weight[0])

        for turn in range(2):
            jax.clear_caches()
            executables = Executables(add, (), donate_argnums=(1,))
            state = jnp.arange(1024.0)
            pointer = state.unsafe_buffer_pointer()
            updated = executables(jnp.ones(1), state)
            self.assertTrue(state.is_deleted())
            self.assertEqual(updated.unsafe_buffer_pointer(), pointer)
            self.assertEqual(updated[3], 4)
            names = [name for name in _programs(self.folder) if name.startswith("jit_add-")]
            self.assertLen(names, 1, f"turn {turn}")

    def test_programs_that_were_cut_off_are_written_anew(self) -> None:
        """Ctrl-C while JAX writes; what it had written before stays."""
        named = str(self.folder)

        def run() -> list[str]:
            """Compiles two programs as a command would, and returns the warnings."""
            jax.clear_caches()
            compilation_cache.reset_cache()
            self.assertEqual(self._noted(named), "")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for program in (_whole, _cut_off):
                    jax.jit(program)(np.ones(3, np.float32))
            return [str(warning.message) for warning in caught]

        write = pathlib.Path.write_bytes

        def interrupted(path: pathlib.Path, data: bytes) -> int:
            if not path.name.startswith("jit__cut_off") or not path.name.endswith("-cache"):
                return write(path, data)
            write(path, data[: len(data) // 2])
            raise KeyboardInterrupt

        with (
            mock.patch.object(pathlib.Path, "write_bytes", interrupted),
            self.assertRaises(KeyboardInterrupt),
        ):
            run()
        (half,) = self.folder.rglob("jit__cut_off-*-cache")
        (whole,) = self.folder.rglob("jit__whole-*-cache")
        sizes = half.stat().st_size, whole.stat().st_size
        written = whole.stat().st_mtime_ns
        for turn in range(2):
            self.assertEqual(run(), [], turn)
            self.assertGreater(half.stat().st_size, sizes[0])
            self.assertEqual((whole.stat().st_size, whole.stat().st_mtime_ns), (sizes[1], written))

    def test_waits_for_those_who_write(self) -> None:
        self.assertEqual(self._noted(str(self.folder)), "")
        (lock,) = self.folder.rglob(".lockfile")
        with (
            filelock.FileLock(lock),
            mock.patch.object(compilation_cache_module, "_LOCK_SECONDS", 0.01),
        ):
            line = self._noted(str(self.folder))
        self.assertRegex(line, r"^note: --compilation_cache: expected to lock .* within 0.01 s, ")
        self.assertTrue(jax.config.jax_enable_compilation_cache)

    def test_off(self) -> None:
        self.assertEqual(self._noted("off"), "")
        jax.jit(lambda x: x * 17)(jnp.ones(3))
        self.assertFalse(jax.config.jax_enable_compilation_cache)

    @parameterized.parameters(
        ((0, 9, 2), 1, True), ((0, 9, 2), 2, False), ((0, 10, 0), 1, True), ((0, 10, 0), 2, True)
    )
    def test_several_processes(
        self, version: tuple[int, ...], num_processes: int, enabled: bool
    ) -> None:
        """In JAX 0.9 the second run of several processes would hang."""
        with mock.patch.object(jax, "__version_info__", version):
            use_compilation_cache(str(self.folder), num_processes)
        self.assertEqual(jax.config.jax_enable_compilation_cache, enabled)

    def test_jax_own_setting_stays(self) -> None:
        jax.config.update("jax_compilation_cache_dir", str(self.folder))
        self.assertEqual(self._noted(None), "")
        self.assertEqual(jax.config.jax_compilation_cache_dir, str(self.folder))

    def test_unusable_folder_is_noted_in_one_line(self) -> None:
        file, shared = self.folder / "file", self.folder / "shared"
        file.touch()
        shared.mkdir()
        shared.chmod(0o777)
        cases = {
            str(file / "under_a_file"): "Not a directory",
            str(shared): "which others can write to (mode 777)",
        }
        for named, part in cases.items():
            line = self._noted(named)
            self.assertEqual(line.count("\n"), 1, line)
            self.assertStartsWith(line, "note: --compilation_cache: expected a folder of your own")
            self.assertIn(part, line)
            self.assertFalse(jax.config.jax_enable_compilation_cache)
        jax.config.update("jax_compilation_cache_dir", None)
        with mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(file)}):
            self.assertIn(str(file), self._noted(None))


if __name__ == "__main__":
    absltest.main()
