"""Marks of tests take effect: absl makes new functions of those that it gives parameters."""

from __future__ import annotations

import ast
import pathlib

from absl.testing import absltest

TESTS = pathlib.Path(__file__).parent


def _is_mark(decorator: ast.expr) -> bool:
    return ast.unparse(decorator).startswith("pytest.mark.")


def _ineffective(source: str) -> list[int]:
    """The lines of marks above a decorator of absl's `parameterized`, which drops them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            lines = [d.lineno for d in node.decorator_list if _is_mark(d)]
            given = [
                d.lineno for d in node.decorator_list if ast.unparse(d).startswith("parameterized.")
            ]
            found += [line for line in lines if given and line < max(given)]
    return found


class MarksTest(absltest.TestCase):
    def test_marks_stand_below_parameters(self) -> None:
        for path in sorted(TESTS.rglob("*.py")):
            with self.subTest(path.relative_to(TESTS)):
                self.assertEqual(_ineffective(path.read_text()), [])

    def test_a_mark_above_is_found(self) -> None:
        function = "def test(self, n): ...\n"
        above = "@pytest.mark.slow\n@parameterized.parameters(1, 2)\n" + function
        below = "@parameterized.parameters(1, 2)\n@pytest.mark.slow\n" + function
        self.assertEqual((_ineffective(above), _ineffective(below)), ([1], []))


if __name__ == "__main__":
    absltest.main()
