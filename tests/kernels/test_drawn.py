"""The megakernel in the simulator against the float64 oracle, over drawn sizes and forms."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases, test_api
from tests.kernels import launch

HEADS = ((1, 1), (8, 1), (4, 2), (9, 3), (32, 8))
SMALL_DRAWS = {"float32": 8, "bfloat16": 3, "float16": 2}
WIDE_DRAWS = {"float32": 6, "bfloat16": 3}

FEW_DRAWS = 4
"""Of a test that `make test` runs; the first is the simplest."""

WIDE_PRODUCTS = 1 << 23
"""Most H * I * L * ranks of a wide case: what keeps it to a few seconds."""

WIDE_SCORES = 1 << 19
"""Most B * S * q * S_ctx * L * ranks of a wide case; the oracle takes each score in turn."""


@st.composite
def ways(draw: st.DrawFn, shape: cases.Shape, most_ranks: int) -> dict[str, Any]:
    """How a case is launched."""
    stackable = len(set(shape.quantized)) <= 1
    return {
        # Four ranks take four times as long as one.
        "ranks": draw(st.sampled_from([ranks for ranks in (1, 1, 2, 2, 4) if ranks <= most_ranks])),
        "cores": draw(st.sampled_from((1, 2))),
        "on_chip": draw(st.booleans()),
        "stacked": stackable and draw(st.booleans()),
    }


@st.composite
def wide_cases(
    draw: st.DrawFn, q: int, k: int, dtype: str
) -> tuple[cases.Shape, dict[str, Any], int]:
    """H 256..2048, I 256..4096, S_ctx 128..2304, four layers and four ranks at most."""
    H = 128 * draw(st.integers(2, 16))
    most = max(2, min(32, WIDE_PRODUCTS // 2 // H // 128))
    I = 128 * draw(st.integers(2, most))  # noqa: E741
    copies = max(1, min(8, WIDE_PRODUCTS // (H * I)))
    L = draw(st.integers(1, min(4, copies)))
    most_ranks = max(1, copies // L)
    S_ctx = draw(st.one_of(st.integers(128, 2304), st.sampled_from((128, 1024, 2048, 2304))))
    queries = max(1, WIDE_SCORES // (q * S_ctx * L * min(4, most_ranks)))
    S = draw(st.integers(1, min(8, queries)))
    B = draw(st.integers(1, max(1, min(8, queries // S))))
    d = draw(st.sampled_from(cases.HEAD_SIZES))
    shape = cases.Shape(
        B=B,
        S=S,
        q=q,
        k=k,
        d=d,
        H=H,
        I=I,
        L=L,
        S_ctx=S_ctx,
        S_max=S_ctx + draw(st.integers(0, 200)),
        dtype=dtype,
        unified=draw(st.booleans()),
        positions=draw(st.sampled_from(("first", "each", "first", "each", "none"))),
        quantized=draw(test_api.quantizations(L)),
        clamp_bound=draw(st.sampled_from((0.0, 0.5))),
        scale_rows=draw(st.sampled_from((1, 128))),
        **draw(test_api.layer_options(d)),
    )
    return shape, draw(ways(shape, most_ranks)), draw(st.integers(0, 1 << 30))


Run = Callable[[cases.Shape, dict[str, Any], int], None]
"""Takes a shape, how it is launched, and a seed."""


def each_small_case(name: str, count: int, q: int, k: int, dtype: str, run: Run) -> None:
    """Calls `run` with `count` cases of the sizes that the reference is tested with.

    Every name has draws of its own, the same in each run.
    """

    @hypothesis.seed(zlib.crc32(name.encode()))
    @hypothesis.settings(max_examples=count)
    @hypothesis.given(data=st.data())
    def draw(data: st.DataObject) -> None:
        shape = data.draw(test_api.shapes(q, k, dtype))
        how = data.draw(ways(shape, 4))
        run(shape, how, data.draw(st.integers(0, 1 << 30)))

    draw()


def each_wide_case(name: str, count: int, q: int, k: int, dtype: str, run: Run) -> None:
    """Calls `run` with `count` larger cases, as `each_small_case`."""

    @hypothesis.seed(zlib.crc32(name.encode()))
    @hypothesis.settings(max_examples=count)
    @hypothesis.given(data=st.data())
    def draw(data: st.DataObject) -> None:
        run(*data.draw(wide_cases(q, k, dtype)))

    draw()


def _check(shape: cases.Shape, how: dict[str, Any], seed: int) -> None:
    launch.check(shape, seed=seed, **how)


@pytest.mark.slow
class DrawnTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (f"{dtype}_q{q}_k{k}", q, k, dtype) for dtype in SMALL_DRAWS for q, k in HEADS
    )
    @pytest.mark.extended
    def test_small(self, q: int, k: int, dtype: str) -> None:
        each_small_case(f"kernel {dtype} {q} {k}", SMALL_DRAWS[dtype], q, k, dtype, _check)

    @parameterized.parameters((1, 1, "bfloat16"), (4, 2, "float32"), (9, 3, "float16"))
    def test_a_few_small(self, q: int, k: int, dtype: str) -> None:
        each_small_case(f"few {dtype} {q} {k}", FEW_DRAWS, q, k, dtype, _check)

    @parameterized.named_parameters(
        (f"{dtype}_q{q}_k{k}", q, k, dtype) for dtype in WIDE_DRAWS for q, k in HEADS
    )
    @pytest.mark.extended_except("bfloat16_q8_k1")
    def test_wide(self, q: int, k: int, dtype: str) -> None:
        each_wide_case(f"wide kernel {dtype} {q} {k}", WIDE_DRAWS[dtype], q, k, dtype, _check)


FORMS = (
    {},
    {"unified": True, "positions": "each"},
    {"positions": "none", "quantized": "float8_e4m3", "clamp_bound": 0.5},
    {"unified": True, "quantized": "float8_e5m2", "scale_rows": 1},
)


CORNERS = tuple(itertools.product(HEADS, range(len(FORMS)), ("float32", "bfloat16")))
"""Heads, form and dtype of each corner of the grid."""


def corner(heads: tuple[int, int], form: int, dtype: str) -> cases.Shape:
    """The shape of a corner; each has one option of a layer, and each option is in several."""
    q, k = heads
    number = HEADS.index(heads) + form
    options: dict[str, Any] = dict(FORMS[form])
    kind = options.pop("quantized", None)
    L = (1, 2, 4)[number % 3]
    # The middle layers are quantized, or the only one.
    quantized = tuple(
        (kind,) * 3 if L == 1 or layer in (1, 2) else (None,) * 3 for layer in range(L)
    )
    alone = list(cases.ONE_OPTION.values())
    return cases.Shape(
        B=(1, 3, 8)[number % 3] if q < 32 else 1,
        S=(1, 8, 2)[form % 3],
        q=q,
        k=k,
        d=(64, 128)[number % 2],
        H=(256, 640)[form % 2],
        I=(384, 256)[number % 2],
        L=L,
        S_ctx=(128, 200, 257)[number % 3],
        S_max=300,
        dtype=dtype,
        quantized=quantized if kind else (),
        **options,
        **alone[CORNERS.index((heads, form, dtype)) % len(alone)],
    )


def corner_ways(heads: tuple[int, int], form: int) -> tuple[dict[str, Any], ...]:
    """How a corner is launched."""
    number = HEADS.index(heads) + form
    few = {"cores": 1, "ranks": 1, "on_chip": True}
    many = {"cores": 2, "ranks": 4, "on_chip": True}
    return few if number % 2 else many, {"cores": 2, "ranks": 2, "on_chip": False}


@pytest.mark.slow
class GridTest(parameterized.TestCase):
    """The corners: every head count in every form, on cores, ranks and both residual paths."""

    @parameterized.parameters(*CORNERS)
    @pytest.mark.extended_except("1", "5", "6", "12", "19", "21", "25", "31", "36")
    def test_corner(self, heads: tuple[int, int], form: int, dtype: str) -> None:
        for how in corner_ways(heads, form):
            launch.check(corner(heads, form, dtype), seed=HEADS.index(heads) + form, **how)

    @parameterized.named_parameters(
        ("hidden", {"H": 2048, "I": 256}),
        ("intermediate", {"H": 256, "I": 4096}),
        ("both", {"H": 2048, "I": 4096, "L": 1}),
        ("tokens", {"B": 8, "S": 8, "H": 512, "L": 1}),
        ("context", {"S_ctx": 2304, "S_max": 2304, "L": 1}),
    )
    @pytest.mark.extended_except("context", "intermediate")
    def test_largest(self, sizes: dict[str, int]) -> None:
        shape = cases.Shape(**{"B": 2, "S": 1, "q": 4, "k": 2, **sizes})
        for cores in (1, 2):
            for on_chip in (False, True):
                launch.check(shape, cores=cores, on_chip=on_chip)


@pytest.mark.thorough
class CountTest(absltest.TestCase):
    def test_options_of_a_layer(self) -> None:
        """150 launches and more have one at least, each alone and among others."""
        found: list[set[str]] = []
        for heads, form, dtype in CORNERS:
            options = cases.layer_options(corner(heads, form, dtype))
            found += [options] * len(corner_ways(heads, form))

        def keep(shape: cases.Shape, how: dict[str, Any], seed: int) -> None:
            found.append(cases.layer_options(shape))

        for q, k in HEADS:
            for dtype, count in SMALL_DRAWS.items():
                each_small_case(f"kernel {dtype} {q} {k}", count, q, k, dtype, keep)
            for dtype, count in WIDE_DRAWS.items():
                each_wide_case(f"wide kernel {dtype} {q} {k}", count, q, k, dtype, keep)
        self.assertGreaterEqual(sum(map(bool, found)), 150)
        test_api.check_combinations(found)


if __name__ == "__main__":
    absltest.main()
