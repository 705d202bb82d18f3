"""How far sizes are padded, and that it changes nothing."""

from __future__ import annotations

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models import decode, gguf, packing
from tests.models import devices, files, numpy_llama, tiny

TOKENS = np.random.default_rng(3).integers(0, len(tiny.VOCABULARY), 11).tolist()


class HiddenSizeTest(parameterized.TestCase):
    @parameterized.parameters(
        ("cpu", "auto", 64),
        ("cpu", "cpu", 64),
        ("cpu", "reference", 64),
        ("cpu", "simulate", 128),
        ("gpu", "auto", 128),
        ("neuron", "auto", 128),
        ("neuron", "reference", 128),
    )
    def test_whole_tiles_where_a_kernel_may_run(
        self, platform: str, implementation: str, expected: int
    ) -> None:
        self.assertEqual(packing.hidden_multiple_for(platform, implementation), expected)

    @parameterized.parameters((160, 1, True), (160, 2, False), (64, 1, False))
    def test_logits_of_a_model_padded_less(self, hidden: int, ranks: int, tied: bool) -> None:
        shape = tiny.Tiny(hidden_size=hidden, tied=tied)
        path = files.folder(self) / "model.gguf"
        tensors = tiny.write_tiny(path, shape)
        file = gguf.GgufFile(path)
        model = gguf.load(file, "float32", ranks, hidden_multiple=packing.CPU_HIDDEN_MULTIPLE)
        self.assertEqual(model.hidden_size, {160: 192, 64: 64}[hidden])
        outlined = packing.outline(
            model.config, "float32", ranks, tied, packing.CPU_HIDDEN_MULTIPLE
        )
        self.assertEqual(
            *([x.shape for x in jax.tree.leaves(each.parameters)] for each in (model, outlined))
        )
        actual = decode.Decoder(model, 64, devices.mesh(ranks)).logits(TOKENS)
        expected = numpy_llama.logits(shape, tensors, TOKENS)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())

    def test_kernels_refuse_half_tiles(self) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path, tiny.Tiny(hidden_size=160))
        model = gguf.load(
            gguf.GgufFile(path), "float32", hidden_multiple=packing.CPU_HIDDEN_MULTIPLE
        )
        decoder = decode.Decoder(model, 64, implementation="simulate")
        with self.assertRaisesRegex(ValueError, "X: expected H .* multiple of 128 .* got 192"):
            decoder.logits(TOKENS)


if __name__ == "__main__":
    absltest.main()
