"""Folders of safetensors as the tiny llama's tensors make them, and folders that are wrong."""

from __future__ import annotations

import json
import pathlib
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file, save_file

from jax_tkg.models import decode, packing, safetensors
from jax_tkg.models.errors import ModelError
from jax_tkg.models.float8_tensors import Float8File
from tests.models import files, numpy_llama, tiny, tiny_folder

TOKENS = np.random.default_rng(5).integers(0, len(tiny.VOCABULARY), 13).tolist()
HEAD, EMBEDDING, UP = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
)


@pytest.mark.thorough
class LogitsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("one_file", tiny.Tiny(), 1),
        ("several_files", tiny.Tiny(), 3),
        ("untied", tiny.Tiny(tied=False), 2),
        ("heads_wider_than_hidden", tiny.Tiny(hidden_size=64, num_heads=6, head_size=32), 1),
    )
    @pytest.mark.extended_except("several_files", "untied")
    def test_equal_an_independent_llama(self, shape: tiny.Tiny, count: int) -> None:
        folder = files.folder(self)
        tensors = tiny_folder.write(folder, shape, count)
        actual = decode.Decoder(safetensors.load(folder, "float32"), 64).logits(TOKENS)
        expected = numpy_llama.logits(shape, tensors, TOKENS)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())


class HeadTest(absltest.TestCase):
    """Whether the head is the embedding: ModelParameters has no embedding of its own then."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.head = tiny.Tiny(tied=False).tensors()["output.weight"]

    def load(self, tied: bool | None, **changed: np.ndarray | None) -> packing.ModelParameters:
        renamed = {f"{name.replace('__', '.')}.weight": array for name, array in changed.items()}
        tiny_folder.write(self.folder, changed=renamed, tie_word_embeddings=tied)
        return safetensors.load(self.folder, "float32").parameters

    def assert_head(self, parameters: packing.ModelParameters, head: np.ndarray) -> None:
        np.testing.assert_array_equal(parameters.head[:96].T, head)

    def test_tied(self) -> None:
        embedding = tiny.Tiny().tensors()["token_embd.weight"]
        # By the file, by default, and where the same is stored twice.
        for parameters in (self.load(True), self.load(None), self.load(True, lm_head=embedding)):
            self.assertIsNone(parameters.embedding)
            self.assert_head(parameters, embedding)

    def test_stored_as_the_head_only(self) -> None:
        parameters = self.load(True, lm_head=self.head, model__embed_tokens=None)
        self.assertIsNone(parameters.embedding)
        self.assert_head(parameters, self.head)

    def test_not_tied(self) -> None:
        for tied in (False, None, True):
            parameters = self.load(tied, lm_head=self.head)
            self.assertIsNotNone(parameters.embedding)
            self.assert_head(parameters, self.head)

    def test_missing(self) -> None:
        shape = r"expected shape \[\d+, 96\], but it is missing"
        with self.assertRaisesRegex(ModelError, f"tensor lm_head.weight: {shape}"):
            self.load(False)
        with self.assertRaisesRegex(ModelError, f"tensor model.embed_tokens.weight: {shape}"):
            self.load(None, lm_head=self.head, model__embed_tokens=None)


class ErrorsTest(parameterized.TestCase):
    """Each names the file, the tensor or key, and what is wrong, in one line."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)

    def assert_error(self, *parts: str, dtype: str = "float32") -> None:
        with self.assertRaises(ModelError) as caught:
            safetensors.load(self.folder, dtype)
        message = str(caught.exception)
        self.assertStartsWith(message, str(self.folder))
        self.assertRegex(message, "expected .*, (got|but) ")
        for part in parts:
            self.assertIn(part, message)

    def rewrite(self, name: str, change: Any) -> None:
        path = self.folder / name
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    def rewrite_index(self, change: Any) -> None:
        path = self.folder / tiny_folder.INDEX
        content = json.loads(path.read_text())
        change(content["weight_map"])
        path.write_text(json.dumps(content))

    @parameterized.parameters(
        (np.dtype(ml_dtypes.float8_e4m3fn), "F8_E4M3"),
        (np.dtype(ml_dtypes.float8_e5m2), "F8_E5M2"),
        (np.dtype(np.int8), "I8"),
        (np.dtype(np.uint8), "U8"),
        (np.dtype(np.int64), "I64"),
        (np.dtype(bool), "BOOL"),
    )
    def test_dtype(self, dtype: np.dtype, name: str) -> None:
        tiny_folder.write(self.folder)
        path = self.folder / "model.safetensors"
        tensors = load_file(path)
        _save(path, tensors | {UP: np.ones((160, 96), dtype)}, name)
        self.assert_error(
            f"model.safetensors: tensor {UP}: expected one of the dtypes F64, F32, F16, BF16, got "
            f"{name}"
        )

    @parameterized.named_parameters(
        ("one", "_scale", (1,), None),
        ("rows", "_scale", (160, 1), None),
        ("blocks", "_scale_inv", (2, 1), [128, 128]),
        ("small_blocks", "_scale_inv", (10, 3), [16, 40]),
        ("blocks_of_groups", "_scale", (10, 3), [16, 40], "compressed-tensors"),
    )
    def test_float8(
        self, suffix: str, shape: tuple[int, ...], block: list[int] | None, method: str = "fp8"
    ) -> None:
        """Against a loop over the weights."""
        rng = np.random.default_rng(0)
        stored = rng.standard_normal((160, 96)).astype(ml_dtypes.float8_e4m3fn)
        scale = rng.uniform(0.5, 2, shape).astype(np.float32)
        quantization: dict[str, Any] = {"quant_method": method, "weight_block_size": block}
        if method != "fp8":
            group = {"weights": {"strategy": "block", "block_structure": block}}
            quantization = {"quant_method": method, "format": "float-quantized"}
            quantization |= {"config_groups": {"group_0": group}}
        tiny_folder.write(self.folder, quantization_config=quantization)
        path = self.folder / "model.safetensors"
        _save(path, load_file(path) | {UP: stored, UP + suffix: scale}, "F8_E4M3")
        expected = np.empty((160, 96), np.float32)
        for row, column in np.ndindex(expected.shape):
            at = [row, 0][: scale.ndim] if scale.size > 1 else [0] * scale.ndim
            if block is not None:
                at = [row // block[0], column // block[1]]
            expected[row, column] = np.float32(stored[row, column]) * scale[tuple(at)]
        layers = safetensors.load(self.folder, "float32").parameters.layers
        np.testing.assert_array_equal(np.asarray(layers.W_ups[0])[:96, :160], expected.T)

    def test_header_is_read_once_for_all_float8_tensors(self) -> None:
        """Of a model with experts it has thousands of entries."""
        tiny_folder.write(self.folder, quantization_config={"quant_method": "fp8"})
        path = self.folder / "model.safetensors"
        added: dict[str, np.ndarray] = {}
        for name in (UP, UP.replace("up", "gate"), UP.replace("layers.0", "layers.1")):
            added[name] = np.ones((160, 96), ml_dtypes.float8_e4m3fn)
            added[f"{name}_scale"] = np.ones(1, np.float32)
        _save(path, load_file(path) | added, "F8_E4M3")
        with mock.patch.object(safetensors, "Float8File", wraps=Float8File) as opened:
            safetensors.load(self.folder, "float32")
        opened.assert_called_once_with(path)

    @parameterized.parameters(((96, 1),), ((2, 1),), ((160, 96),))
    def test_float8_with_another_scale(self, shape: tuple[int, ...]) -> None:
        tiny_folder.write(self.folder, quantization_config={"quant_method": "fp8"})
        path = self.folder / "model.safetensors"
        stored, scale = np.ones((160, 96), ml_dtypes.float8_e4m3fn), np.ones(shape, np.float32)
        _save(path, load_file(path) | {UP: stored, f"{UP}_scale": scale}, "F8_E4M3")
        self.assert_error(f"tensor {UP}_scale: expected a scale of one number or [160, 1], got sha")

    @parameterized.parameters(np.float64, np.float16, ml_dtypes.bfloat16)
    def test_floating_point(self, dtype: Any) -> None:
        tiny_folder.write(self.folder, changed={UP: np.full((160, 96), 0.75, dtype)})
        layers = safetensors.load(self.folder, "float32").parameters.layers
        np.testing.assert_array_equal(np.asarray(layers.W_ups[0])[:96, :160], 0.75)

    @parameterized.parameters(
        (np.nan, "float32", "got nan"),
        (-np.inf, "float32", "got -inf"),
        (1e300, "float32", "of at most 3.40282e+38, the largest of dtype float32, got 1e+300"),
        (7e4, "float16", "of at most 65504, the largest of dtype float16, got 70000.0"),
    )
    def test_value(self, value: float, dtype: str, part: str) -> None:
        weight = np.zeros((160, 96))
        weight[3, 4] = value
        tiny_folder.write(self.folder, changed={UP: weight})
        self.assert_error(
            f"model.safetensors: tensor {UP}: expected finite numbers", part, dtype=dtype
        )

    @parameterized.parameters(
        "model.layers.00.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers." + "9" * 5000 + ".mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "a\nb",
    )
    def test_tensor_too_many(self, name: str) -> None:
        tiny_folder.write(self.folder, changed={name: np.zeros((160, 96), np.float32)})
        self.assert_error("expected no tensor of that name in a llama model of 2 layers, got one")

    def test_frequencies_in_old_checkpoints(self) -> None:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        tiny_folder.write(self.folder, changed={name: np.ones(8, np.float32)})
        safetensors.load(self.folder, "float32")

    @parameterized.named_parameters(
        ("up", "../outside.safetensors"),
        ("absolute", "{outside}"),
        ("linked", "link.safetensors"),
    )
    def test_index_leads_outside(self, name: str) -> None:
        outer = self.folder
        self.folder = outer / "model"
        self.folder.mkdir()
        tiny_folder.write(self.folder, files=2)
        outside = outer / "outside.safetensors"
        (self.folder / "model-00001-of-00002.safetensors").rename(outside)
        (self.folder / "link.safetensors").symlink_to(outside)
        to = name.format(outside=outside)
        self.rewrite_index(
            lambda where: where.update({t: to for t, f in where.items() if "00001-of" in f})
        )
        self.assert_error("expected a file inside the folder, got")

    @parameterized.parameters((3,), (None,), (["a"],), ({},), (True,))
    def test_index_names_no_file(self, value: Any) -> None:
        tiny_folder.write(self.folder, files=2)
        self.rewrite_index(lambda where: where.update({UP: value}))
        self.assert_error(f"index.json: weight_map.{UP}: expected the name of a file in the folder")

    @parameterized.parameters((None,), ([],), ({},), ("a",), (3,))
    def test_index_without_a_map(self, value: Any) -> None:
        tiny_folder.write(self.folder, files=2)
        (self.folder / tiny_folder.INDEX).write_text(json.dumps({"weight_map": value}))
        self.assert_error("index.json: weight_map: expected an object with a file's name for each")

    @parameterized.parameters("", ".", "absent.safetensors", "a" * 300, "a\0b", "\ud800")
    def test_index_names_an_absent_file(self, name: str) -> None:
        tiny_folder.write(self.folder, files=2)
        self.rewrite_index(lambda where: where.update({UP: name}))
        self.assert_error("expected a file")

    def test_index_is_wrong(self) -> None:
        tiny_folder.write(self.folder, files=2)
        first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))

        def swap(where: dict[str, str]) -> None:
            where.update({UP: first if where[UP] == second else second})

        self.rewrite_index(swap)
        self.assert_error(
            f"index.json: weight_map.{UP}: expected a file that holds the tensor, got"
        )

    def test_tensor_in_two_files(self) -> None:
        tiny_folder.write(self.folder, files=2)
        for number in (1, 2):
            name = f"model-0000{number}-of-00002.safetensors"
            self.rewrite(name, lambda tensors: tensors.update({UP: np.ones((160, 96), np.float32)}))
        self.assert_error(f"tensor {UP}: expected it in one file, got it in ")

    def test_deeply_nested_index(self) -> None:
        tiny_folder.write(self.folder, files=2)
        (self.folder / tiny_folder.INDEX).write_text('{"weight_map":' * 100_000)
        self.assert_error("index.json: expected JSON, got values nested too deeply")


def _save(path: pathlib.Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """Writes safetensors by hand, whose package does not take every dtype of NumPy."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = tensor.tobytes()
        kind = "F32" if tensor.dtype == np.float32 else dtype
        places = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": places}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


if __name__ == "__main__":
    absltest.main()
