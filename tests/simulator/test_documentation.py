"""The example of docs/simulator.md does what it says."""

import pathlib
import re

import numpy as np
from absl.testing import absltest

_PAGE = pathlib.Path(__file__).parents[2] / "docs" / "simulator.md"


class ExampleTest(absltest.TestCase):
    def test_the_example_runs(self):
        (program,) = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
        names: dict = {}
        exec(compile(program, str(_PAGE), "exec"), names)
        result = names["result"]
        np.testing.assert_array_equal(result.outputs[1], 4)
        self.assertEqual(result.mutated[1], {})
        self.assertEqual(len(result.record.streams[(1, 0)]), 3)
        self.assertEqual(result.findings, [])
