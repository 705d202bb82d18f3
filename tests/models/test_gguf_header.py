"""Headers of GGUF files, written here byte by byte, and by gguf's own writer."""

from __future__ import annotations

import struct
from typing import Any

import gguf
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf_header
from jax_tkg.models.errors import ModelError
from tests.models import files, tiny

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def _string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def _key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


def _tensor(name: str, offset: int, sizes: tuple[int, ...] = (8,), kind: int = 0) -> bytes:
    numbers = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return _string(name) + numbers


def _file(
    keys: list[bytes], tensors: list[bytes], data: int = 64, version: int = 3, order: str = "<"
) -> bytes:
    counts = struct.pack(f"{order}IQQ", version, len(tensors), len(keys))
    header = b"GGUF" + counts + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32 + data)


def _read(content: bytes) -> gguf_header.Header:
    return gguf_header.read_header("file", np.frombuffer(content, np.uint8))


class ReadTest(absltest.TestCase):
    def test_equals_the_reader_of_the_gguf_package(self) -> None:
        path = files.folder(self) / "model.gguf"
        fields = tiny.Tiny().metadata() | {"a.flag": True, "a.list": [1.5, 2.5], "a.flags": [True]}
        tiny.write(path, tiny.Tiny().tensors(), fields, quantization="Q8_0")
        header, expected = _read(path.read_bytes()), gguf.GGUFReader(path)
        values = {k: f.contents() for k, f in expected.fields.items() if not k.startswith("GGUF.")}
        self.assertEqual(list(header.metadata), list(values))
        for key, value in values.items():
            actual = header.metadata.raw(key)
            actual = actual.tolist() if isinstance(actual, np.ndarray) else actual
            self.assertEqual(actual, value)
            self.assertIs(type(actual), type(value))
        self.assertEqual(list(header.tensors), [tensor.name for tensor in expected.tensors])
        for tensor in expected.tensors:
            info = header.tensors[tensor.name]
            self.assertEqual(info.shape, tuple(reversed(tensor.shape.tolist())))
            self.assertEqual(info.type, tensor.tensor_type)
            self.assertEqual((info.start, info.size), (tensor.data_offset, tensor.n_bytes))

    def test_alignment(self) -> None:
        aligned = _file([_key("general.alignment", U32, struct.pack("<I", 8))], [_tensor("a", 8)])
        # The header's 90 bytes, rounded up, and the offset.
        self.assertEqual(_read(aligned).tensors["a"].start, 96 + 8)

    def test_large_arrays_of_numbers_are_not_taken_apart(self) -> None:
        # The gguf package's reader takes minutes for these.
        count = 1 << 24
        array = struct.pack("<IQ", U8, count) + bytes(count)
        header = _read(_file([_key("a", ARRAY, array)], []))
        self.assertIsInstance(header.metadata.raw("a"), np.ndarray)


class RefusalTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("empty", b"", "expected a GGUF file, which begins with b'GGUF', got b''"),
        ("other_file", b"GIF89a" + bytes(99), "expected a GGUF file, .* got b'GIF8'"),
        ("cut", b"GGUF\x03", "the header: expected a file of at least 8 bytes, .* got 5: the file"),
        (
            "big_endian",
            _file([], [], order=">"),
            "expected .* little-endian byte order, got one in",
        ),
        ("version", _file([], [], version=1), "GGUF version: expected 2 or 3, got 1"),
        (
            "tensor_count",
            b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
            "the number of tensors: expected at most 131072, got 9223372036854775808",
        ),
        (
            "key_count",
            b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
            "the number of metadata keys: expected at most 131072, got 1099511627776",
        ),
    )
    def test_file(self, content: bytes, message: str) -> None:
        self._assert_refused(content, f"file: {message}")

    @parameterized.named_parameters(
        ("twice", [_key("a", U8, b"1"), _key("a", U8, b"2")], "a: expected each metadata key once"),
        (
            "type",
            [_key("a", 13, b"1")],
            "a: expected a known type of numbers or strings, got .* 13",
        ),
        ("boolean", [_key("a", BOOL, b"\2")], "a: expected booleans stored as 0 or 1, got 2"),
        ("text", [_key("a", STRING, _string(b"b\xff"))], "a: expected text in UTF-8, .* 0xff at 1"),
        (
            "name",
            [_key(b"\xff", U8, b"1")],
            "a metadata key: expected text in UTF-8, got byte 0xff",
        ),
        (
            "name_size",
            [_key("a" * 70_000, U8, b"1")],
            "a metadata key: expected at most 65536 bytes",
        ),
        (
            "string_size",
            [_key("a", STRING, struct.pack("<Q", 2**62))],
            "a: expected a file of at least 4611686018427387949 bytes, .* truncated or damaged",
        ),
        (
            "array_size",
            [_key("a", ARRAY, struct.pack("<IQ", U64, 2**61))],
            "a: expected a file of at least 18446744073709551665 bytes, where it ends, got",
        ),
        (
            "array_of_strings",
            [_key("a", ARRAY, struct.pack("<IQ", STRING, 2**61))],
            "a: expected at most 4194304 strings in the file's arrays, got an array of 23058430",
        ),
        ("array_type", [_key("a", ARRAY, struct.pack("<IQ", 99, 0))], "a: expected a known type"),
        (
            "array_of_arrays",
            [_key("a", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U8, 0))],
            "a: expected a known type of numbers or strings, got number 9",
        ),
        (
            "alignment",
            [_key("general.alignment", U32, struct.pack("<I", 24))],
            "general.alignment: expected a power of two, got 24",
        ),
        (
            "no_alignment",
            [_key("general.alignment", U32, struct.pack("<I", 0))],
            "general.alignment: expected an integer from 1 to 1048576, got 0",
        ),
        (
            "alignment_type",
            [_key("general.alignment", F32, struct.pack("<f", 32))],
            "general.alignment: expected an integer from 1 to 1048576, got 32.0",
        ),
    )
    def test_metadata(self, keys: list[bytes], message: str) -> None:
        self._assert_refused(_file(keys, []), f"file: {message}")

    @parameterized.named_parameters(
        ("twice", [_tensor("a", 0), _tensor("a", 32)], "tensor a: expected it once, got it twice"),
        ("misaligned", [_tensor("a", 8)], "tensor a: expected an offset .* multiple of 32, got 8"),
        (
            "same_place",
            [_tensor("a", 0), _tensor("b", 0)],
            "tensor b: expected it to begin at byte 128 or later, where tensor a ends, got 96",
        ),
        (
            "overlapping",
            [_tensor("a", 32), _tensor("b", 0, (16,))],
            "tensor a: expected it to begin at byte 160 or later, where tensor b ends, got 128",
        ),
        (
            "beyond",
            [_tensor("a", 64)],
            "tensor a: expected a file of at least 160 bytes, .* got 96",
        ),
        ("far", [_tensor("a", 2**63)], "tensor a: expected a file of at least 9223372036854775904"),
        ("huge", [_tensor("a", 0, (2**62, 2**62))], "tensor a: expected a file of at least 850705"),
        ("type", [_tensor("a", 0, kind=99)], "tensor a: expected a known type, got number 99"),
        (
            "part_of_a_block",
            [_tensor("a", 0, (8, 4), 8)],
            "tensor a: expected rows of a multiple of",
        ),
        ("scalar", [_tensor("a", 0, ())], "tensor a: expected 1 to 4 dimensions, got 0"),
        ("rank", [_tensor("a", 0, (1,) * 5)], "tensor a: expected 1 to 4 dimensions, got 5"),
        ("nothing", [_tensor("a", 0, (8, 0))], r"tensor a: expected positive sizes, got \[0, 8\]"),
        ("name", [_tensor("a" * 70_000, 0)], "a tensor's name: expected at most 65536 bytes, got"),
    )
    def test_tensors(self, tensors: list[bytes], message: str) -> None:
        data = 32 if "beyond" in self.id() else 64
        self._assert_refused(_file([], tensors, data), f"file: {message}")

    def test_tensors_may_lie_in_any_order_and_apart(self) -> None:
        header = _read(_file([], [_tensor("b", 64), _tensor("a", 0)], data=96))
        self.assertEqual(header.tensors["b"].start - header.tensors["a"].start, 64)

    def test_every_truncation_of_the_header(self) -> None:
        keys: list[Any] = [
            _key("a", STRING, _string("text")),
            _key("b", ARRAY, struct.pack("<IQ", STRING, 2) + _string("x") + _string("y")),
            _key("c", ARRAY, struct.pack("<IQ2I", U32, 2, 1, 2)),
        ]
        whole = _file(keys, [_tensor("a", 0)], data=32)
        _read(whole)
        for size in range(len(whole)):
            self._assert_refused(whole[:size], "^file: .*expected .*, got ")

    def _assert_refused(self, content: bytes, message: str) -> None:
        with self.assertRaisesRegex(ModelError, message):
            _read(content)


if __name__ == "__main__":
    absltest.main()
