"""The commands about the simulator: the page of rules, and the mutation check."""

import importlib.util
import pathlib
import sys

import pytest
from absl.testing import parameterized

from scripts.mutations.package import PACKAGE
from scripts.mutations.run import MAKE_TEST
from scripts.mutations.simulator import SIMULATOR

_ROOT = pathlib.Path(__file__).parents[2]


def _script(name):
    spec = importlib.util.spec_from_file_location(name, _ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class RulesPageTest(parameterized.TestCase):
    def test_the_page_lists_every_rule_test(self):
        module = _script("simulator_rules")
        self.assertEqual(module.PAGE.read_text(), module.page())
        self.assertGreater(len(module.rules()), 80)


class MutationTest(parameterized.TestCase):
    def test_every_mutation_applies(self):
        for table, least in ((SIMULATOR, 20), (PACKAGE, 60)):
            self.assertGreaterEqual(len(table), least)
            self.assertLen({mutation.name for mutation in table}, len(table))
            for mutation in table:
                source = mutation.path(_ROOT).read_text()
                self.assertNotEqual(mutation.applied(source), source)
                for test in mutation.tests:
                    self.assertTrue((_ROOT / "tests" / test.split("::")[0]).exists(), test)

    def test_marks_are_those_of_the_makefile(self):
        rule = (_ROOT / "Makefile").read_text().partition("\ntest: ")[2].partition("\n\n")[0]
        self.assertIn(f'-m "{MAKE_TEST}"', rule)

    @pytest.mark.slow
    @pytest.mark.extended
    def test_one_mutation_is_noticed(self):
        self.assertEqual(_script("mutation_check").main(["matmul ignores accumulate"]), 0)
