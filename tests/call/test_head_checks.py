"""Bad input of the head: the exception's type, and a message that names argument and values."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from tests import cases

SHAPE = cases.Shape(B=1, S=1, L=1)


def _good() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        **cases.random_weights(SHAPE, rng),
        **cases.random_inputs(SHAPE, rng),
        **cases.options(SHAPE),
        "W_gamma_final": np.ones((1, 128), np.float32),
        "W_head": np.zeros((128, 50), np.float32),
        "candidates_per_token": 4,
    }


class HeadChecksTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("no_gain", TypeError, {"W_gamma_final": None}, "W_gamma_final: expected an array"),
        (
            "no_count",
            TypeError,
            {"candidates_per_token": None},
            r"candidates_per_token: expected an integer in 1\.\.V = 50 \(W_head\), got None",
        ),
        (
            "too_many",
            ValueError,
            {"candidates_per_token": 51},
            r"candidates_per_token: expected an integer in 1\.\.V = 50 \(W_head\), got 51",
        ),
        (
            "none",
            ValueError,
            {"candidates_per_token": 0},
            "candidates_per_token: expected at least",
        ),
        (
            "gain_alone",
            ValueError,
            {"W_head": None, "candidates_per_token": None},
            "W_gamma_final: expected None without W_head",
        ),
        (
            "count_alone",
            ValueError,
            {"W_head": None, "W_gamma_final": None},
            "candidates_per_token: expected None without W_head, got 4",
        ),
        (
            "softcap_alone",
            ValueError,
            {
                "W_head": None,
                "W_gamma_final": None,
                "candidates_per_token": None,
                "logit_softcap": 30.0,
            },
            "logit_softcap: expected 0.0 without W_head, got 30.0",
        ),
        ("scale", ValueError, {"logit_scale": -1.0}, "logit_scale: expected a finite number >= 0"),
        (
            "rows",
            ValueError,
            {"W_head": np.zeros((64, 50), np.float32)},
            r"W_head: expected shape \[H, V\] = \[128, 50\], got \[64, 50\]",
        ),
        (
            "dtype",
            TypeError,
            {"W_head": np.zeros((128, 50), np.float16)},
            "W_head: expected dtype float32, got float16",
        ),
        (
            "layers",
            TypeError,
            {"W_head": [np.zeros((128, 50), np.float32)]},
            "W_head: expected an array, got list",
        ),
    )
    def test_message(self, kind: type[Exception], change: dict[str, Any], words: str) -> None:
        with self.assertRaisesRegex(kind, words):
            jax_tkg.transformer_tkg(**{**_good(), **change})


if __name__ == "__main__":
    absltest.main()
