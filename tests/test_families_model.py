"""The table of modeled speed of named models: what fits on a rank, and how a token adds up."""

from __future__ import annotations

from absl.testing import absltest

from benchmarks import families_model
from jax_tkg.profile.model_shapes import MODELS, LayerKind, layer_case


class ResidentTest(absltest.TestCase):
    def _gib(self, name: str, ranks: int, batch: int) -> float:
        model = MODELS[name]
        sizes = {"tensor_parallel": ranks, "context": 8193, "B": batch, "S": 1}
        return families_model.resident_gib(
            [(kind, layer_case(model, kind, **sizes)) for kind in model.kinds()]
        )

    def test_llama(self) -> None:
        """Llama-3-8B by hand, in bfloat16."""
        weights = 4096 * (48 * 128 + 4096 + 3 * 14336) + 2 * 4096
        caches = 2 * 2 * 8 * 128 * 8192
        self.assertAlmostEqual(
            self._gib("llama3_8b", 1, 2), 2 * 32 * (weights + caches) / 2**30, places=6
        )

    def test_all_experts_are_held(self) -> None:
        """Mixtral 8x7B has 45 billion parameters in experts."""
        self.assertGreater(self._gib("mixtral_8x7b", 8, 1), 45.09e9 * 2 / 8 / 2**30)

    def test_windows_hold_rings(self) -> None:
        """Of Gemma 3's layers, 52 of 62 hold 1152 slots."""
        more = self._gib("gemma3_27b", 8, 2) - self._gib("gemma3_27b", 8, 1)
        slots = 10 * 8192 + 52 * 1151
        self.assertAlmostEqual(more, 2 * 2 * 2 * 128 * slots / 2**30, places=6)


class RowTest(absltest.TestCase):
    def test_a_token_is_all_layers(self) -> None:
        kinds = [
            families_model.KindFigures(LayerKind(2), 1e6, 1.1e6, 1.5e6, 1.2e6, 1.01e6, 2e6),
            families_model.KindFigures(LayerKind(6, 128), 5e5, 6e5, 1e6, 7e5, 5.05e5, 1.5e6),
        ]
        row = families_model.table_row("model", 8, 1, kinds)
        self.assertEqual(row["full layer, x bound"], 1.1)
        self.assertEqual(row["window layer, x bound"], 1.2)
        self.assertEqual(row["token, x bound"], round(5800 / 5000, 2))
        self.assertEqual(row["17.5 us, x bound"], 1.8)
        self.assertEqual(row["chain, x bound"], round(6600 / 5000, 2))
        self.assertEqual(row["stress set"], "1.01 to 2.60")
        self.assertEqual(row["token, ms"], 5.8)
        self.assertEqual(row["no windows, ms"], 8.8)

    def test_without_windows(self) -> None:
        kind = families_model.KindFigures(LayerKind(2), 1e6, 1.1e6, 1.5e6, 1.2e6, 1.01e6, 2e6)
        row = families_model.table_row("model", 8, 1, [kind])
        self.assertIsNone(row["window layer, x bound"])
        self.assertIsNone(row["no windows, ms"])


if __name__ == "__main__":
    absltest.main()
