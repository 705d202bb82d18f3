"""Each stage that the reference and the kernel both have has a test here."""

from __future__ import annotations

import pathlib

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[2]

WHOLE = {"__init__", "layer", "transformer"}
"""Modules of one name that are no stage: the whole has tests of its own."""


def _modules(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / "jax_tkg" / folder).glob("*.py")}


class TwinsTest(absltest.TestCase):
    def test_each_has_a_file(self) -> None:
        twins = (_modules("reference") & _modules("kernels")) - WHOLE
        tested = {
            path.stem.removeprefix("test_")
            for path in pathlib.Path(__file__).parent.glob("test_*.py")
        }
        self.assertLessEqual({"rms_norm", "rope", "linear", "attention", "mlp"}, twins)
        self.assertLessEqual(twins, tested)


if __name__ == "__main__":
    absltest.main()
