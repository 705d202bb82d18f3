"""GGUF files in several parts, as gguf-split cuts them and gguf's own writer writes them."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf
from jax_tkg.models.errors import ModelError
from tests.models import files, tiny

PARTS = 3


def _write(folder: pathlib.Path, parts: int = PARTS) -> dict[str, np.ndarray]:
    """The tiny model in several files: all metadata in the first, as gguf-split does it."""
    tensors = tiny.Tiny().tensors()
    names = list(tensors)
    for number in range(parts):
        fields = {"split.no": number, "split.count": parts, "split.tensors.count": len(tensors)}
        if not number:
            fields = tiny.Tiny().metadata() | fields
        kept = {name: tensors[name] for name in names[number::parts]}
        tiny.write(_part(folder, number, parts), kept, fields)
    return tensors


def _part(folder: pathlib.Path, number: int, parts: int = PARTS) -> pathlib.Path:
    return folder / f"tiny model-{number + 1:05}-of-{parts:05}.gguf"


class PartsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)
        self.tensors = _write(self.folder)

    def assert_refused(self, message: str, number: int = 0) -> None:
        with self.assertRaisesRegex(ModelError, message):
            gguf.GgufFile(_part(self.folder, number))

    @parameterized.parameters(*range(PARTS))
    def test_any_part_stands_for_all(self, number: int) -> None:
        file = gguf.GgufFile(_part(self.folder, number))
        self.assertCountEqual(file.tensor_names, self.tensors)
        for name, tensor in self.tensors.items():
            np.testing.assert_array_equal(file.tensor(name, tensor.shape), tensor)
        whole = self.folder / "whole.gguf"
        tiny.write_tiny(whole)
        self.assertEqual(gguf.read_config(file), gguf.read_config(gguf.GgufFile(whole)))
        gguf.load(file, "float32")

    def test_in_the_working_directory(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.assertLen(gguf.GgufFile(_part(self.folder, 0).name).tensor_names, len(self.tensors))

    def test_part_is_missing(self) -> None:
        _part(self.folder, 1).unlink()
        self.assert_refused("00002-of-00003.gguf: expected a file, got no such file")

    def test_part_leads_outside(self) -> None:
        elsewhere = files.folder(self) / "part.gguf"
        _part(self.folder, 1).rename(elsewhere)
        _part(self.folder, 1).symlink_to(elsewhere)
        self.assert_refused("00002-of-00003.gguf: expected a file inside the folder, got")

    def test_part_is_truncated(self) -> None:
        path = _part(self.folder, 2)
        path.write_bytes(path.read_bytes()[:-300])
        self.assert_refused("00003-of-00003.gguf: tensor .*: expected a file of at least .* bytes")

    def test_parts_in_the_wrong_order(self) -> None:
        first, second = _part(self.folder, 0), _part(self.folder, 1)
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        self.assert_refused("00001-of-00003.gguf: split.no: expected 0, as the file's name says, g")

    def test_parts_of_different_models(self) -> None:
        _write(self.folder, 2)
        _part(self.folder, 1, 2).replace(_part(self.folder, 1))
        self.assert_refused("00002-of-00003.gguf: split.count: expected 3, as in .*, got 2")

    def test_tensor_in_two_parts(self) -> None:
        fields = {"split.no": 1, "split.count": PARTS}
        tiny.write(_part(self.folder, 1), self.tensors, fields)
        self.assert_refused("00002-of-00003.gguf: tensor blk.0.attn_norm.weight: expected it in on")

    def test_tensors_are_missing(self) -> None:
        tiny.write(_part(self.folder, 1), {}, {"split.no": 1, "split.count": PARTS})
        self.assert_refused("split.tensors.count: expected 13, the number of tensors in .*, got 20")

    @parameterized.parameters("model.gguf", "model-00001-of-00002.gguf", "-00001-of-00003.gguf")
    def test_name_tells_no_parts(self, name: str) -> None:
        _part(self.folder, 0).rename(self.folder / name)
        with self.assertRaisesRegex(ModelError, "split.count: expected 1, or a file named NAME-0"):
            gguf.GgufFile(self.folder / name)

    @parameterized.parameters(0, 1, None)
    def test_one_file_whatever_its_name(self, count: int | None) -> None:
        path = self.folder / "model-00001-of-00009.gguf"
        tiny.write_tiny(path, split__count=count)
        self.assertLen(gguf.GgufFile(path).tensor_names, len(self.tensors))


class OpenTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = files.folder(self) / "model.gguf"

    def assert_refused(self, message: str) -> None:
        with self.assertRaisesRegex(ModelError, f"^{self.path}: {message}"):
            gguf.GgufFile(self.path)

    def test_absent(self) -> None:
        self.assert_refused("expected a GGUF file, got no such file")

    def test_empty(self) -> None:
        self.path.touch()
        self.assert_refused("expected a GGUF file, which begins with b'GGUF', got b''")

    def test_no_file(self) -> None:
        # Opening it would wait for ever.
        os.mkfifo(self.path)
        self.assert_refused("expected a GGUF file, got something else")

    def test_truncated(self) -> None:
        tiny.write_tiny(self.path)
        whole = self.path.read_bytes()
        # The writer keeps the order of the tensors, so the last one is incomplete first.
        last = list(tiny.Tiny().tensors())[-1]
        self.path.write_bytes(whole[: -(96 * 4 // 2)])
        self.assert_refused(f"tensor {last}: expected .*, got {len(whole) - 192}: the file is trun")

    def test_damaged_blocks_warn_of_nothing(self) -> None:
        tiny.write(self.path, tiny.Tiny().tensors(), tiny.Tiny().metadata(), quantization="Q4_1")
        file = gguf.GgufFile(self.path)
        info = file._tensors["blk.0.ffn_up.weight"][1]
        content = bytearray(self.path.read_bytes())
        # The scale and the minimum of the first block: infinity and its negative.
        content[info.start : info.start + 4] = b"\x00\x7c\x00\xfc"
        self.path.write_bytes(content)
        with np.errstate(all="raise"):
            values = gguf.GgufFile(self.path).tensor("blk.0.ffn_up.weight", (160, 96))
        self.assertTrue(np.isnan(values[0, 0]) or np.isinf(values[0, 0]))


if __name__ == "__main__":
    absltest.main()
