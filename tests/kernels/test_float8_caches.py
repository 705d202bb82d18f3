"""The kernel with float8 caches, in the simulator against the float64 oracle."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.kernels.cache_scales import load_cache_scales
from jax_tkg.kernels.layer_tensor import LayerTensor
from jax_tkg.kernels.sizes import Context
from tests import cases
from tests.kernels import launch
from tests.stages import small_kernels
from tests.stages.kernel_stages import KernelStages


@st.composite
def shapes(draw: st.DrawFn) -> cases.Shape:
    """Small models with contexts of less than a chunk of slots to more than one of each core."""
    block_len = draw(st.sampled_from((0, 0, 16, 48, 128)))
    S_ctx = block_len * draw(st.integers(1, max(1, 300 // max(1, block_len))))
    S_ctx = S_ctx or draw(st.integers(8, 300))
    q, k = draw(st.sampled_from(((1, 1), (4, 2), (3, 1))))
    context = draw(st.sampled_from(("lengths", "masks")))
    return cases.Shape(
        B=draw(st.integers(1, max(1, min(4, 300 // S_ctx)))),
        S=draw(st.integers(1, 4)),
        q=q,
        k=k,
        d=draw(st.sampled_from((16, 64, 160))),
        L=draw(st.integers(1, 2)),
        S_ctx=S_ctx,
        S_max=S_ctx + (0 if block_len else draw(st.integers(0, 8))),
        dtype=draw(st.sampled_from(("float32", "float32", "bfloat16", "float16"))),
        unified=draw(st.booleans()),
        context=context,
        block_len=block_len,
        positions=draw(st.sampled_from(("first", "each"))),
        cache_dtype=draw(st.sampled_from(("float8_e4m3", "float8_e4m3", "float8_e4m3fn"))),
        options=draw(st.sampled_from(((), ("sinks",)))),
        attention_softcap=draw(st.sampled_from((0.0, 0.0, 2.0))),
    )


class DrawnTest(parameterized.TestCase):
    """2 x (3 + 7) drawn cases."""

    @parameterized.product(count=(3, 7), cores=(1, 2))
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "1")
    def test_drawn(self, count: int, cores: int) -> None:
        @hypothesis.seed(10 * count + cores)
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

    @parameterized.parameters(1, 2)
    @pytest.mark.extended_except("1")
    def test_some_layers(self, cores: int) -> None:
        shape = cases.Shape(
            L=3, d=16, S_ctx=140, S_max=150, cache_dtype="float8_e4m3", plain_caches=(1,)
        )
        launch.check(shape, cores=cores)


class ScalesTest(parameterized.TestCase):
    @parameterized.parameters("key", "value", "both")
    def test_loaded(self, given: str) -> None:
        """Of the keys alone, of the values alone, of both."""
        tensors = {
            name: np.full((1, 1), value, np.float32)
            for name, value in (("key", 0.25), ("value", 8.0))
            if given in (name, "both")
        }

        def body(context: Context, **tensors: Any) -> Any:
            k_scale, v_scale = (
                LayerTensor(tensors[name]) if name in tensors else None for name in ("key", "value")
            )
            scales = load_cache_scales(k_scale, v_scale, context)
            found = [scales.key, scales.inverse_key, scales.value, scales.inverse_value]
            given = [each for each in found if each is not None]
            return tuple(small_kernels.store(each, context) for each in given)

        (found,) = KernelStages(1).run(body, [tensors])
        expected = [factor for each in tensors.values() for factor in (each, 1 / each)]
        self.assertLen(found, len(expected))
        for tile, factor in zip(found, expected, strict=True):
            np.testing.assert_array_equal(tile[0], np.broadcast_to(factor, (128, 1)))


if __name__ == "__main__":
    absltest.main()
