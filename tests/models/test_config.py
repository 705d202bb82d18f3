"""The ranges of a model's numbers, whichever file they come from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models.config import LIMITS, ConfigError, LayerKind, ModelConfig
from jax_tkg.models.rope_scaling import Rope, plain

ROPE = plain(16, 500.0)
GOOD = ModelConfig(
    num_layers=2,
    hidden_size=96,
    intermediate_size=160,
    num_heads=6,
    num_kv_heads=2,
    head_size=16,
    vocabulary_size=10,
    context_length=512,
    rms_norm_eps=1e-5,
    layers=(LayerKind(ROPE),) * 2,
)


class ConfigTest(parameterized.TestCase):
    @parameterized.product(
        field=tuple(LIMITS), value=(0, -1, True, "2", None, math.nan, math.inf, 10**30, [1])
    )
    def test_out_of_range(self, field: str, value: Any) -> None:
        with self.assertRaisesRegex(ConfigError, f"^{field}: expected .*, got ") as caught:
            dataclasses.replace(GOOD, **{field: value})
        self.assertEqual(caught.exception.field, field)

    @parameterized.parameters(*list(LIMITS)[:8])
    def test_sizes_are_integers(self, field: str) -> None:
        with self.assertRaisesRegex(ConfigError, f"^{field}: expected an integer from"):
            dataclasses.replace(GOOD, **{field: 2.0})

    @parameterized.named_parameters(
        ("heads", {"num_kv_heads": 4}, "num_kv_heads: expected a divisor of the 6 query heads"),
        ("odd", {"head_size": 15}, "head_size: expected an even number, got 15"),
        ("few", {"layers": (LayerKind(ROPE),)}, "layers: expected a kind for each of 2, got 1"),
        (
            "uneven",
            {"layers": (LayerKind(ROPE), LayerKind(plain(8, 500.0)))},
            "layers: expected as many RoPE frequencies in each layer that turns, at most 8, got 4",
        ),
        ("many", {"layers": (LayerKind(plain(32, 500.0)),) * 2}, "layers: expected .* got 16"),
        ("nan", {"layers": (LayerKind(Rope((math.nan,) * 8)),) * 2}, "layers: expected RoPE freq"),
        ("fast", {"layers": (LayerKind(Rope((1e4,) * 8)),) * 2}, "layers: expected RoPE freq"),
    )
    def test_what_does_not_go_together(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(ConfigError, message):
            dataclasses.replace(GOOD, **changes)

    @parameterized.parameters(1.0, 1e15)
    def test_frequencies_are_finite_over_the_whole_range(self, theta: float) -> None:
        for factor in (1e-3, 1e38):
            rope = plain(16, theta, factor)
            dataclasses.replace(GOOD, layers=(LayerKind(rope),) * 2)
            # As float32, which the tables are made of.
            frequencies = rope.head_frequencies(16).astype(np.float32)
            self.assertTrue(np.isfinite(frequencies).all())
            self.assertTrue(np.isfinite(frequencies * np.float32(1 << 24)).all())


class KindsTest(absltest.TestCase):
    def test_kinds_are_in_the_order_of_the_layers(self) -> None:
        plainly, still, windowed = LayerKind(ROPE), LayerKind(Rope(())), LayerKind(ROPE, 24)
        layers = (plainly, windowed, still, LayerKind(ROPE))
        config = dataclasses.replace(GOOD, num_layers=4, layers=layers)
        self.assertEqual(config.kinds, (plainly, windowed, still))
        self.assertEqual(config.layer_kinds, (0, 1, 2, 0))
        self.assertEqual(config.rotary_size, 16)


if __name__ == "__main__":
    absltest.main()
