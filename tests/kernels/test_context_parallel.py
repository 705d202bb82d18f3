"""The kernel on ranks that share out the context of a KV head, against the oracle."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from jax_tkg import simulator
from tests import cases, context_cases

SHAPE = cases.Shape(B=2, S=2, q=2, k=1, d=16, L=1, S_ctx=20, S_max=24)

CASES: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "lengths_on_chip": (2, 1, {"context": "lengths", "S": 1}, {"lnc": 1, "on_chip": True}),
    "masks_of_four_ranks": (4, 1, {"unified": True, "S": 3, "B": 1, "S_ctx": 21}, {"lnc": 2}),
    "every_option_on_chip": (
        *(2, 2, {"context": "ranges", "L": 2, **cases.EVERY_OPTION}),
        {"lnc": 2, "on_chip": True, "stacked": True},
    ),
    "blocks_of_float8": (
        *(2, 1),
        {
            **{"context": "each_range", "block_len": 8, "S_ctx": 24, "positions": "each"},
            **{"cache_dtype": "float8_e4m3", "L": 2},
        },
        {"lnc": 1, "stacked": True},
    ),
    "groups_of_bfloat16": (
        # Nine sequences are two groups of queries, and two cores divide the slots.
        *(4, 1, {"B": 9, "q": 4, "S": 1, "S_ctx": 520, "S_max": 520, "dtype": "bfloat16"}),
        {"lnc": 2},
    ),
    "kinds_of_large_heads": (
        *(2, 1),
        {
            **{"d": 256, "L": 2, "layer_kinds": (0, 1), "kinds": ((2, 12, True, "each"),)},
            **{"context": "each_range", "S": 1},
        },
        {"lnc": 2, "on_chip": True},
    ),
}
"""Ranks that share out a context, KV heads, changes of `SHAPE`, and how the kernel runs."""


class KernelTest(parameterized.TestCase):
    @parameterized.named_parameters(*((name, name) for name in CASES))
    @pytest.mark.thorough
    @pytest.mark.extended_except("masks_of_four_ranks", "every_option_on_chip")
    def test_against_the_oracle(self, name: str) -> None:
        count, kv_heads, changes, how = CASES[name]
        on_chip = how.get("on_chip", False)
        options = {name: value for name, value in how.items() if name != "on_chip"}
        # Program order of an engine's queue alone does not make a kernel safe on two cores.
        strict = simulator.Options(ordering="dependencies", core_barriers="error")
        run = simulator.run

        def strictly(*args: Any, **kwargs: Any) -> simulator.Result:
            return run(*args, **{**kwargs, "options": strict})

        with mock.patch.object(simulator, "run", functools.wraps(run)(strictly)):
            context_cases.check_call(
                *(dataclasses.replace(SHAPE, **changes), count, kv_heads),
                implementation="simulate",
                sbuf_residual_and_cc=on_chip,
                **options,
            )


if __name__ == "__main__":
    absltest.main()
