"""The ranges of a model's numbers, whichever file they come from."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models.config import LIMITS, ConfigError, LlamaConfig
from jax_tkg.rope import Llama3Scaling

GOOD = LlamaConfig(
    num_layers=2,
    hidden_size=96,
    intermediate_size=160,
    num_heads=6,
    num_kv_heads=2,
    head_size=16,
    vocabulary_size=10,
    context_length=512,
    rope_theta=500.0,
    rms_norm_eps=1e-5,
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
        ("few", {"rope_factors": (1.0,) * 7}, "rope_factors: expected 8 numbers"),
        ("zero", {"rope_factors": (1.0,) * 7 + (0.0,)}, "rope_factors: expected numbers from"),
        ("nan", {"rope_factors": (math.nan,) * 8}, "rope_factors: expected numbers from"),
        ("factor", {"rope_scaling": Llama3Scaling(factor=0.0)}, "rope_scaling: expected factors"),
        (
            "bands",
            {"rope_scaling": Llama3Scaling(8.0, 4.0, 4.0, 64)},
            "rope_scaling: expected a low frequency factor below the high one, 4.0, got 4.0",
        ),
        (
            "length",
            {"rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 0)},
            "rope_scaling: expected an original context length from 1",
        ),
    )
    def test_what_does_not_go_together(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(ConfigError, message):
            dataclasses.replace(GOOD, **changes)

    @parameterized.parameters(1.0, 1e15)
    def test_frequencies_are_finite_over_the_whole_range(self, theta: float) -> None:
        for factor in (1e-3, 1e38):
            config = dataclasses.replace(GOOD, rope_theta=theta, rope_factors=(factor,) * 8)
            # As float32, which the tables are made of.
            frequencies = config.rope_frequencies().astype(np.float32)
            self.assertTrue(np.isfinite(frequencies).all())
            self.assertTrue(np.isfinite(frequencies * np.float32(1 << 24)).all())


if __name__ == "__main__":
    absltest.main()
