"""The fuzz run: a short one, and that it notices what it is there for."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models.errors import ModelError
from scripts.fuzz_models import gguf_cases, judge, run
from scripts.fuzz_models.case import Case, Mutation, Verdict, refused
from tests.models import files
from tests.models.tiny import Tiny


class RunTest(parameterized.TestCase):
    @pytest.mark.slow
    @pytest.mark.extended
    def test_no_case_has_a_fault(self) -> None:
        results = list(run.run(count=60, seed=1))
        self.assertLen(results, 60)
        faults = [
            (result.index, result.mutation, result.outcome)
            for result in results
            if result.outcome.faults
        ]
        self.assertEmpty(faults)
        # It finds nothing either where it tries nothing.
        kinds = {(result.kind, result.outcome.result == "loaded") for result in results}
        self.assertContainsSubset({("gguf", False), ("folder", False), ("gguf", True)}, kinds)

    @parameterized.parameters(*run.KINDS)
    def test_same_seed_same_case(self, kind: str) -> None:
        contents = []
        for _ in range(2):
            folder = files.folder(self)
            case = run.KINDS[kind](random.Random("0 7"), folder)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            contents.append([(path.name, path.read_bytes()) for path in paths])
            self.assertTrue(case.path.is_relative_to(folder))
        self.assertEqual(*contents)


def _model() -> gguf_cases.Image:
    return gguf_cases.image(Tiny(hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1))


class ImageTest(absltest.TestCase):
    def test_undamaged_files_load(self) -> None:
        """What the mutations start from is right, so that they are what is refused."""
        folder = files.folder(self)
        path = folder / "model.gguf"
        path.write_bytes(_model().content())
        outcome = judge.judge(Case(path, Mutation("", Verdict.LOADED)), folder, judge.load_model)
        self.assertEqual((outcome.result, outcome.faults), ("loaded", ()))


class JudgeTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.path = self.folder / "model.gguf"
        self.path.touch()

    def faults(self, load: Callable[[pathlib.Path], None], mutation: Mutation) -> tuple[str, ...]:
        return judge.judge(Case(self.path, mutation), self.folder, load).faults

    def refusing(self, message: str) -> Callable[[pathlib.Path], None]:
        def load(path: pathlib.Path) -> None:
            raise ModelError(message.format(path=path))

        return load

    def test_refused_as_it_must_be(self) -> None:
        load = self.refusing("{path}: the.key: expected 1, got 2")
        self.assertEqual(self.faults(load, refused("", "the.key")), ())

    @parameterized.parameters(
        ("{path}: the.key: wrong", "what was expected"),
        ("the.key: expected 1, got 2", "begin with the file"),
        ("{path}: other: expected 1, got 2", "mention 'the.key'"),
    )
    def test_message(self, message: str, part: str) -> None:
        (fault,) = self.faults(self.refusing(message), refused("", "the.key"))
        self.assertIn(part, fault)

    def test_accepted(self) -> None:
        self.assertEqual(self.faults(lambda path: None, refused("")), ("accepted",))

    def test_refused(self) -> None:
        load = self.refusing("{path}: expected 1, got 2")
        self.assertEqual(self.faults(load, Mutation("", Verdict.LOADED)), ("refused",))

    @parameterized.parameters(TypeError, RecursionError, SystemExit, UnicodeEncodeError)
    def test_traceback(self, kind: type[BaseException]) -> None:
        def load(path: pathlib.Path) -> None:
            raise kind("utf-8", "", 0, 1, "") if kind is UnicodeEncodeError else kind()

        self.assertEqual(self.faults(load, refused("")), (f"traceback of {kind.__name__}",))

    def test_warning(self) -> None:
        def load(path: pathlib.Path) -> None:
            np.float32(1e38) * np.float32(1e38)

        self.assertEqual(self.faults(load, Mutation("")), ("traceback of RuntimeWarning",))

    def test_file_outside(self) -> None:
        outside = files.folder(self) / "secret"
        outside.write_text("x")

        def load(path: pathlib.Path) -> None:
            path.read_bytes()
            outside.read_text()

        self.assertEqual(self.faults(load, Mutation("")), (f"opened {outside}",))

    def test_link_outside(self) -> None:
        outside = files.folder(self) / "secret"
        outside.write_text("x")
        link = self.folder / "link"
        link.symlink_to(outside)

        def load(path: pathlib.Path) -> None:
            link.read_text()

        self.assertEqual(self.faults(load, Mutation("")), (f"opened {link}",))


if __name__ == "__main__":
    absltest.main()
