"""The modeled cost of options: what each of the table makes the kernel do."""

from __future__ import annotations

import dataclasses

from absl.testing import absltest, parameterized

from benchmarks import options_model
from jax_tkg.profile.model_shapes import Case
from jax_tkg.profile.recording import record

PLAIN = Case(B=1, S=1, H=256, I=128, d=64, q=2, k=1, S_ctx=128)
WITHOUT_INSTRUCTIONS = {"none", "softmax scale", "GELU"}
"""Options that change a number or a function of an instruction, and add none."""


class OptionsTest(parameterized.TestCase):
    @parameterized.parameters(*options_model.OPTIONS)
    def test_instructions(self, name: str) -> None:
        changed = dataclasses.replace(PLAIN, **options_model.OPTIONS[name])
        plain, more = (len(record(case, layers=1)) for case in (PLAIN, changed))
        if name in WITHOUT_INSTRUCTIONS:
            self.assertEqual(more, plain)
        else:
            self.assertGreater(more, plain)


if __name__ == "__main__":
    absltest.main()
