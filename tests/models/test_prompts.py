"""Prompts in chunks: which sizes, and what several of them give."""

from __future__ import annotations

import pathlib
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf, prompts
from jax_tkg.models.decode import Decoder
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.prompts import Chunk, PromptReader
from tests.models import numpy_llama, tiny

pytestmark = pytest.mark.usefixtures("programs_of_this_run")

SHAPE = tiny.Tiny(num_layers=1, context_length=600)
RNG = np.random.default_rng(5)
TEXT = RNG.integers(0, len(tiny.VOCABULARY), 70).tolist()


def _model(dtype: str = "float32") -> PackedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, SHAPE)
        return gguf.load(gguf.GgufFile(path), dtype, 1)


class ChunksTest(parameterized.TestCase):
    @parameterized.parameters(
        (0, []),
        (1, [(0, 32)]),
        (32, [(0, 32)]),
        (33, [(0, 64)]),
        (257, [(0, 512)]),
        (512, [(0, 512)]),
        (513, [(0, 256), (256, 256), (512, 256)]),
        (769, [(0, 512), (512, 512)]),
        (257, [(0, 256), (256, 256)], 256),
        (513, [(0, 256), (256, 256), (512, 256)], 511),
        (100, [(0, 64), (64, 64)], 64),
        (33, [(0, 32), (32, 32)], 1),
    )
    def test_sizes(
        self, length: int, expected: list[tuple[int, int]], longest_chunk: int | None = None
    ) -> None:
        given = {} if longest_chunk is None else {"longest_chunk": longest_chunk}
        reader = PromptReader(ModelForward(_model()), 1000, **given)
        chunks = [Chunk(start, size, None) for start, size in expected]
        self.assertEqual(list(reader.chunks(length)), chunks)

    @parameterized.parameters(("auto", True), ("reference", True), ("simulate", False))
    def test_kernels_read_by_the_operation(self, implementation: str, prefills: bool) -> None:
        reader = PromptReader(ModelForward(_model(), implementation=implementation), 600)
        self.assertEqual(reader.prefill, prefills)
        if not prefills:
            self.assertEqual(
                list(reader.chunks(130))[-2:], [Chunk(120, 8, 128), Chunk(128, 8, 128)]
            )


@pytest.mark.thorough
class SeveralChunksTest(parameterized.TestCase):
    @parameterized.parameters(("float32", 1e-5), ("bfloat16", 0.05))
    @pytest.mark.extended_except("0")
    def test_logits(self, dtype: str, tolerance: float) -> None:
        """Four chunks, the last one padded, against a llama without a cache."""
        with mock.patch.object(prompts, "CHUNK_SIZES", (20,)):
            logits = Decoder(_model(dtype), 100).logits(TEXT)
        expected = numpy_llama.logits(SHAPE, SHAPE.tensors(), TEXT)
        error = np.abs(logits - expected).max() / np.abs(expected).max()
        self.assertLess(error, tolerance)

    @pytest.mark.extended
    def test_prompts_that_end_in_different_chunks(self) -> None:
        """As the operation reads them."""
        texts = [TEXT, TEXT[:21], TEXT[:5]]
        with mock.patch.object(prompts, "CHUNK_SIZES", (20,)):
            got = Decoder(_model(), 100).start(texts)
        want = Decoder(_model(), 100, prefill=False).start(texts)
        self.assertEqual(np.asarray(got.tokens).tolist(), np.asarray(want.tokens).tolist())
        self.assertEqual(np.asarray(got.lengths).tolist(), [70, 21, 5])
        np.testing.assert_allclose(got.K_caches, want.K_caches, rtol=0, atol=1e-4)
        np.testing.assert_allclose(got.V_caches, want.V_caches, rtol=0, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
