"""The kernel with caches in blocks, in the simulator against the float64 oracle."""

from __future__ import annotations

import zlib

import hypothesis
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases
from tests.kernels import launch


@st.composite
def shapes(draw: st.DrawFn) -> cases.Shape:
    """Small models whose contexts are less than a chunk of slots to more than one of each core."""
    block_len = draw(st.sampled_from((16, 16, 5, 48, 128, 256, 1024)))
    n = draw(st.integers(1, max(1, 320 // block_len)))
    S = draw(st.integers(1, 3))
    q, k = draw(st.sampled_from(((1, 1), (4, 2), (3, 1))))
    return cases.Shape(
        B=draw(st.integers(1, max(1, min(4, 320 // (n * block_len))))),
        S=S,
        q=q,
        k=k,
        d=draw(st.sampled_from((16, 16, 64, 160))),
        L=draw(st.integers(1, 2)),
        S_ctx=n * block_len,
        S_max=n * block_len,
        dtype=draw(st.sampled_from(("float32", "float32", "bfloat16", "float16"))),
        unified=draw(st.booleans()),
        context=draw(st.sampled_from(("lengths", "lengths", "ranges", "masks"))),
        block_len=block_len,
        positions=draw(st.sampled_from(("first", "each"))),
    )


class DrawnTest(parameterized.TestCase):
    """2 x (5 + 25) drawn cases."""

    @parameterized.product(count=(5, 25), cores=(1, 2))
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "1")
    def test_drawn(self, count: int, cores: int) -> None:
        @hypothesis.seed(zlib.crc32(f"blocks {cores} {count}".encode()))
        @hypothesis.settings(max_examples=count, phases=(hypothesis.Phase.generate,))
        @hypothesis.given(data=st.data())
        def run(data: st.DataObject) -> None:
            launch.check(
                data.draw(shapes()),
                ranks=data.draw(st.sampled_from((1, 1, 1, 2))),
                cores=cores,
                stacked=data.draw(st.booleans()),
                seed=data.draw(st.integers(0, 1 << 30)),
            )

        run()

    @parameterized.parameters((1, 256), (2, 1024))
    def test_a_block_of_new_keys_alone(self, cores: int, block_len: int) -> None:
        """Where the last block of cached keys is full, the new keys have one of their own."""
        slots = 2048 * cores
        shape = cases.Shape(
            B=1, S=1, q=2, k=1, d=16, L=1, S_ctx=slots, S_max=slots, block_len=block_len,
            context="lengths", unified=True,
        )  # fmt: skip
        launch.check(shape, cores=cores)


if __name__ == "__main__":
    absltest.main()
