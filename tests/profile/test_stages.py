"""Every instruction of a layer and of the head has a stage."""

from __future__ import annotations

import collections

from absl.testing import absltest, parameterized

from jax_tkg.profile import stages, token
from jax_tkg.profile.layer import record_launches
from jax_tkg.profile.model_shapes import Case
from jax_tkg.profile.plot import COLORS
from jax_tkg.simulator.timing.timeline import schedule

SIZES = {"B": 2, "S": 1, "H": 256, "I": 128, "d": 64, "q": 4, "k": 2, "S_ctx": 129}

OPTIONS = (
    *("bias_qkvs", "bias_outs", "W_gamma_qs", "W_gamma_ks", "sinks"),
    *("W_gamma_post_attentions", "W_gamma_post_mlps"),
)


class StagesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("plain", {}),
        ("every_option", {"operands": OPTIONS, "lnc": 1}),
        ("float8", {"quantized_mlp": "float8_e4m3", "cache_dtype": "float8_e4m3"}),
        ("blocks", {"S_ctx": 128, "block_len": 64}),
        (
            "experts",
            {
                "experts": 8,
                "shared": 64,
                "options": (("experts_per_token", 2),),
                "operands": (
                    *("W_routers", "bias_routers", "bias_gates", "bias_ups", "bias_downs"),
                    *("W_shared_gates", "W_shared_ups", "W_shared_downs"),
                ),
            },
        ),
    )
    def test_a_layer(self, changes: dict) -> None:
        """A layer more adds instructions of every stage but the head, and none of no stage."""
        case = Case(**{**SIZES, "tensor_parallel": 4, **changes})
        shorter, longer = record_launches(case).records
        counts = [
            collections.Counter(map(stages.stage_of, r.streams[0, 0])) for r in (shorter, longer)
        ]
        added = counts[1] - counts[0]
        expected = set(stages.STAGES) - {stages.HEAD, stages.OTHER}
        if case.lnc == 1:
            expected.remove(stages.WAITS)
        self.assertEqual(set(added), expected)

    def test_head(self) -> None:
        before, after = token.record_head(Case(**SIZES), 300).records
        counts = [
            collections.Counter(map(stages.stage_of, r.streams[0, 0])) for r in (before, after)
        ]
        self.assertEqual(set(counts[1] - counts[0]), {stages.HEAD})
        timeline = schedule(after)
        busy: collections.Counter = collections.Counter()
        for event in timeline.events:
            busy[stages.stage_of(event.instruction)] += event.end - event.start
        self.assertLess(busy[stages.OTHER], 0.15 * sum(busy.values()))

    def test_colors(self) -> None:
        self.assertEqual(list(COLORS), list(stages.STAGES))
        self.assertLen(set(COLORS.values()), len(COLORS))


if __name__ == "__main__":
    absltest.main()
