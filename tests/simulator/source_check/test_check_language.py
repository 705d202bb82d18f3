"""The language checker: each rule on a kernel that breaks it, and on one that does not."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pathlib
import subprocess
import sys
import tempfile
import types
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
from absl.testing import absltest, parameterized
from nki.language import NKIObject

from jax_tkg.simulator.source_check import language_rules
from jax_tkg.simulator.source_check.findings import check_language
from jax_tkg.simulator.source_check.source import unwrap
from tests.simulator.source_check import constructs


class RulesTest(parameterized.TestCase):
    def _load(self, source: str) -> types.ModuleType:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / "checked_kernel.py"
        path.write_text(constructs.PREAMBLE + source)
        self.enter_context(_path(folder.name))
        sys.modules.pop("checked_kernel", None)
        self.addCleanup(sys.modules.pop, "checked_kernel", None)
        importlib.invalidate_caches()
        return importlib.import_module("checked_kernel")

    @parameterized.named_parameters((name, name, *case) for name, case in constructs.CASES.items())
    def test_rule(self, name: str, broken: str, line: int, kept: str) -> None:
        rule = language_rules.RULES[name.split("_")[0]]
        findings = check_language(self._load(broken).kernel)
        (finding,) = [finding for finding in findings if finding.rule is rule]
        also = {finding.rule.name for finding in findings} - {rule.name}
        self.assertEqual(also, constructs.ALSO.get(name, set()))
        self.assertEqual(finding.is_note, rule.note is not None)
        self.assertEqual(finding.line, line + constructs.PREAMBLE.count("\n"))
        self.assertEndsWith(finding.file, "checked_kernel.py")
        for part in (f":{finding.line}:", rule.name, rule.remedy, rule.source, rule.note or ""):
            self.assertIn(part, str(finding))
        others = check_language(self._load(kept).kernel)
        self.assertNotIn(rule, [finding.rule for finding in others])
        self.assertEqual([finding for finding in others if not finding.is_note], [])

    def test_every_rule_has_a_case(self) -> None:
        # A name in two modules has a test of its own.
        names = {name.split("_")[0] for name in constructs.CASES} | {"shared-name"}
        self.assertEqual(names, set(language_rules.RULES))

    def test_table(self) -> None:
        table = language_rules.rules_table()
        for rule in language_rules.RULES.values():
            self.assertIn(f"| {rule.name} | {rule.summary}", table)
            self.assertIn(rule.source, table)
        for what in language_rules.NOT_CHECKED:
            self.assertIn(f"- {what}", table)

    def test_what_documents_only_imply_is_marked(self) -> None:
        (finding,) = check_language(self._load("def kernel(x):\n    raise x\n").kernel)
        self.assertIn("(implied by NKI language guide", str(finding))

    def test_page(self) -> None:
        page = pathlib.Path(__file__).parents[3] / "docs" / "language_rules.md"
        self.assertEqual(
            page.read_text(), language_rules.PAGE_HEADER + language_rules.rules_table()
        )

    def test_every_rule_names_its_source(self) -> None:
        documents = r"^(NKI (release notes|language guide|migration guide), |nki\.language\.).+"
        patterns = {
            language_rules.Basis.DOCUMENTED: documents,
            language_rules.Basis.IMPLIED: documents,
            language_rules.Basis.REPORTED: ".+",
            language_rules.Basis.KLR: r"^KLR, [\w/]+\.(c|lean)$",
        }
        for rule in language_rules.RULES.values():
            self.assertRegex(rule.source, patterns[rule.basis])

    def test_names_that_lists_and_tensors_have_too(self) -> None:
        kept = "def kernel(x):\n    return x.index(1) + x.count(1) + len(x.get('a').keys())\n"
        self.assertEqual(check_language(self._load(kept).kernel), [])

    def test_annotations_are_not_evaluated(self) -> None:
        kept = "def kernel(x: {1, 2} = None, y: sorted = 1) -> (lambda: 1):\n    return x\n"
        self.assertEqual(check_language(self._load(kept).kernel), [])


class SharedNameTest(parameterized.TestCase):
    """A name of two modules, of which the compiler may take one for the other."""

    CALLS = "from one_checked import start\n\ndef kernel(x):\n    return start(x) + {}\n"

    def _notes(self, one: str, other: str) -> list[str]:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.enter_context(_path(folder.name))
        for name, source in (("one_checked", one), ("other_checked", other)):
            pathlib.Path(folder.name, f"{name}.py").write_text(constructs.PREAMBLE + source)
            sys.modules.pop(name, None)
            self.addCleanup(sys.modules.pop, name, None)
        importlib.invalidate_caches()
        kernel = importlib.import_module("other_checked").kernel
        return [f"{f.rule.name} {f.found} {f.is_note}" for f in check_language(kernel)]

    def test_function(self) -> None:
        one = "def _store(x):\n    return x\n\ndef start(x):\n    return _store(x)\n"
        other = "def _store(x):\n    return 1\n\n" + self.CALLS.format("_store(x) + _store(x)")
        (note,) = self._notes(one, other)
        self.assertRegex(note, "^shared-name `_store`, which is another in .*_checked.py True$")
        self.assertEqual(self._notes(one, other.replace("_store", "_keep")), [])

    def test_constant(self) -> None:
        one = "N = 1\n\ndef start(x):\n    return N\n"
        self.assertLen(self._notes(one, "N = 2\n" + self.CALLS.format("N")), 1)
        self.assertEqual(self._notes(one, "N = 1\n" + self.CALLS.format("N")), [])

    def test_parameters_are_their_own(self) -> None:
        one = "def size(x):\n    return x\n\ndef start(x):\n    return size(x)\n"
        other = "from one_checked import start\n\ndef kernel(x, size=1):\n    return start(size)\n"
        self.assertEqual(self._notes(one, other), [])


class _path:
    """Puts a folder on the import path."""

    def __init__(self, folder: str):
        self._folder = folder

    def __enter__(self) -> None:
        sys.path.insert(0, self._folder)

    def __exit__(self, *_: Any) -> None:
        sys.path.remove(self._folder)


def _helper(x: Any) -> Any:
    return _deeper(x)


def _deeper(x: Any) -> Any:
    return x is None


class _Tile(NKIObject):
    def use(self, x: Any) -> Any:
        return x is None


class _Color(enum.Enum):
    red = 1


@nki.jit
def _calls_helper(x: Any) -> Any:
    return _helper(x)


@nki.jit
def _nested(x: Any) -> Any:
    return _calls_helper(x)


def _uses_class(x: Any) -> Any:
    return _Tile().use(x)


def _through_a_module(x: Any) -> Any:
    return sys.modules and THIS.helper(x)


def _recurses(x: Any, depth: int = 0) -> Any:
    if depth == 0:
        return x
    return _recurses(x, depth - 1)


def _passes_function(x: Any) -> Any:
    return tuple(_deeper, (x,))


def _clean(x: Any) -> Any:
    tile = nl.ndarray((128, 8), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=tile, value=0.0)
    return (_Color.red, tile, x)


THIS = types.ModuleType("this")
THIS.helper = _deeper  # type: ignore[attr-defined]


class ReachTest(parameterized.TestCase):
    """What a kernel calls is checked too, once."""

    @parameterized.named_parameters(
        ("helper", _calls_helper, _deeper),
        ("nested_jit", _nested, _deeper),
        ("method", _uses_class, _Tile),
        ("attribute_of_a_module", _through_a_module, _deeper),
        ("function_as_argument", _passes_function, _deeper),
    )
    def test_reaches(self, kernel: Any, where: Any) -> None:
        (finding,) = check_language(kernel)
        self.assertEqual(finding.rule.name, "identity")
        lines, first = inspect.getsourcelines(where)
        self.assertBetween(finding.line, first, first + len(lines))

    @parameterized.parameters(_clean, _recurses)
    def test_clean(self, kernel: Any) -> None:
        self.assertEqual(check_language(kernel), [])

    def test_a_module_is_no_decorated_kernel(self) -> None:
        module = types.ModuleType("kernels")
        module.function = _deeper  # type: ignore[attr-defined]
        self.assertIs(unwrap(module), module)

    def test_no_source(self) -> None:
        with self.assertRaisesRegex(TypeError, "kernel: expected a Python function"):
            check_language(len)

    def test_findings_are_values(self) -> None:
        first, second = check_language(_nested), check_language(_nested)
        self.assertEqual(first, second)
        self.assertTrue(dataclasses.is_dataclass(first[0]))


class CommandTest(absltest.TestCase):
    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jax_tkg.simulator.check_language", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=pathlib.Path(__file__).resolve().parents[3],
        )

    def test_our_kernel(self) -> None:
        done = self._run("jax_tkg.kernels.transformer:transformer_tkg")
        self.assertEqual(done.returncode, 0, done.stderr)
        note, count = done.stdout.splitlines()
        self.assertRegex(
            note, r"kernels/layer_sequence\.py:\d+: loop-body: `body`: note, allowed from"
        )
        self.assertEqual(count, "0 findings, 1 notes")

    def test_findings(self) -> None:
        done = self._run("tests.simulator.source_check.test_check_language:_nested")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("identity", done.stdout)
        self.assertEndsWith(done.stdout, "1 findings\n")

    def test_rules(self) -> None:
        done = self._run("--rules")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("| loop-target |", done.stdout)

    def test_usage(self) -> None:
        self.assertEqual(self._run().returncode, 2)


if __name__ == "__main__":
    absltest.main()
