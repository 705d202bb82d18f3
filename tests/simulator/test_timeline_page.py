"""The constants of docs/timeline.md are those of the code."""

import pathlib

from absl.testing import absltest

from jax_tkg.simulator.timing.costs import TRN2, TRN3, figures

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


if __name__ == "__main__":
    absltest.main()
