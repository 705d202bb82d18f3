"""Between rows in HBM and the kernel's transposed tiles; the kernel's alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.kernels.layer_tensor import LayerTensor
from jax_tkg.kernels.layout import load_columns, load_tokens, store_tokens
from jax_tkg.kernels.sizes import Context
from tests.stages import drawing, small_kernels
from tests.stages.kernel_stages import KernelStages


class LayoutTest(parameterized.TestCase):
    @parameterized.product(cores=(1, 2), dtype=(*drawing.DTYPES, "float16"))
    def test_tokens(self, cores: int, dtype: str) -> None:
        """What is loaded is transposed; what is stored are rows again, of both cores' shares."""

        @drawing.examples(f"layout {dtype}", 6)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data, 128)
            H = drawing.chunks(data)
            X = drawing.uniform(drawing.generator(data), B, S, H, dtype=dtype)

            def body(context: Context, X: Any) -> Any:
                sizes, core = context.sizes, context.core
                tile = load_tokens(X, sizes, core)
                out = small_kernels.nl.ndarray(
                    (B, S, H), dtype=sizes.dtype, buffer=small_kernels.nl.shared_hbm
                )
                store_tokens(out, tile, sizes, core)
                return small_kernels.store(tile, context), out

            stages = KernelStages(cores)
            ((tile, out),) = stages.run(body, [{"X": X}], B=B, S=S, H=H, dtype=dtype)
            joined = stages.joined(tile, H, dtype)
            np.testing.assert_array_equal(joined.reshape(B, S, H), X.astype(np.float64))
            np.testing.assert_array_equal(out, X)

        del run

    def test_columns(self) -> None:
        """Element c * 128 + p of a vector comes to partition p of column c."""
        vector = np.arange(2 * 300 * 128, dtype=np.float32).reshape(2, -1)
        for first, count in ((0, 300), (7, 129), (299, 1)):

            def body(context: Context, vector: Any, first: int = first, count: int = count) -> Any:
                columns = load_columns(LayerTensor(vector), first, count, context)
                return small_kernels.store(columns, context)

            (got,) = KernelStages(1).run(body, [{"vector": vector}])
            want = vector[0].reshape(300, 128)[first : first + count].T
            np.testing.assert_array_equal(got[0], want)


if __name__ == "__main__":
    absltest.main()
