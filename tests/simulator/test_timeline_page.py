"""The constants and the machines of docs/timeline.md are those of the code."""

import pathlib

from absl.testing import absltest

from jax_tkg.simulator.timing.costs import TRN2, TRN3, figures
from jax_tkg.simulator.timing.stress import MACHINES

_PAGE = pathlib.Path(__file__).parents[2] / "docs" / "timeline.md"


class ConstantsTest(absltest.TestCase):
    def test_table(self):
        newer = {name: value for name, value, _, _ in figures(TRN3)}
        text = _PAGE.read_text()
        for name, value, unit, source in figures(TRN2):
            shown = f"{value:g}"
            if newer[name] != value:
                shown += f" [{newer[name]:g}]"
            self.assertIn(f"| `{name}` | {shown} | {unit} | {source} |", text)

    def test_machines(self):
        rows = "".join(f"| {machine.name} | {machine.assumes} |\n" for machine in MACHINES)
        self.assertIn(f"| machine | assumes |\n|---|---|\n{rows}\n", _PAGE.read_text())


if __name__ == "__main__":
    absltest.main()
