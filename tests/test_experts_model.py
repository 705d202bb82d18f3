"""The table of modeled layers with experts: its cells, and what a row says."""

from __future__ import annotations

from absl.testing import absltest

from benchmarks import experts_model
from jax_tkg.profile.model_shapes import Case

CASE = Case(
    B=1, S=1, H=256, I=128, d=64, q=2, k=1, S_ctx=128, experts=8,
    operands=("W_routers",), options=(("experts_per_token", 2),),
)  # fmt: skip


class RowTest(absltest.TestCase):
    def test_bytes(self) -> None:
        """Of a small layer by hand, in bfloat16: two experts of three matrices."""
        row = experts_model.table_row(CASE)
        self.assertEqual(row["experts read"], "2 of 8")
        self.assertAlmostEqual(row["experts MB"], 2 * 3 * 256 * 128 * 2 / 1e6, delta=0.05)
        best, worst = map(float, row["stress set"].split(" to "))
        self.assertLess(1.0, best)
        self.assertLessEqual(best, row["x bound"])
        self.assertLess(row["x bound"], worst)


class CellsTest(absltest.TestCase):
    def test_what_is_wanted(self) -> None:
        self.assertEqual(
            experts_model.cells(["gpt_oss_20b", "mixtral_8x7b"], [8], [4, 16]),
            [("gpt_oss_20b", 8, 4), ("mixtral_8x7b", 8, 4), ("mixtral_8x7b", 8, 16)],
        )


if __name__ == "__main__":
    absltest.main()
