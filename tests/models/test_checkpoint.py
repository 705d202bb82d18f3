"""Opening a model whatever its format."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest

from jax_tkg.models import decode
from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.errors import ModelError
from tests.models import files, tiny, tokenizer_files

END = tiny.VOCABULARY.index(tiny.END)


class OpenTest(absltest.TestCase):
    def test_gguf_file(self) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path)
        checkpoint = open_checkpoint(path)
        self.assertEqual(checkpoint.config.hidden_size, 96)
        self.assertEqual(checkpoint.tokenizer.stop_tokens, (END,))
        self.assertEqual(checkpoint.load("bfloat16", 2).tensor_parallel, 2)

    @pytest.mark.oracle
    def test_folder(self) -> None:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        folder = files.folder(self)
        config = transformers.LlamaConfig(
            vocab_size=len(tiny.VOCABULARY),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        model = transformers.LlamaForCausalLM(config).eval()
        model.save_pretrained(folder)
        tokenizer_files.write(folder)
        (folder / "generation_config.json").unlink()
        checkpoint = open_checkpoint(folder)
        ids = checkpoint.tokenizer.encode("the and")
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        actual = decode.Decoder(checkpoint.load("float32"), 64).logits(ids)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())

    def test_absent(self) -> None:
        with self.assertRaisesRegex(ModelError, "nowhere: no such file"):
            open_checkpoint("nowhere")


if __name__ == "__main__":
    absltest.main()
