"""MXFP4 experts: values against transformers', and a folder that holds them."""

from __future__ import annotations

import json

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
from absl.testing import absltest

from jax_tkg.models import gguf_file, mxfp4_tensors
from jax_tkg.models import safetensors as folders
from jax_tkg.models.errors import ModelError
from tests.models import files
from tests.models.families.tiny_families import FAMILIES, Family

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle


def _expected(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    from transformers.integrations import mxfp4

    found = mxfp4.convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    return found.numpy()


class Mxfp4Test(absltest.TestCase):
    def test_every_number(self) -> None:
        blocks = np.arange(256, dtype=np.uint8).reshape(1, 4, 4, 16)
        scales = np.array([[[0, 1, 100, 126], [127, 128, 200, 250], [3, 5, 7, 9], [120] * 4]])
        scales = scales.astype(np.uint8)
        got = mxfp4_tensors.multiplied(blocks, scales)
        np.testing.assert_array_equal(got, _expected(blocks, scales))

    def test_gguf(self) -> None:
        """A block in GGUF: its scale, then the first half of its numbers beside the other."""
        rng = np.random.default_rng(0)
        blocks = rng.integers(0, 256, (3, 8, 2, 16), np.uint8)
        scales = rng.integers(100, 150, (3, 8, 2), np.uint8)
        numbers = np.stack([blocks & 0xF, blocks >> 4], axis=-1).reshape(3, 8, 2, 32)
        halves = numbers[..., :16] | numbers[..., 16:] << 4
        stored = np.concatenate([scales[..., np.newaxis], halves], axis=-1).reshape(3, 8, -1)
        path = files.folder(self) / "model.gguf"
        writer = gguf.GGUFWriter(path, "gpt-oss")
        name = "blk.0.ffn_down_exps.weight"
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        got = gguf_file.GgufFile(path).tensor(name, (3, 8, 64))
        want = mxfp4_tensors.multiplied(blocks, scales).swapaxes(1, 2)
        np.testing.assert_array_equal(got, want)

    def test_folder(self) -> None:
        """A folder with MXFP4 experts gives the model of one with their values."""
        folder = files.folder(self)
        changes = FAMILIES["gpt_oss"].changes | {"intermediate_size": 64, "num_hidden_layers": 1}
        Family("GptOss", changes, None).model().save_pretrained(folder)
        path = folder / "model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        rng = np.random.default_rng(0)
        stored = dict(tensors)
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, inner, out = stored.pop(name).shape
            blocks = rng.integers(0, 256, (experts, out, inner // 32, 16), np.uint8)
            scales = rng.integers(120, 130, (experts, out, inner // 32), np.uint8)
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            tensors[name] = np.ascontiguousarray(_expected(blocks, scales))
        safetensors.numpy.save_file(tensors, path)
        want = folders.load(folder, "float32")
        safetensors.numpy.save_file(stored, path)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
        (folder / "config.json").write_text(json.dumps(config))
        got = folders.load(folder, "float32")
        jax.tree.map(np.testing.assert_array_equal, got.parameters, want.parameters)
        name = "model.layers.0.mlp.experts.down_proj_scales"
        stored[name] = stored[name][:, :-1]
        safetensors.numpy.save_file(stored, path)
        with self.assertRaisesRegex(ModelError, "down_proj_blocks: expected blocks and scales of"):
            folders.load(folder, "float32")


if __name__ == "__main__":
    absltest.main()
