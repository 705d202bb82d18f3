"""A whole model's step: its parts against the figures of layers, and rates against arithmetic."""

from __future__ import annotations

from absl.testing import absltest

from jax_tkg.profile import token
from jax_tkg.profile.layer import layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, VOCABULARIES, Case, LayerKind
from jax_tkg.simulator.timing.costs import TARGETS
from jax_tkg.simulator.timing.stress import DOCUMENTED, FAVORABLE, UNFAVORABLE

CASE = Case(B=2, S=1, H=256, I=128, d=64, q=2, k=1, S_ctx=129, tensor_parallel=4)
COSTS = TARGETS["trn2"]


class TokenTest(absltest.TestCase):
    def test_parts(self) -> None:
        launches = record_launches(CASE)
        head = token.record_head(CASE, 1300)
        kinds = [(LayerKind(5), launches), (LayerKind(2, 64), launches)]
        step = token.token_time(kinds, head, DOCUMENTED, COSTS, 30e3)
        figures = layer_figures(launches, COSTS)
        self.assertAlmostEqual(step.layers + step.all_reduces, 7 * figures.latency, places=3)
        # Two all-reduces a layer, of which little is hidden in so small a layer.
        self.assertGreater(step.all_reduces, 7 * COSTS.all_reduce_latency)
        self.assertLess(step.all_reduces, 7 * 2.2 * COSTS.all_reduce_latency)
        self.assertAlmostEqual(step.launch, figures.start_up)
        parts = step.layers + step.all_reduces + step.head + step.launch + 30e3
        self.assertAlmostEqual(step.total, parts)
        self.assertAlmostEqual(step.per_user, 1e9 / parts)
        self.assertAlmostEqual(step.per_second, 2e9 / parts)
        # The head reads its weights once, but for columns of a tile that is not whole.
        read = layer_figures(head, COSTS).hbm_bytes["weights"] / (256 * 1300 * 2)
        self.assertBetween(read, 1, 1.2)
        without = token.token_time(kinds, None, DOCUMENTED, COSTS, 0.0)
        self.assertEqual((without.head, without.host_gap), (0, 0))
        slow, fast = (
            token.token_time(kinds, head, machine, COSTS, 0.0)
            for machine in (UNFAVORABLE, FAVORABLE)
        )
        self.assertGreater(slow.total, fast.total)
        text = token.describe([[step, slow, fast]], with_head=True)
        self.assertIn("host gap of 30 us assumed", text)
        self.assertRegex(text, rf" 2 .*{step.total / 1e3:.1f} .*{step.per_second:.1f}")
        low, high = sorted(one.total / 1e3 for one in (fast, slow))
        self.assertIn(f"{min(low, step.total / 1e3):.1f} to {high:.1f} us", text)

    def test_every_model_has_a_vocabulary(self) -> None:
        self.assertEqual(set(MODELS), set(VOCABULARIES))


if __name__ == "__main__":
    absltest.main()
