"""The kernel with masks that it makes of lengths, in the simulator against the float64 oracle."""

from __future__ import annotations

import zlib

import hypothesis
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases
from tests.kernels import launch

CONTEXTS = ("lengths", "each_length", "ranges", "each_range")


@st.composite
def shapes(draw: st.DrawFn, context: str) -> cases.Shape:
    """Small models with contexts of less than a chunk of slots to more than one of each core."""
    S = draw(st.integers(1, 4))
    S_ctx = draw(st.one_of(st.integers(1, 300), st.sampled_from((128, 256, 257))))
    q, k = draw(st.sampled_from(((1, 1), (4, 2), (3, 1))))
    of_kinds = {
        "L": 3,
        "layer_kinds": (0, 1, 0),
        "kinds": ((draw(st.integers(1, 9)), 9, True, "each"),),
    }
    return cases.Shape(
        B=draw(st.integers(1, max(1, min(6, 300 // S_ctx)))),
        S=S,
        q=q,
        k=k,
        d=draw(st.sampled_from((16, 64))),
        S_ctx=S_ctx,
        S_max=S_ctx + draw(st.integers(0, 8)),
        dtype=draw(st.sampled_from(("float32", "float32", "bfloat16"))),
        unified=draw(st.booleans()),
        context=context,
        positions=draw(st.sampled_from(("first", "each"))),
        **draw(st.sampled_from(({"L": 1}, {"L": 2}, of_kinds))),
    )


class DrawnTest(parameterized.TestCase):
    """4 forms x (4 + 16) drawn cases."""

    @parameterized.product(count=(4, 16), context=CONTEXTS)
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "3")
    def test_drawn(self, count: int, context: str) -> None:
        @hypothesis.seed(zlib.crc32(f"{context} {count}".encode()))
        @hypothesis.settings(max_examples=count, phases=(hypothesis.Phase.generate,))
        @hypothesis.given(data=st.data())
        def run(data: st.DataObject) -> None:
            shape = data.draw(shapes(context))
            launch.check(
                shape,
                ranks=data.draw(st.sampled_from((1, 1, 2))),
                cores=data.draw(st.sampled_from((1, 2))),
                stacked=data.draw(st.booleans()),
                seed=data.draw(st.integers(0, 1 << 30)),
            )

        run()


if __name__ == "__main__":
    absltest.main()
