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
from jax_tkg.simulator.source_check.check_language import check_language

PREAMBLE = """
from enum import Enum
import nki
import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject
"""

# rule -> (source that breaks it, the line within it, source that does not)
CASES: dict[str, tuple[str, int, str]] = {
    "identity": (
        "def kernel(x):\n    if x is None:\n        return x\n",
        2,
        "def kernel(x):\n    if x == None:\n        return x\n",
    ),
    "identity_not": (
        "def kernel(x):\n    y = 1 if x is not None else 2\n    return y\n",
        2,
        "def kernel(x):\n    y = 1 if x != None else 2\n    return y\n",
    ),
    "keyword-only": (
        "def kernel(x, *, scale):\n    return x\n",
        1,
        "def kernel(x, scale=1.0):\n    return x\n",
    ),
    "list-argument": (
        "def kernel(x: list):\n    return x\n",
        1,
        "def kernel(x: tuple):\n    return x\n",
    ),
    "list-argument_of_tensors": (
        "def kernel(x: list[int]):\n    return x\n",
        1,
        "def kernel(x: tuple[int, ...]):\n    return x\n",
    ),
    "list-argument_default": (
        "def kernel(x=[1]):\n    return x\n",
        1,
        "def kernel(x=(1,)):\n    return x\n",
    ),
    "raw-enum": (
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=3)\n",
        2,
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=nisa.dge_mode.none)\n",
    ),
    "raw-enum_engine": (
        "def kernel(x, y):\n    nisa.tensor_copy(dst=x, src=y, engine=5)\n",
        2,
        "def kernel(x, y):\n    nisa.tensor_copy(dst=x, src=y, engine=nisa.engine.vector)\n",
    ),
    "raw-enum_by_name": (
        "NONE = 3\n\ndef kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=NONE)\n",
        4,
        "MODE = nisa.dge_mode.none\n\n"
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=MODE)\n",
    ),
    "scalar-seed": (
        "def kernel(x):\n    nl.random_seed(42)\n",
        2,
        "def kernel(x):\n    nl.random_seed(nl.full((1, 1), 42, dtype=nl.int32))\n",
    ),
    "loop-in-no-reorder": (
        "def kernel(n, body):\n    with nl.no_reorder():\n        nl.fori_loop(0, n, body)\n",
        2,
        "def kernel(n):\n    with nl.no_reorder():\n"
        "        for i in nl.affine_range(4):\n            pass\n",
    ),
    "renamed-parameter": (
        "def kernel(x, y):\n    nisa.nc_matmul(x, y, y, is_moving_zero=True)\n",
        2,
        "def kernel(x, y):\n    nisa.nc_matmul(x, y, y, is_moving_onezero=True)\n",
    ),
    "mask-parameter": (
        "def kernel(x, m):\n    nisa.memset(x, 0, mask=m)\n",
        2,
        "def helper(x, mask):\n    return x\n\ndef kernel(x, m):\n    helper(x, mask=m)\n",
    ),
    "index-grid": (
        "def kernel(x):\n    return x[nl.arange(4)]\n",
        2,
        "def kernel(x):\n    return x[0:4]\n",
    ),
    "no-such-instruction_by_another_name": (
        "import nki.language as language\n\ndef kernel(x):\n    return language.fmod(x, x)\n",
        4,
        "import nki.language as language\n\ndef kernel(x):\n    return language.add(x, x)\n",
    ),
    "string-buffer": (
        "def kernel(x):\n    t = nl.ndarray((1, 1), dtype=nl.float32, buffer='sbuf')\n",
        2,
        "def kernel(x):\n    t = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)\n",
    ),
    "hbm-output": (
        "def kernel(x):\n    return nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.hbm)\n",
        2,
        "def kernel(x):\n    return nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.shared_hbm)\n",
    ),
    "removed-parameter": (
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dst_rmw_op=nl.add)\n",
        2,
        "def kernel(x, y):\n    nisa.dma_compute(dst=x, srcs=[x, y], reduce_op=nl.add)\n",
    ),
    "removed-parameter_of_sendrecv": (
        "def kernel(x, y):\n    nisa.sendrecv(x, y, 0, 1, 0, use_gpsimd_dma=True)\n",
        2,
        "def kernel(x, y):\n    nisa.sendrecv(x, y, 0, 1, 0, dma_engine=nisa.dma_engine.dma)\n",
    ),
    "removed-parameter_of_register_move": (
        "def kernel(r):\n    nisa.register_move(r, imm=3)\n",
        2,
        "def kernel(r):\n    nisa.register_move(r, src=3)\n",
    ),
    "affine-select-offset": (
        "def kernel(x):\n    nisa.affine_select(x, [[1, 2]], 0, 0, x, 0.0)\n",
        2,
        "def kernel(x):\n    nisa.affine_select(x, [[1, 2]], 0, on_true_tile=x)\n",
    ),
    "removed-function": (
        "def kernel(x, y):\n    nisa.tensor_copy_dynamic_src(x, y)\n",
        2,
        "def kernel(x, y):\n    nisa.tensor_copy(x, y)\n",
    ),
    "old-namespace": (
        "def kernel(x):\n    import neuronxcc.nki.language as nl\n    return x\n",
        2,
        "def kernel(x):\n    return nl.add(x, x)\n",
    ),
    "no-such-instruction": (
        "def kernel(x):\n    return nl.divide(x, x)\n",
        2,
        "def kernel(x):\n    return nl.multiply(x, nl.reciprocal(x))\n",
    ),
    "no-such-instruction_mod": (
        "def kernel(x):\n    return nl.mod(x, x)\n",
        2,
        "def kernel(x):\n    return 7 % 4\n",
    ),
    "scalar-power": (
        "def kernel(x):\n    return nl.power(x, 2)\n",
        2,
        "def kernel(x):\n    return nl.power(x, x)\n",
    ),
    "plain-matmul": (
        "def kernel(x):\n    return nl.matmul(x, x)\n",
        2,
        "def kernel(x):\n    return nl.matmul(x, x, transpose_x=True)\n",
    ),
    "dynamic-range": (
        "def kernel(n):\n    for i in nl.dynamic_range(n):\n        pass\n",
        2,
        "def kernel(n):\n    for i in nl.affine_range(4):\n        pass\n",
    ),
    "loop-result": (
        "def kernel(n):\n    def body(i):\n        return i\n    nl.fori_loop(0, n, body)\n",
        4,
        "def kernel(n):\n    def body(i):\n        pass\n    nl.fori_loop(0, n, body)\n",
    ),
    "loop-step": (
        "def kernel(n, body):\n    nl.fori_loop(0, n, body, step=-1)\n",
        2,
        "def kernel(n, body):\n    nl.fori_loop(0, n, body, step=2)\n",
    ),
    "base-class": (
        "class Sizes:\n    n: int = 1\n\ndef kernel(x):\n    return Sizes()\n",
        1,
        "class Sizes(NKIObject):\n    n: int = 1\n\ndef kernel(x):\n    return Sizes()\n",
    ),
    "base-class_two": (
        "class A(NKIObject):\n    pass\n\nclass B(A, NKIObject):\n    pass\n\n"
        "def kernel(x):\n    return B()\n",
        4,
        "class E(Enum):\n    a = 1\n\ndef kernel(x):\n    return E.a\n",
    ),
    "dictionary-key": (
        "def kernel(x):\n    return {1: x}\n",
        2,
        "def kernel(x):\n    return {'a': x}\n",
    ),
    "value": ("def kernel(x):\n    return {1, 2}\n", 2, "def kernel(x):\n    return [1, 2]\n"),
    "value_bytes": ("def kernel(x):\n    return b'1'\n", 2, "def kernel(x):\n    return '1'\n"),
    "value_complex": ("def kernel(x):\n    return 2j\n", 2, "def kernel(x):\n    return 2.0\n"),
    "statement": (
        "def kernel(x):\n    try:\n        return x\n    finally:\n        print(x)\n",
        2,
        "def kernel(x):\n    while False:\n        print(x)\n",
    ),
    "statement_with": (
        "def kernel(x):\n    with open(x):\n        return x\n",
        2,
        "def kernel(x):\n    with nl.no_reorder():\n        return x\n",
    ),
    "statement_raise": (
        "def kernel(x):\n    raise ValueError(x)\n",
        2,
        "def kernel(x):\n    assert x, 'x'\n",
    ),
    "statement_yield": (
        "def kernel(x):\n    yield x\n",
        2,
        "def kernel(x):\n    return x\n",
    ),
    "outer-state": (
        "n = 1\n\ndef kernel(x):\n    global n\n    n = 2\n",
        4,
        "n = 1\n\ndef kernel(x):\n    return n\n",
    ),
}


class RulesTest(parameterized.TestCase):
    def _load(self, source: str) -> types.ModuleType:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / "checked_kernel.py"
        path.write_text(PREAMBLE + source)
        self.enter_context(_path(folder.name))
        sys.modules.pop("checked_kernel", None)
        self.addCleanup(sys.modules.pop, "checked_kernel", None)
        importlib.invalidate_caches()
        return importlib.import_module("checked_kernel")

    @parameterized.named_parameters((name, name, *case) for name, case in CASES.items())
    def test_rule(self, name: str, broken: str, line: int, kept: str) -> None:
        rule = language_rules.RULES[name.split("_")[0]]
        (finding,) = check_language(self._load(broken).kernel)
        self.assertEqual(finding.rule, rule)
        self.assertEqual(finding.line, line + PREAMBLE.count("\n"))
        self.assertEndsWith(finding.file, "checked_kernel.py")
        for part in (f":{finding.line}:", rule.name, rule.remedy, rule.source):
            self.assertIn(part, str(finding))
        self.assertEqual(check_language(self._load(kept).kernel), [])

    def test_every_rule_has_a_case(self) -> None:
        self.assertEqual({name.split("_")[0] for name in CASES}, set(language_rules.RULES))

    def test_table(self) -> None:
        table = language_rules.rules_table()
        for rule in language_rules.RULES.values():
            self.assertIn(f"| {rule.name} | {rule.summary} |", table)
            self.assertIn(rule.source, table)
        for what in language_rules.NOT_CHECKED:
            self.assertIn(f"- {what}", table)

    def test_what_documents_only_imply_is_marked(self) -> None:
        (finding,) = check_language(self._load("def kernel(x):\n    raise x\n").kernel)
        self.assertIn("(implied by NKI language guide", str(finding))

    def test_every_rule_names_its_document(self) -> None:
        for rule in language_rules.RULES.values():
            self.assertRegex(rule.source, "^NKI (release notes|language guide|migration guide), .+")


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
    return map(_deeper, (x,))


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
        self.assertEqual((done.returncode, done.stdout), (0, "0 findings\n"), done.stderr)

    def test_findings(self) -> None:
        done = self._run("tests.simulator.source_check.test_check_language:_nested")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("identity", done.stdout)
        self.assertEndsWith(done.stdout, "1 findings\n")

    def test_usage(self) -> None:
        self.assertEqual(self._run().returncode, 2)


if __name__ == "__main__":
    absltest.main()
