"""GGUF files against an independent llama, and files that are wrong."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from typing import Any

import hypothesis
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.models import decode, gguf
from jax_tkg.models.errors import ModelError
from tests.models import devices, files, numpy_llama, tiny

TOKENS = np.random.default_rng(7).integers(0, len(tiny.VOCABULARY), 21).tolist()


@pytest.mark.thorough
class LogitsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("padded", tiny.Tiny()),
        ("whole_tiles", tiny.Tiny(hidden_size=128, intermediate_size=256)),
        ("one_kv_head", tiny.Tiny(num_kv_heads=1)),
        ("a_kv_head_each", tiny.Tiny(num_kv_heads=6)),
        ("untied", tiny.Tiny(tied=False)),
        ("frequency_factors", tiny.Tiny(rope_factors=True)),
        ("linear_scaling", tiny.Tiny(rope_linear_factor=4.0)),
        ("heads_wider_than_hidden", tiny.Tiny(hidden_size=64, num_heads=6, head_size=32)),
        ("Q8_0", tiny.Tiny(quantization="Q8_0")),
        ("Q4_1", tiny.Tiny(quantization="Q4_1", tied=False)),
        ("BF16", tiny.Tiny(quantization="BF16")),
        ("two_ranks", tiny.Tiny(), 2),
        ("two_ranks_odd_mlp", tiny.Tiny(intermediate_size=290, tied=False), 2),
        ("three_ranks", tiny.Tiny(num_kv_heads=3), 3),
    )
    @pytest.mark.extended_except(
        "padded", "BF16", "Q8_0", "frequency_factors", "two_ranks_odd_mlp", "untied"
    )
    def test_equal_an_independent_llama(self, shape: tiny.Tiny, ranks: int = 1) -> None:
        path = files.folder(self) / "model.gguf"
        tensors = tiny.write_tiny(path, shape)
        model = gguf.load(gguf.GgufFile(path), "float32", ranks)
        actual = decode.Decoder(model, 64, devices.mesh(ranks)).logits(TOKENS)
        expected = numpy_llama.logits(shape, tensors, TOKENS)
        self.assertLess(np.abs(actual - expected).max(), 2e-5 * np.abs(expected).max())

    @parameterized.parameters("bfloat16", "float16")
    @pytest.mark.extended_except("0")
    def test_low_precision(self, dtype: str) -> None:
        path = files.folder(self) / "model.gguf"
        tensors = tiny.write_tiny(path)
        model = gguf.load(gguf.GgufFile(path), dtype)
        actual = decode.Decoder(model, 64).logits(TOKENS)
        expected = numpy_llama.logits(tiny.Tiny(), tensors, TOKENS)
        tolerance = {"bfloat16": 0.08, "float16": 0.01}[dtype]
        self.assertLess(np.abs(actual - expected).max(), tolerance * np.abs(expected).max())


class ProgressTest(absltest.TestCase):
    def test_counts_layers(self) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path)
        seen: list[tuple[int, int]] = []
        gguf.load(gguf.GgufFile(path), "float32", 1, lambda *counts: seen.append(counts))
        self.assertEqual(seen, [(1, 2), (2, 2)])


def _without(name: str) -> dict[str, np.ndarray]:
    tensors = tiny.Tiny().tensors()
    del tensors[name]
    return tensors


def _with(name: str, *shape: int, value: float = 0.0) -> dict[str, np.ndarray]:
    return tiny.Tiny().tensors() | {name: np.full(shape, value, np.float32)}


class ErrorsTest(parameterized.TestCase):
    """Each names the file and what is wrong, in one line."""

    def setUp(self) -> None:
        super().setUp()
        self.path = files.folder(self) / "model.gguf"

    def assert_error(self, *parts: str, ranks: int | None = None, dtype: str = "float32") -> None:
        with self.assertRaises(ModelError) as caught:
            gguf.load(gguf.GgufFile(self.path), dtype, 1 if ranks is None else ranks)
        message = str(caught.exception)
        self.assertEqual(len(message.splitlines()), 1)
        if ranks is None:
            self.assertEqual(message.count(str(self.path)), 1)
        for part in parts:
            self.assertIn(part, message)

    @parameterized.named_parameters(
        ("missing", _without("blk.1.ffn_up.weight"), "tensor blk.1.ffn_up.weight: expected"),
        ("no_norm", _without("output_norm.weight"), "output_norm.weight: expected shape [96], but"),
        (
            "shape",
            _with("blk.0.attn_k.weight", 48, 96),
            "tensor blk.0.attn_k.weight: expected shape [32, 96], got [48, 96]",
        ),
        (
            "transposed",
            _with("blk.0.ffn_gate.weight", 96, 160),
            "blk.0.ffn_gate.weight: expected shape [160, 96], got [96, 160]",
        ),
        ("bias", _with("blk.0.ffn_up.bias", 160), "tensor blk.0.ffn_up.bias: expected no"),
        ("more_layers", _with("blk.2.attn_norm.weight", 96), "blk.2.attn_norm.weight: expected"),
        (
            "not_finite",
            _with("blk.1.attn_v.weight", 32, 96, value=np.nan),
            "blk.1.attn_v.weight: expected finite numbers of at most 3.40282e+38, the largest of "
            "dtype float32, got nan",
        ),
        ("leading_zero", _with("blk.00.attn_norm.weight", 96), "blk.00.attn_norm.weight: expected"),
        ("far_layer", _with("blk.9" + 50 * "9" + ".attn_norm.weight", 96), "attn_norm.weight: exp"),
    )
    def test_tensors(self, tensors: dict[str, np.ndarray], part: str) -> None:
        tiny.write(self.path, tensors, tiny.Tiny().metadata())
        self.assert_error(part)

    @parameterized.named_parameters(
        ("no_layers", {"llama.block_count": None}, "llama.block_count: expected"),
        ("zero_layers", {"llama.block_count": 0}, "block_count: expected an integer from 1 to"),
        ("kind", {"llama.block_count": "two"}, "block_count: expected an integer from 1 to"),
        ("zero_heads", {"llama.attention.head_count": 0}, "head_count: expected an integer from 1"),
        ("deep", {"llama.block_count": 4000}, "tensor blk.2.attn_q.weight: expected"),
    )
    def test_metadata(self, changes: dict[str, Any], part: str) -> None:
        tiny.write(self.path, tiny.Tiny().tensors(), tiny.Tiny().metadata() | changes)
        self.assert_error(part)

    def test_architecture(self) -> None:
        tiny.write(self.path, {}, {}, architecture="gpt2")
        self.assert_error("general.architecture: expected 'llama' or 'qwen2' or 'qwen3' or")

    def test_ranks(self) -> None:
        tiny.write_tiny(self.path)
        self.assert_error("a multiple of the 2 KV heads, got 3", ranks=3)
        self.assert_error("query heads, got 4 (6 % 4 = 2)", ranks=4)
        self.assert_error("tensor_parallel: expected at least 1, got 0", ranks=0)

    def test_numbers_that_the_dtype_cannot_hold(self) -> None:
        tiny.write(
            self.path, _with("blk.0.ffn_up.weight", 160, 96, value=7e4), tiny.Tiny().metadata()
        )
        gguf.load(gguf.GgufFile(self.path), "bfloat16")
        self.assert_error("expected finite numbers of at most 65504,", "got 70000", dtype="float16")

    def test_integers_are_no_weights(self) -> None:
        tensors: dict[str, Any] = tiny.Tiny().tensors()
        tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].astype(np.int32)
        tiny.write(self.path, tensors, tiny.Tiny().metadata())
        self.assert_error("blk.0.ffn_up.weight: expected floating-point or quantized weights, got")


@functools.cache
def _whole_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path)
        return path.read_bytes()


def _header_size() -> int:
    data = 4 * sum(tensor.size for tensor in tiny.Tiny().tensors().values())
    return len(_whole_file()) - data


class DamageTest(absltest.TestCase):
    """Whatever happens to a file's bytes, it loads or there is one line that names it."""

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(st.data())
    def test_truncated_anywhere(self, data: st.DataObject) -> None:
        # Past the header the outcome depends on the size alone.
        size = data.draw(st.integers(0, _header_size() + 200))
        self._load(_whole_file()[:size], must_fail=True)

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(st.data())
    def test_bytes_of_the_header(self, data: st.DataObject) -> None:
        damaged = bytearray(_whole_file())
        places = st.integers(0, _header_size() - 1)
        for place in data.draw(st.lists(places, min_size=1, max_size=8)):
            damaged[place] = data.draw(st.integers(0, 255))
        self._load(bytes(damaged), must_fail=False)

    def _load(self, content: bytes, must_fail: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            path.write_bytes(content)
            try:
                gguf.load(gguf.GgufFile(path), "float32")
            except ModelError as error:
                self.assertEqual(len(str(error).splitlines()), 1, str(error))
                self.assertStartsWith(str(error), f"{path}: ")
            else:
                self.assertFalse(must_fail)


if __name__ == "__main__":
    absltest.main()
